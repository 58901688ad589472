"""Errors of the Python interface name Python arguments, not the flags of commands."""

import inspect
from typing import Any, cast

import pytest

from pluralllm.api import Experiment, Federation, PreferencePredictor, Results, Run, coordinator_sight, run_spec
from pluralllm.api.arguments import in_python, python_names
from pluralllm.common.errors.tree import InvalidArgument, InvalidSpec, NotLoopback
from pluralllm.operator.remote import Remote

FOUR: dict[str, Any] = {"round": {"min_clients": 3, "target_clients": 4}, "embedding": {"model": "m", "dimension": 8}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("leave the rounds plain: --plain-rounds (why)", "leave the rounds plain: plain_rounds (why)"),
        ("--out", "out"),
        ("give another --out", "give another out"),
        ("type: pluralllm run create r --plain-rounds", "type: pluralllm run create r --plain-rounds"),
        ("pluralllm x --a\nor --b-c", "pluralllm x --a\nor b_c"),
        ("a -- b, a--b, --", "a -- b, a--b, --"),
    ],
)
def test_a_flag_gets_its_python_name_unless_it_belongs_to_a_command(text: str, expected: str) -> None:
    assert in_python(text) == expected


def test_an_error_without_flags_stays_the_same_object() -> None:
    error = NotLoopback(address="example.org:7443")
    with pytest.raises(NotLoopback) as raised, python_names():
        raise error
    assert raised.value is error


@pytest.mark.parametrize("kind", [Federation, Run, Experiment, Results, PreferencePredictor])
def test_every_call_of_the_interface_names_its_arguments(kind: type) -> None:
    calls = [name for name, member in vars(kind).items() if callable(getattr(kind, name)) and name[0] != "_"]
    assert calls
    for name in [*calls, "__init__"]:
        assert hasattr(getattr(kind, name), "__wrapped__"), name
    assert "self" in inspect.signature(vars(kind)["__init__"]).parameters  # help() shows the real arguments
    assert hasattr(coordinator_sight, "__wrapped__")
    assert hasattr(run_spec, "__wrapped__")


def test_a_run_that_is_created_with_contradicting_rounds_names_the_argument() -> None:
    federation = Federation(Silent())
    with pytest.raises(InvalidArgument, match=r"^plain_rounds: contradicts"):
        federation.create("r", {**FOUR, "private_rounds": {}}, plain_rounds=True)
    with pytest.raises(InvalidSpec, match="leave the rounds plain: plain_rounds"):
        federation.create("r", {**FOUR, "round": {"min_clients": 2, "target_clients": 4}})
    assert "--" not in federation.create("r", FOUR, plain_rounds=True).note
    assert "(plain_rounds leaves them out)" in federation.create("r", FOUR).note


def test_an_invite_that_no_member_could_use_is_refused_before_the_call() -> None:
    federation = Federation(Silent())
    for role, options, field in (
        ("partner", {}, "role"),
        ("observer", {}, "runs"),
        ("client", {"ttl_s": 0}, "ttl_s"),
        ("client", {"ttl_s": 24 * 3600 + 1}, "ttl_s"),
    ):
        with pytest.raises(InvalidArgument, match=f"^{field}: "):
            federation.invite("ann", role, **cast(Any, options))


def test_plain_text_is_refused_elsewhere_in_words_that_fit_both() -> None:
    with pytest.raises(NotLoopback) as raised:
        Federation.in_plain_text("example.org:7443")
    assert "--" not in str(raised.value)


class Silent(Remote):
    """A connection that takes every run."""

    def __init__(self) -> None:
        pass

    def create_run(self, run: str, spec_json: bytes) -> dict[str, Any]:
        return {}
