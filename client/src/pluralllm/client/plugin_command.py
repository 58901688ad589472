"""The command `pluralllm-client data import plugin`: an importer of another package makes the private file.

A package declares each importer as an entry point of the group `pluralllm.importers`. Its value is a function: it takes the
path of the source, then the options of the command line as keyword arguments with texts as values, and returns questions. The
function runs with the rights of this command, so install packages of people you trust only.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated

import typer

from pluralllm.client.data.counted_question import have_counts
from pluralllm.client.data.private_data import read_counted
from pluralllm.client.survey_commands import Out, write_imported
from pluralllm.common.errors.tree import CommandBroken, InvalidArgument, PluralError
from pluralllm.common.process.plugins import IMPORTERS, one_named, package_of
from pluralllm.common.words.questions import Question

COMMAND = "pluralllm-client data import plugin"


def plugin(
    name: Annotated[str, typer.Argument(help="The importer's name, as its package declares it.")],
    source: Annotated[Path, typer.Argument(help="The file or folder to import.")],
    out: Out,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the importer, KEY=VALUE; may be repeated.")
    ] = None,
) -> None:
    """Import with an importer that another installed package has (entry point pluralllm.importers)."""
    questions = imported(one_named(name, IMPORTERS), source, options_of(option or ()))
    write_imported(out, questions, str(source), asked=questions if have_counts(questions) else None)
    read_counted(out)  # what the package has made is read as strictly as every private file


def options_of(texts: Sequence[str]) -> dict[str, str]:
    """Returns options by their keys. Raises InvalidArgument if a text is not KEY=VALUE, or if a key comes twice."""
    options: dict[str, str] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key.isidentifier() or key in options:
            raise InvalidArgument(field="--option", problem=f"is {text!r}, must be KEY=VALUE, each key once")
        options[key] = value
    return options


def imported(importer: EntryPoint, source: Path, options: Mapping[str, str]) -> tuple[Question, ...]:
    """Returns what an importer makes of a source. Its own errors of this project pass, for example InvalidData with lines.

    Raises CommandBroken if the importer cannot be loaded, fails with another error, or returns something else than questions.
    """
    try:
        function: Callable[..., Sequence[Question]] = importer.load()
        questions = tuple(function(source, **options))
        if other := next((one for one in questions if not isinstance(one, Question)), None):
            raise TypeError(f"it returned {type(other).__name__}, not Question")  # noqa: TRY301 - said like its other failures
    except PluralError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise CommandBroken(
            command=f"{COMMAND} {importer.name}", distribution=package_of(importer), problem=problem
        ) from error
    return questions
