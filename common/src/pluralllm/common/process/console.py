"""What more than one command prints: JSON for programs, checks of a doctor, the effective configuration, how far work is."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pluralllm.common.errors.tree import PluralError
from pluralllm.common.process.json_forms import CHECKS, CONFIG, Form

Json = Annotated[bool, typer.Option("--json", help="Print JSON: docs/reference/json.md.")]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a doctor's table."""

    name: str
    ok: bool
    result: str
    fix: str = ""


def checked(name: str, probe: Callable[[], Check]) -> Check:
    """A probe's result; an error of ours is a result too, split into what is wrong and what to do."""
    try:
        return probe()
    except PluralError as error:
        whole, fix = " ".join(str(error).split()), " ".join(error.fix.format(**error.facts).split())
        return Check(name, ok=False, result=whole.removesuffix(fix).strip(), fix=fix)


@contextlib.contextmanager
def showing_progress(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Shows on standard error, if that is a terminal, that long work goes on; call with what, how much of it, of how much."""
    console = Console(stderr=True)
    with console.status(what) if console.is_terminal else contextlib.nullcontext() as shown:

        def tell(what: str, done: int, total: int) -> None:
            if shown is not None:
                shown.update(f"{what} {done} of {total}" if total else what)

        yield tell


def print_json(form: Form, value: Mapping[str, Any]) -> None:
    """One object, with the name and version of its form."""
    sys.stdout.write(json.dumps(form.dressed(value), indent=2, ensure_ascii=False) + "\n")


def print_checks(checks: Iterable[Check], *, as_json: bool) -> bool:
    """Whether all are well."""
    found = list(checks)
    if as_json:
        print_json(CHECKS, {"checks": [asdict(check) for check in found]})
    else:
        table = Table("check", "", "result", "fix", box=None)
        for check in found:
            table.add_row(check.name, "[green]ok[/]" if check.ok else "[red]no[/]", check.result, check.fix)
        Console().print(table)
    return all(check.ok for check in found)


def print_config(values: Mapping[str, Any], origins: Mapping[str, str] | None, *, as_json: bool) -> None:
    """`origins`: of each key, to be shown beside its value."""
    if as_json:
        print_json(CONFIG, {"values": values, "origins": origins})
        return
    table = Table("key", "value", *([] if origins is None else ["from"]), box=None)
    for key, value in values.items():
        table.add_row(key, str(value), *([] if origins is None else [origins[key]]))
    Console().print(table)
