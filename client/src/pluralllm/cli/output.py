"""What every command prints: JSON for programs, a screen for people."""

import datetime
import json
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def now() -> datetime.datetime:
    return datetime.datetime.now(tz=datetime.UTC)


def show(value: Any, *, as_json: bool, screen: Callable[[Any], Any]) -> None:
    """`screen` makes text or something rich can print."""
    if as_json:
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
    elif isinstance(shown := screen(value), str):
        typer.echo(shown)
    else:
        Console().print(shown)
