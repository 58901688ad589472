"""Prints the result of a command: as JSON for programs, as a screen for people."""

import datetime
from collections.abc import Callable, Mapping
from typing import Any

from pluralllm.common.process.console import print_json, say, terminal
from pluralllm.common.process.json_forms import Form


def now() -> datetime.datetime:
    """Returns the current time in UTC."""
    return datetime.datetime.now(tz=datetime.UTC)


def show(form: Form, value: Mapping[str, Any], *, as_json: bool, screen: Callable[[Any], Any]) -> None:
    """Prints a command's result: as JSON if `as_json` is set, otherwise as a screen for people.

    form: name and fields of the JSON object. value: the result. screen: function that turns the result into text, or into an
    object that the library rich can print.
    """
    if as_json:
        print_json(form, value)
    elif isinstance(screen_text := screen(value), str):
        say(screen_text)
    else:
        terminal().print(screen_text)
