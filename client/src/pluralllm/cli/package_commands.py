"""The commands that other packages, such as pluralllm-research, add to `pluralllm`.

A package declares each command as an entry point of the group `pluralllm.commands`. The entry point's name is the command's
name; `model.export` is the command `export` in the command group `model`. The entry point's value is a Typer application or a
function with Typer's annotations. A command is imported only when it is typed, so `--help` stays quick. If a command cannot be
imported, all other commands still work.
"""

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint
from typing import Any

from typer.core import TyperCommand, TyperGroup

from pluralllm.common.errors.root import PluralError
from pluralllm.common.process.later_commands import LaterCommand, command_of

ENTRY_POINTS = "pluralllm.commands"
RESEARCH = "pluralllm-research"
PURPOSE_OF_RESEARCH = "experiments, reports and rewards; partners and operators do without it"


@dataclass(frozen=True, slots=True)
class ResearchCommand:
    """A command of pluralllm-research. Its help line is stored here, so `--help` need not import the command."""

    name: str
    summary: str
    extra: str = ""  # the extra of pluralllm-research that the command needs; empty if it needs none

    @property
    def requirement(self) -> str:
        """The text after `pip install` that installs the command and all its dependencies."""
        return f"{RESEARCH}[{self.extra}]" if self.extra else RESEARCH


RESEARCH_COMMANDS = (
    ResearchCommand("report", "Writes one HTML page about a run: alignment of each group, fairness, bytes, spec."),
    ResearchCommand("score", "Writes the shares that a group is predicted to give, for each row of a file.", "align"),
    ResearchCommand("pairs", "Writes ranked pairs for DPO (prompt, chosen, rejected).", "align"),
    ResearchCommand("model.export", "Writes a model version as a Hugging Face folder."),
    ResearchCommand(
        "model.serve",
        "Serves scores to other programs by gRPC, on this machine only, and by HTTP if it is asked for.",
        "align",
    ),
    ResearchCommand("experiment", "Compares methods on survey data, in one process.", "experiment"),
)


class PackageCommand(LaterCommand):
    """A command of another package."""

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        """Loads the command, and returns the context that click runs the command in.

        Raises CommandMissing if the command's package is not installed; CommandBroken if the command cannot be imported.
        """
        try:
            return super().make_context(*arguments, **settings)
        except PluralError:
            if settings.get("resilient_parsing"):  # a shell completes a line: it shows nothing instead of an error
                return TyperCommand.make_context(self, *arguments, **settings)
            raise


def add_package_commands(group: TyperGroup, entry_points: Iterable[EntryPoint]) -> None:
    """Adds the commands of installed packages to the command line.

    The commands of pluralllm-research are always added. If pluralllm-research is not installed, such a command explains how to
    install the package. A command that the command line already has is not replaced.
    """
    by_name: dict[str, list[EntryPoint]] = {}
    for entry_point in entry_points:
        by_name.setdefault(entry_point.name, []).append(entry_point)
    research = {command.name: command for command in RESEARCH_COMMANDS}
    for name in (*research, *sorted(by_name.keys() - research.keys())):
        commands, word = _place_of(name, group)
        if word not in commands:
            commands[word] = _package_command(name, word, by_name.get(name, []), research)


def _place_of(name: str, group: TyperGroup) -> tuple[MutableMapping[str, Any], str]:
    """Returns the commands among which a command has its place, and the command's name there.

    name: the command's full name. The name `model.export` means the command `export` in the command group `model`.
    group: the whole command line. If it has no command group `model`, the name stays `model.export`.
    """
    first, _, rest = name.partition(".")
    match group.commands.get(first) if rest else None:
        case TyperGroup() as inner:
            return inner.commands, rest
        case LaterCommand() as later:
            return later.inner, rest
    return group.commands, name


def _package_command(
    name: str, word: str, entry_points: list[EntryPoint], research: Mapping[str, ResearchCommand]
) -> PackageCommand:
    if not entry_points:
        absent = research[name]
        summary = f"{absent.summary} Needs {RESEARCH}, which is not installed."
        return PackageCommand(word, summary, partial(_refuse_missing, absent))
    providers = _providers(entry_points)
    summary = research[name].summary if providers == RESEARCH else f"Command of the package {providers}."
    return PackageCommand(word, summary, partial(load_command, word, entry_points))


def _refuse_missing(command: ResearchCommand) -> TyperCommand:
    from pluralllm.common.errors.tree import CommandMissing  # noqa: PLC0415 - the tree takes a moment

    raise CommandMissing(
        command=_typed(command.name),
        distribution=RESEARCH,
        purpose=PURPOSE_OF_RESEARCH,
        requirement=command.requirement,
    )


def load_command(word: str, entry_points: list[EntryPoint]) -> TyperCommand | TyperGroup:
    """Imports a command and returns it.

    word: the name under which the command was typed. entry_points: all entry points that declare this command.
    Raises CommandBroken if the import fails, or if more than one package declares the command.
    """
    from pluralllm.common.errors.tree import CommandBroken  # noqa: PLC0415 - the tree takes a moment

    broken = partial(CommandBroken, command=_typed(entry_points[0].name), distribution=_providers(entry_points))
    if len(entry_points) > 1:
        raise broken(problem="more than one package has a command of this name")
    try:
        value = entry_points[0].load()
        return command_of(word, value)
    except Exception as error:
        raise broken(problem=f"{type(error).__name__}: {error}") from error


def _typed(name: str) -> str:
    return f"pluralllm {name.replace('.', ' ')}"


def _providers(entry_points: Iterable[EntryPoint]) -> str:
    """Returns the names of the distributions that declare these entry points, joined by "and"."""
    return " and ".join(point.value if point.dist is None else point.dist.name for point in entry_points)
