"""Everything that a command prints: lines, tables, JSON, the checks of a `doctor` command, a progress line.

Texts of another party may be in what a command prints. Only the functions of this module print, and a test enforces it: they
show characters that a terminal would obey as escapes, and no markup in a text has an effect.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pluralllm.common.errors.root import PluralError
from pluralllm.common.process.json_forms import CHECKS, CONFIG, Form
from pluralllm.common.text.printable import printable
from pluralllm.common.text.reading import Unreadable

if TYPE_CHECKING:
    from rich.console import Console  # the functions import rich when they need it: help and JSON need none


UNBOUNDED_WIDTH = 10_000  # characters; wider than every row of ours
Json = Annotated[bool, typer.Option("--json", help="Print JSON: docs/reference/json.md.")]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check of a `doctor` command, printed as one row of a table."""

    name: str
    ok: bool
    result: str
    fix: str = ""


def checked(name: str, probe: Callable[[], Check]) -> Check:
    """Runs one check of a `doctor` command and returns its result. name: the name of the check. probe: the function that checks.

    If `probe` raises a PluralError, the check has failed. The error's cause and fix become the check's result and fix. A file
    that cannot be read fails this check and no other one.
    """
    try:
        return probe()
    except PluralError as error:
        whole, fix = " ".join(str(error).split()), " ".join(error.fix.format(**error.facts).split())
        return Check(name, ok=False, result=whole.removesuffix(fix).strip(), fix=fix)
    except MemoryError:
        return Check(name, ok=False, result="not enough memory", fix="free some memory, or raise this process's limit")
    except (OSError, Unreadable) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise  # not about a file; `run_command` knows more
        from pluralllm.common.process.files import owner_hint  # noqa: PLC0415 - brings all errors

        hint = (
            owner_hint(Path(os.fsdecode(error.filename)))
            if isinstance(error, PermissionError) and error.filename
            else ""
        )
        return Check(
            name, ok=False, result=str(error), fix=hint or "look at this path: what it is, and who may read it"
        )


def say(text: str = "", *, err: bool = False) -> None:
    """Prints a text of one or more lines. err: prints it on stderr instead of stdout."""
    (sys.stderr if err else sys.stdout).write(printable(text, lines=True) + "\n")


def terminal(*, stderr: bool = False) -> "Console":
    """Returns the console for tables and screens. Markup has no effect in texts, for example in the name of a group.

    Output that is no terminal is for programs such as grep: a line is as long as it must be, and nothing is cut.
    """
    from rich.console import Console  # noqa: PLC0415

    console = Console(stderr=stderr, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, UNBOUNDED_WIDTH)
    return console


@contextlib.contextmanager
def showing_progress(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Shows a progress line on stderr while the `with` block runs, if stderr is a terminal. what: the line's first text.

    Yields a function (what, done, total) that updates the line. If total is 0, the line does not show `done` and `total`.
    """
    from rich.text import Text  # noqa: PLC0415

    console = terminal(stderr=True)
    spinner = "dots" if console.encoding.startswith("utf") else "line"  # of ASCII characters
    screen = console.status(Text(printable(what)), spinner=spinner) if console.is_terminal else contextlib.nullcontext()
    with screen as status:

        def report(what: str, done: int, total: int) -> None:
            if status is not None:
                status.update(Text(printable(f"{what} {done} of {total}" if total else what)))

        yield report


def print_json(form: Form, value: Mapping[str, Any]) -> None:
    """Prints a value as one JSON object, with an additional field `schema`.

    form: the description of the object's fields; the field `schema` holds the name and the version of the form.
    """
    sys.stdout.write(json_text(form.dressed(value), sys.stdout.encoding or "utf-8") + "\n")


def json_text(value: Mapping[str, Any], encoding: str = "utf-8") -> str:
    """Returns a value as indented JSON. No value changes, whoever reads the text.

    Characters that nobody can see, and characters that `encoding` lacks, are written as JSON's escapes.
    """
    whole = json.dumps(value, indent=2, ensure_ascii=False)
    lacking = set(whole) - set(whole.encode(encoding, "ignore").decode(encoding))
    return "".join(
        char if char == "\n" or (char not in lacking and printable(char) == char) else json.dumps(char)[1:-1]
        for char in whole
    )


def print_checks(checks: Iterable[Check], *, as_json: bool) -> bool:
    """Prints the checks of a `doctor` command as a table or as JSON. Returns whether all checks passed."""
    all_checks = list(checks)
    if as_json:
        print_json(CHECKS, {"checks": [asdict(check) for check in all_checks]})
    else:
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table("check", "", "result", "fix", box=None)
        for check in all_checks:
            verdict = Text("ok", "green") if check.ok else Text("no", "red")
            table.add_row(printable(check.name), verdict, printable(check.result), printable(check.fix))
        terminal().print(table)
    return all(check.ok for check in all_checks)


def print_config(values: Mapping[str, Any], origins: Mapping[str, str] | None, *, as_json: bool) -> None:
    """Prints an effective configuration as a table or as JSON.

    origins: for each key, the source of its value, shown beside the value. None prints no sources.
    """
    if as_json:
        print_json(CONFIG, {"values": values, "origins": origins})
        return
    from rich.table import Table  # noqa: PLC0415

    table = Table("key", "value", *([] if origins is None else ["from"]), box=None)
    for key, value in values.items():
        table.add_row(key, printable(str(value)), *([] if origins is None else [origins[key]]))
    terminal().print(table)
