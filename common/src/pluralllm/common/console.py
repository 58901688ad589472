"""What more than one command prints: checks of a doctor, the effective configuration."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from pluralllm.common.errors import PluralError


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


def print_checks(checks: Iterable[Check], *, as_json: bool) -> bool:
    """Whether all are well."""
    found = list(checks)
    if as_json:
        sys.stdout.write(json.dumps([asdict(check) for check in found], indent=2, ensure_ascii=False) + "\n")
    else:
        table = Table("check", "", "result", "fix", box=None)
        for check in found:
            table.add_row(check.name, "[green]ok[/]" if check.ok else "[red]no[/]", check.result, check.fix)
        Console().print(table)
    return all(check.ok for check in found)


def print_config(values: Mapping[str, Any], origins: Mapping[str, str] | None, *, as_json: bool) -> None:
    """`origins`: of each key, to be shown beside its value."""
    if as_json:
        shown = values if origins is None else {k: {"value": v, "origin": origins[k]} for k, v in values.items()}
        sys.stdout.write(json.dumps(shown, indent=2) + "\n")
        return
    table = Table("key", "value", *([] if origins is None else ["from"]), box=None)
    for key, value in values.items():
        table.add_row(key, str(value), *([] if origins is None else [origins[key]]))
    Console().print(table)
