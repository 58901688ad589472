"""The output of a command: JSON for programs, a screen for people."""

import datetime
from collections.abc import Callable, Mapping
from typing import Any

import typer
from rich.console import Console

from pluralllm.common.process.console import print_json
from pluralllm.common.process.json_forms import Form


def now() -> datetime.datetime:
    """The current time, in UTC."""
    return datetime.datetime.now(tz=datetime.UTC)


def show(form: Form, value: Mapping[str, Any], *, as_json: bool, screen: Callable[[Any], Any]) -> None:
    """Prints a command's result as JSON of this form, or as the screen that `screen` makes: text, or an object rich prints."""
    if as_json:
        print_json(form, value)
    elif isinstance(screen_text := screen(value), str):
        typer.echo(screen_text)
    else:
        Console().print(screen_text)
