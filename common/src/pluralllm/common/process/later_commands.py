"""Command lines whose commands are imported when they are typed, so that help and version appear at once.

A command line is a table of `Later` rows: the name of each command, its line of help, and the place of its code. The line of help
is a copy of the first line of the command's docstring; a test compares the two. Texts are plain, because the library rich takes
longer to load than a page of help may take.
"""

import os
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
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
    is_group: bool = False  # whether commands follow it, among them perhaps commands of other packages
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
        group = get_group(value)
        _spare_pydantic(group)
        return _with_whole_lines(group)
    application = typer.Typer(add_completion=False, rich_markup_mode=None)
    application.command(name, context_settings=dict(settings or {}))(value)  # type: ignore[type-var]
    command = get_command(application)
    assert isinstance(command, TyperCommand)
    _spare_pydantic(command)
    return command


def _with_whole_lines(group: TyperGroup) -> TyperGroup:
    """Makes the help of a group list its commands with the whole first line of their help, where click would cut it."""
    for inner in group.commands.values():
        inner.short_help = inner.short_help or (inner.help or "").split("\n")[0]
        if isinstance(inner, TyperGroup):
            _with_whole_lines(inner)
    return group


def _spare_pydantic(command: Any) -> None:
    """Lets a command take the texts, paths and absent values of its parameters as they are. Also the commands of a group.

    Typer converts the values of all parameters by pydantic, which takes longer to load than `pluralllm status` may take. Other
    values stay with Typer; with a release of Typer that has no such place to intervene, all values do.
    """
    usual = command.get_params

    def get_params(context: typer.Context) -> Any:
        return [_plainly(parameter) for parameter in usual(context)]

    command.get_params = get_params
    for inner in command.commands.values() if isinstance(command, TyperGroup) else ():
        _spare_pydantic(inner)


def _plainly(parameter: Any) -> Any:
    """Returns a parameter whose plain values are taken as they are; --help and Typer's own options are among them."""
    usual, descriptor = getattr(parameter, "get_runtime_param", None), getattr(parameter, "type_descriptor", None)
    is_list = parameter.multiple or parameter.nargs == -1
    if usual is not None and descriptor is not None and not is_list and "get_runtime_param" not in vars(parameter):
        taken = _PlainValue(usual, _plain_kind(descriptor))
        parameter.get_runtime_param = lambda: taken
    return parameter


def _plain_kind(descriptor: Any) -> Callable[[str], object] | None:
    """Returns what turns a typed word into the value of a parameter, if Typer would check nothing about it."""
    info = descriptor.parameter_info
    checks = ("exists", "writable", "resolve_path", "allow_dash", "path_type")
    is_checked = info.parser is not None or any(getattr(info, name) for name in checks)
    if is_checked or not (info.file_okay and info.dir_okay):
        return None
    kinds: dict[Any, Callable[[str], object]] = {str: str, Path: _readable_path}
    return kinds.get(descriptor.annotation)


def _readable_path(word: str) -> Path | None:
    path = Path(word)
    return path if os.access(path, os.R_OK) or not os.path.lexists(path) else None


@dataclass(frozen=True, slots=True)
class _PlainValue:
    """Stands in the place of Typer's converter of one parameter."""

    usual: Callable[[], Any]  # returns Typer's own converter
    kind: Callable[[str], object] | None

    def coerce(self, value: Any, *, param: Any, ctx: Any) -> Any:
        if value is None:
            return None
        taken = self.kind(value) if isinstance(value, str) and self.kind is not None else None
        return self.usual().coerce(value, param=param, ctx=ctx) if taken is None else taken


def _loaded(row: Later) -> TyperCommand | TyperGroup:
    command = command_of(row.name, pkgutil.resolve_name(row.place), row.settings)
    command.hidden = row.hidden
    return command


class CommandTable(TyperGroup):
    """A whole command line, made of the rows of a table. A subclass has the rows and the version.

    The commands of other packages are looked for only if one of them may be meant, because the search takes a moment.
    """

    version: ClassVar[str]
    rows: ClassVar[tuple[Later, ...]]
    # Called when they are needed; a tuple, because a function alone would be a method.
    add_others: ClassVar[tuple[Callable[[TyperGroup], object], ...]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for row in self.rows:
            self.commands[row.name] = LaterCommand(row.name, row.summary, partial(_loaded, row), hidden=row.hidden)
        self._waiting = list(self.add_others)

    def get_params(self, ctx: Any) -> Any:
        """Returns the options before the command's name."""
        return [_plainly(parameter) for parameter in super().get_params(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Returns the command of this name; None if there is none."""
        if not any(row.name == cmd_name and not row.is_group for row in self.rows):
            self.complete()
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """Returns the names of all commands."""
        self.complete()
        return super().list_commands(ctx)

    def complete(self) -> None:
        """Adds the commands of other packages, the first time."""
        while self._waiting:
            self._waiting.pop()(self)


def _show_version(context: typer.Context, asked: bool) -> None:
    if asked:
        assert isinstance(context.command, CommandTable)
        say(f"{context.command.name} {context.command.version}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]


def application(
    name: str,
    version: str,
    summary: str,
    rows: Iterable[Later],
    options: Callable[..., None] | None = None,
    others: Callable[[TyperGroup], object] | None = None,
) -> typer.Typer:
    """Returns the Typer application of a command line, with --version and with -h and --help for each command.

    name: the command as a person types it. version: the text that --version shows. summary: the first text of its help.
    options: the function that gets the options before a command's name; it has the parameter `version` of the type VersionOption.
    By default there are no such options. others: adds the commands of other packages to the command line.
    """
    add_others = () if others is None else (others,)
    made = typer.Typer(
        name=name,
        cls=type("ThisTable", (CommandTable,), {"version": version, "rows": tuple(rows), "add_others": add_others}),
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
