"""Checks for plain English: first lines, help texts and metric descriptions that a reader understands without the code.

`python tests/architecture/test_language.py [FOLDER]` prints every place that breaks a rule.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDERS = ("common", "server", "client", "research", "benchmarks", "deploy", "docs", "protos", "tests")
GENERATED = REPOSITORY / "common" / "src" / "pluralllm" / "v1"
# A noun with its verb or its object comes first; these words open a piece of a sentence.
OPENERS = {"of", "what", "whoever", "whose", "that", "where", "which", "with"}
# The name of an argument, or several: the sentence about it follows the one that says what the function does.
ARGUMENT = re.compile(r"[a-z_][a-z_0-9]*(, [a-z_][a-z_0-9]*)*:")
# Names that say how a value came here, not what it is. Within three lines the lines themselves say it.
VAGUE = {"found", "mine", "told", "given", "each", "wanted", "known", "got", "said", "part"}
LONGEST_LIFE = 3
METRICS = ("Counter", "Gauge", "Histogram", "Summary", "Info", "MetricFamily")
HELP = {"help", "short_help", "epilog", "description", "documentation"}
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def sources(folder: str) -> list[Path]:
    """Returns every Python file of the project below `folder` that a person wrote."""
    paths = sorted((REPOSITORY / folder).rglob("*.py"))
    return [path for path in paths if GENERATED not in path.parents and ".venv" not in path.parts]


def constant_text(node: ast.AST) -> str | None:
    """Returns the text of a string expression, None for another one; a value within an f-string reads as the word VALUE."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=pieces):
            return "".join(constant_text(piece) or "VALUE" for piece in pieces)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            before, after = constant_text(left), constant_text(right)
            return None if before is None else before + (after or "VALUE")
    return None


def texts(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Yields line, kind and text of each docstring, help text and metric description."""
    for node in ast.walk(tree):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)) is not None:
            yield node.body[0].lineno, "docstring", text.split("\n")[0]
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name.endswith(METRICS) and len(node.args) > 1 and (text := constant_text(node.args[1])) is not None:
                yield node.lineno, "metric", text
            for argument in node.keywords:
                if argument.arg in HELP and (text := constant_text(argument.value)) is not None:
                    yield argument.value.lineno, "help", text.split("\n\n")[0]


def complaints(text: str, kind: str) -> Iterator[str]:
    """Yields each rule that one text breaks."""
    words = text.split()
    if not words:
        yield "says nothing"
        return
    if words[0].strip("`\"'(,").lower() in OPENERS:
        yield f"opens with {words[0]}"
    if kind == "docstring" and (argument := ARGUMENT.match(text)):
        yield f"opens with the argument {argument[0]}"
    if not text.rstrip().endswith("."):
        yield "does not end with a full stop"
    if kind == "help" and len(words) < 3:
        yield "is shorter than three words"


def bindings(function: Function) -> Iterator[tuple[str, int]]:
    """Yields each name in a function with a line where it stands: parameters, stores and loads, also of functions inside."""
    for node in ast.walk(function):
        match node:
            case ast.arg(arg=name) | ast.Name(id=name):
                yield name, node.lineno
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, node.lineno


def vague_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields vague locals that live too long: from the first line where a function has the name to the last one."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            lines: dict[str, list[int]] = {}
            for name, line in bindings(node):
                lines.setdefault(name, []).append(line)
            for name in VAGUE & lines.keys():
                if max(lines[name]) - min(lines[name]) >= LONGEST_LIFE:
                    yield min(lines[name]), f"`{name}` lives for {max(lines[name]) - min(lines[name]) + 1} lines"


def problems(path: Path) -> list[str]:
    """Returns every place in one file that is not plain."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    place = path.relative_to(REPOSITORY)
    unclear = [
        f"{place}:{line}: {kind} {complaint}: {text!r}"
        for line, kind, text in texts(tree)
        for complaint in complaints(text, kind)
    ]
    return unclear + sorted({f"{place}:{line}: {problem}" for line, problem in vague_names(tree)})


@pytest.mark.parametrize("folder", FOLDERS)
def test_texts_and_names_are_plain(folder: str) -> None:
    paths = sources(folder)
    assert paths
    assert [problem for path in paths for problem in problems(path)] == []


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ('"""Of a round\'s tasks."""', "opens with Of"),
        ('"""Returns a round\'s tasks"""', "does not end with a full stop"),
        ('"""Returns a round\'s tasks, as their\nnames have it."""', "does not end with a full stop"),
        ('def f(a):\n    """names: the groups that train."""', "opens with the argument names:"),
        ('def f(a):\n    """width, height: of the page."""', "opens with the argument width, height:"),
        ('typer.Option("--a", help="Which group answers.")', "opens with Which"),
        ('typer.Option("--a", help="A group.")', "is shorter than three words"),
        ('typer.Option("--a", help=f"{NAME} says which group answers")', "does not end with a full stop"),
        ('Counter("updates", "Of updates.", registry=R)', "opens with Of"),
        ('GaugeMetricFamily("updates", "Updates that wait", labels=())', "does not end with a full stop"),
        ("def f(found):\n    a = 1\n    b = 2\n    return found + a + b", "`found` lives for 4 lines"),
        ("def f():\n    for each in a:\n        b()\n        c()\n        d(each)", "`each` lives for 4 lines"),
    ],
)
def test_what_is_not_plain_is_found(source: str, problem: str) -> None:
    tree = ast.parse(source)
    unclear = [complaint for _, kind, text in texts(tree) for complaint in complaints(text, kind)]
    assert problem in [*unclear, *(name for _, name in vague_names(tree))]


def test_what_is_plain_passes() -> None:
    source = '"""Returns the tasks of a round."""\n\ndef f(a):\n    found = g(a)\n    h()\n    return found\n'
    tree = ast.parse(source)
    assert [complaint for _, kind, text in texts(tree) for complaint in complaints(text, kind)] == []
    assert list(vague_names(tree)) == []


if __name__ == "__main__":
    for folder in FOLDERS:
        for path in sources(folder):
            if len(sys.argv) < 2 or str(path.relative_to(REPOSITORY)).startswith(sys.argv[1]):
                for problem in problems(path):
                    print(problem)
