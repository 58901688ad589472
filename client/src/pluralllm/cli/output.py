"""What every command prints: JSON for programs, a screen for people."""

import datetime
from collections.abc import Callable, Mapping
from typing import Any

import typer
from rich.console import Console

from pluralllm.common.process.console import print_json
from pluralllm.common.process.json_forms import Form


def now() -> datetime.datetime:
    return datetime.datetime.now(tz=datetime.UTC)


def show(form: Form, value: Mapping[str, Any], *, as_json: bool, screen: Callable[[Any], Any]) -> None:
    """`screen` makes text or something rich can print."""
    if as_json:
        print_json(form, value)
    elif isinstance(shown := screen(value), str):
        typer.echo(shown)
    else:
        Console().print(shown)
