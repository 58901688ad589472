"""Resource names are built and parsed in one module only: common/words/names.py."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
OWNER = REPOSITORY / "common" / "src" / "pluralllm" / "common" / "words" / "names.py"
SOURCES = [
    path
    for folder in ("common", "server", "client", "research")
    for path in sorted((REPOSITORY / folder / "src").rglob("*.py"))
    if path != OWNER
]
# A name begins a text; "/api/runs/" is an address of the status page.
NAME = re.compile(r"^\^?(runs|members)/")
PIECE = re.compile(r"/(rounds|models|tasks)/")


def handmade_names(source: str) -> list[int]:
    """Returns the lines that build, match or cut a name by hand."""
    lines = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            texts = [piece.value for piece in node.values if isinstance(piece, ast.Constant)]
            if any(NAME.search(str(text)) or PIECE.search(str(text)) for text in texts):
                lines.add(node.lineno)
        if isinstance(node, ast.Call):
            texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            keywords = [word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)]
            if any(isinstance(text, str) and NAME.search(text) for text in (*texts, *keywords)):
                lines.add(node.lineno)
            if isinstance(node.func, ast.Attribute) and node.func.attr in {
                "split",
                "rsplit",
                "partition",
                "rpartition",
            }:
                cut = ast.unparse(node.func.value)
                if texts == ["/"] and re.search(r"""(\bname|\["name"\]|\['name'\]|source)$""", cut):
                    lines.add(node.lineno)
    return sorted(lines)


def test_names_are_made_by_names() -> None:
    assert len(SOURCES) > 100
    handmade = [
        f"{path.relative_to(REPOSITORY)}:{line}" for path in SOURCES for line in handmade_names(path.read_text())
    ]
    assert handmade == []


@pytest.mark.parametrize(
    "source",
    [
        'f"runs/{run}"',
        'f"{run}/models/{version}"',
        'name.removeprefix("members/")',
        're.fullmatch(r"runs/([a-z]+)", name)',
        'Field(pattern=r"^runs/[a-z]+$")',
        'found["name"].split("/")[1]',
        'answer.model.name.rpartition("/")',
    ],
)
def test_a_name_made_by_hand_is_found(source: str) -> None:
    assert handmade_names(source) == [1]


def test_what_is_no_name_passes() -> None:
    assert handmade_names('Route("/api/runs/{run}/history"); method.rpartition("/"); f"{run} runs"') == []
