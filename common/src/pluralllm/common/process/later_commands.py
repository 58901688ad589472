"""Command lines whose commands are imported when they are typed, so that help and version appear at once.

A command line is a table of `Later` rows: the name of each command, its line of help, and the place of its code. The line of help
is a copy of the first line of the command's docstring; a test compares the two. Texts are plain, because the library rich takes
longer to load than a page of help may take.
"""

import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from pluralllm.common.process.console import say

SETTINGS = {"help_option_names": ["--help", "-h"], "max_content_width": 120}


@dataclass(frozen=True, slots=True)
class Later:
    """One row of a command line's table: a command, or a group of commands, that is imported when it is typed."""

    name: str
    summary: str
    place: str  # module:function or module:application, as in an entry point
    hidden: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)  # click's context settings


class LaterCommand(TyperCommand):
    """A command that is loaded when it is typed. Until the command is loaded, only its name and one help line exist."""

    def __init__(
        self, name: str, summary: str, load: Callable[[], TyperCommand | TyperGroup], *, hidden: bool = False
    ) -> None:
        super().__init__(name, help=summary, hidden=hidden, rich_markup_mode=None)
        self._load = load
        self.inner: dict[str, LaterCommand] = {}  # commands of other packages that belong into this group

    def load(self) -> TyperCommand | TyperGroup:
        """Imports the command and returns it. A group has the commands of other packages besides; its own ones come first."""
        command = self._load()
        if isinstance(command, TyperGroup):
            command.commands = {**self.inner, **command.commands}
        return command

    def get_short_help_str(self, limit: int = 0) -> str:  # noqa: ARG002 - nothing is cut
        """Returns the whole line of help, for the list of commands."""
        return self.help or ""

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        """Loads the command, and returns the context that click runs the command in."""
        return self.load().make_context(*arguments, **settings)


def command_of(name: str, value: object, settings: Mapping[str, Any] | None = None) -> TyperCommand | TyperGroup:
    """Returns the command, or the group of commands, that a Typer application or a function with Typer's annotations makes.

    name: the name under which the command is typed. settings: click's context settings of a function.
    Raises an error of Typer's if the value is neither.
    """
    if isinstance(value, typer.Typer):
        value.rich_markup_mode = None
        return _with_whole_lines(get_group(value))
    application = typer.Typer(add_completion=False, rich_markup_mode=None)
    application.command(name, context_settings=dict(settings or {}))(value)  # type: ignore[type-var]
    command = get_command(application)
    assert isinstance(command, TyperCommand)
    return command


def _with_whole_lines(group: TyperGroup) -> TyperGroup:
    """Makes the help of a group list its commands with the whole first line of their help, where click would cut it."""
    for inner in group.commands.values():
        inner.short_help = inner.short_help or (inner.help or "").split("\n")[0]
        if isinstance(inner, TyperGroup):
            _with_whole_lines(inner)
    return group


def _loaded(row: Later) -> TyperCommand | TyperGroup:
    command = command_of(row.name, pkgutil.resolve_name(row.place), row.settings)
    command.hidden = row.hidden
    return command


class CommandTable(TyperGroup):
    """A whole command line, made of the rows of a table. A subclass has the rows and the version."""

    version: ClassVar[str]
    rows: ClassVar[tuple[Later, ...]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for row in self.rows:
            self.commands[row.name] = LaterCommand(row.name, row.summary, partial(_loaded, row), hidden=row.hidden)


def _show_version(context: typer.Context, asked: bool) -> None:
    if asked:
        assert isinstance(context.command, CommandTable)
        say(f"{context.command.name} {context.command.version}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]


def application(
    name: str, version: str, summary: str, rows: Iterable[Later], options: Callable[..., None] | None = None
) -> typer.Typer:
    """Returns the Typer application of a command line, with --version and with -h and --help for each command.

    name: the command as a person types it. version: the text that --version shows. summary: the first text of its help.
    options: the function that gets the options before a command's name; it has the parameter `version` of the type VersionOption.
    By default there are no such options.
    """
    made = typer.Typer(
        name=name,
        cls=type("ThisTable", (CommandTable,), {"version": version, "rows": tuple(rows)}),
        help=summary,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=SETTINGS,
    )
    made.callback()(options or _only_version)
    return made


def _only_version(version: VersionOption = False) -> None:
    """Takes the option --version, which ends the command."""
