"""All names in the documentation exist: commands, options, files and anchors. Other tests run the commands."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from support.command_tree import inner_commands
from support.documented import PAGES, ROOT, blocks, inline, of_section

from pluralllm.cli.__main__ import command_line
from pluralllm.client.__main__ import app as clients
from pluralllm.common.errors.grpc_status import CODES
from pluralllm.common.errors.root import PluralError
from pluralllm.server.__main__ import app as coordinators

APPS = {
    "pluralllm": command_line(),
    "pluralllm-client": typer.main.get_command(clients),
    "pluralllm-server": typer.main.get_command(coordinators),
}
ALL = (*PAGES, *sorted((ROOT / "docs" / "reference").glob("*.md")), ROOT / "protos" / "README.md")
# Words of a sentence about a command, at the position of a subcommand.
PLACEHOLDER = re.compile(r"[A-Z]")
MADE_BY_THE_READER = ("deploy/compose.env", "deploy/clients/")
SOURCES = [ROOT / part / "src" / "pluralllm" for part in ("common", "server", "client", "research")]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def problem_of(command: str) -> str:
    """Returns the reason why a command line is impossible, or "" if it is possible."""
    words = shlex.split(command.replace("...", " ").replace("[", " ").replace("]", " "))
    command_group, skips = APPS[words[0]], False
    for word in words[1:]:
        if skips:
            skips = False
        elif word.startswith("--"):
            option = options_of(command_group).get(word.partition("=")[0])
            if option is None:
                return f"{command}: {word} is no option there"
            skips = not option.is_flag and "=" not in word
        elif (inner := inner_commands(command_group)) and not PLACEHOLDER.match(word):
            if word not in inner:
                return f"{command}: {word} is no command there"
            command_group = inner[word]
            if command_group.hidden:
                return f"{command}: {word} is an old name"
    return ""


def options_of(command: Any) -> dict[str, Any]:
    """Returns a command's options by each of their names."""
    shown = [*command.params, command.get_help_option(click.Context(command))]
    return {name: option for option in shown for name in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_that_is_named_exists(page: Path) -> None:
    ours = [
        piece.strip()
        for block in blocks(page)
        for line in block.commands
        for piece in re.split(r"[;|&]|2>", re.sub(r"^\.venv/bin/", "", line.strip()))
        if re.match(r"pluralllm(-server|-client)? ", piece.strip())
    ]
    # "`run create`, `start`" are the names of several commands.
    lists = [command for command in inline(page) if "," not in command]
    assert [problem for command in (*ours, *lists) if (problem := problem_of(command))] == []


def test_a_command_or_option_that_is_not_there_would_be_found() -> None:
    assert "is no command" in problem_of("pluralllm run begin first")
    assert "is no command" in problem_of("pluralllm --plain-text stauts")
    assert "is no option" in problem_of("pluralllm-server serve --gently")
    assert "is an old name" in problem_of("pluralllm-server audit")
    assert "is no option" in problem_of("pluralllm status --identity eve")
    assert problem_of("pluralllm --identity admin run create first run.toml --start") == ""


def anchors_of(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:|mailto:", target):
            continue
        file, _, place = target.partition("#")
        target_page = (page.parent / file).resolve() if file else page
        assert target_page.exists(), f"{page.name}: {target}"
        if place:
            assert place in anchors_of(target_page), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_the_project_that_is_named_exists(page: Path) -> None:
    named = re.findall(
        r"(?<![\w/.-])((?:tests|benchmarks|deploy|docs|protos|common|server|client|research)/[\w./@-]+\w)",
        page.read_text(),
    )
    known = [path for path in named if not path.startswith(MADE_BY_THE_READER)]
    missing = [path for path in known if not any((base / path).exists() for base in (ROOT, *SOURCES))]
    assert missing == []


def test_the_security_page_names_tests_that_exist_and_every_hostile_test() -> None:
    named = set(re.findall(r"`(?:[\w/]+/)?(test_\w+\.py)`", (ROOT / "docs" / "security.md").read_text()))
    assert named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert {path.name for path in (ROOT / "tests" / "hostile").glob("test_*.py")} <= named


def project_of(distribution: str) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / distribution / "pyproject.toml").read_text())["project"]
    return project


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_extra_to_install_exists_in_its_distribution(page: Path) -> None:
    for distribution, extra in re.findall(r"pluralllm-(common|server|client|research)\[(\w+)\]", page.read_text()):
        assert extra in project_of(distribution)["optional-dependencies"], f"pluralllm-{distribution}[{extra}]"


@pytest.mark.parametrize(
    ("page", "install_section", "sections"),
    [
        ("operate.md", "Install", ("Start", "Look", "One partner")),
        ("partner.md", "Install the client", ("Join with the invite", "The supervised daemon", "Leave")),
    ],
)
def test_a_page_that_installs_has_every_command_that_it_types(
    page: str, install_section: str, sections: tuple[str, ...]
) -> None:
    lines = [line for block in of_section(page, install_section) for line in block.commands]
    install = next(line for line in lines if "/pip wheel" in line)
    assert any(line.startswith("/opt/pluralllm/bin/pip install") and "wheels/*.whl" in line for line in lines)
    installed = {name for part in re.findall(r" \./(\w+)", install) for name in project_of(part).get("scripts", {})}
    typed = {
        command
        for section in sections
        for block in of_section(page, section)
        for line in block.commands
        if (command := line.split()[0]) in APPS
    }
    assert typed <= installed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_import_that_a_page_shows_finds_its_module_and_its_names(page: Path) -> None:
    for module, names in re.findall(r"^ *from (pluralllm[\w.]*) import ([\w, ]+)$", page.read_text(), re.MULTILINE):
        spec = importlib.util.find_spec(module)
        assert spec is not None, f"{page.name}: {module}"
        assert spec.origin is not None
        source = Path(spec.origin).read_text()
        assert [name for name in names.split(", ") if not re.search(rf"\b{name}\b", source)] == []


@pytest.mark.parametrize("leaf", CODES, ids=lambda leaf: leaf.__name__)
def test_every_command_that_an_error_advises_can_be_typed(leaf: type[PluralError]) -> None:
    """A command ends before a comma, a semicolon or a full stop; a fact stands for a word."""
    text = re.sub(r"\{\w+\}", "X", getattr(leaf, "fix", ""))
    for command in re.findall(r"(?<![`\w/'])(pluralllm(?:-server|-client)? [^`,;:.()]+)", text):
        assert problem_of(command) == ""
        assert missing_option(command) == "", command


def missing_option(command: str) -> str:
    """Returns an option that a command line lacks and cannot do without, or ""."""
    words = shlex.split(command)
    group: Any = APPS[words[0]]
    for word in words[1:]:
        group = inner_commands(group).get(word, group)
    needed = [option for option in group.params if option.required and option.param_type_name == "option"]
    return next((option.name for option in needed if not set(option.opts) & set(words)), "")
