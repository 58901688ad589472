"""The documented forms of --json agree with the commands that have the option."""

from collections.abc import Iterator

import pytest
import typer
from support.command_tree import inner_commands

from pluralllm.cli.__main__ import command_line
from pluralllm.client.__main__ import app as clients
from pluralllm.common.process.json_forms import CHECKS, FORMS, MODEL, Form
from pluralllm.server.__main__ import app as coordinators


def commands_with_json(name: str, command: object) -> Iterator[str]:
    for word, inner in inner_commands(command).items():
        yield from commands_with_json(f"{name} {word}", inner)
    if any("--json" in option.opts for option in getattr(command, "params", ())):
        yield name


def test_every_command_that_has_json_has_one_form() -> None:
    commands = {
        "pluralllm": command_line(),
        "pluralllm-client": typer.main.get_command(clients),
        "pluralllm-server": typer.main.get_command(coordinators),
    }
    with_json = [word for name, command in commands.items() for word in commands_with_json(name, command)]
    assert len(with_json) > 25
    assert sorted(with_json) == sorted(command for form in FORMS for command in form.commands)


def test_a_form_has_a_name_of_its_own() -> None:
    assert len({form.name for form in FORMS}) == len(FORMS)


def test_what_is_printed_says_its_form_first() -> None:
    assert list(CHECKS.dressed({"checks": []}).items()) == [("schema", "pluralllm.checks/1"), ("checks", [])]
    assert MODEL.dressed({"folder": "here", "version": 3})["version"] == 3


@pytest.mark.parametrize(
    ("form", "value"),
    [(CHECKS, {}), (CHECKS, {"checks": [], "more": 1}), (MODEL, {"version": 3})],
)
def test_a_value_of_another_form_is_our_own_mistake(form: Form, value: dict[str, object]) -> None:
    with pytest.raises(AssertionError, match="differ in"):
        form.dressed(value)
