"""The error tree, its drawing in the docstring, and its table of status codes."""

import dataclasses
import re
from typing import Any

import grpc
import pytest

from pluralllm.common.errors import grpc_status as status
from pluralllm.common.errors import membership as membership_errors
from pluralllm.common.errors import storage as storage_errors
from pluralllm.common.errors import tree as errors
from pluralllm.common.errors.tree import PluralError, fields_of, leaves, reason_of

EXAMPLES: dict[type, Any] = {str: "text", int: 7, float: 0.5}


def example(leaf: type[PluralError]) -> PluralError:
    return leaf(**{name: EXAMPLES[kind] for name, kind in fields_of(leaf).items()})


def test_the_table_covers_every_leaf_and_nothing_else() -> None:
    assert set(status.CODES) == set(leaves().values())


@pytest.mark.parametrize("leaf", leaves().values(), ids=leaves())
def test_a_leaf_says_what_is_wrong_in_words_and_survives_the_wire(leaf: type[PluralError]) -> None:
    error = example(leaf)
    assert "{" not in str(error)
    sent = status.to_status(error)
    assert sent.code is status.CODES[leaf]

    class Failed(Exception):
        code = staticmethod(lambda: sent.code)
        details = staticmethod(lambda: sent.details)
        trailing_metadata = staticmethod(lambda: sent.trailing_metadata)

    received = status.from_rpc_error(Failed(), "somewhere")  # type: ignore[arg-type]
    assert type(received) is leaf
    assert received.facts == error.facts


@pytest.mark.parametrize("fact", ["1" + "0" * 400, "-1e999", "NaN", "null", '"x"', "[1]", '{"a": 1}'])
def test_a_fact_that_no_message_can_show_makes_an_error_that_can_be_shown(
    fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_json", lambda *_: fact)
    for leaf in leaves().values():
        sent = status.to_status(example(leaf))

        class Failed(Exception):
            code, details = staticmethod(lambda sent=sent: sent.code), staticmethod(lambda sent=sent: sent.details)
            trailing_metadata = staticmethod(lambda sent=sent: sent.trailing_metadata)

        assert str(status.from_rpc_error(Failed(), "somewhere"))  # type: ignore[arg-type]


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    both = f"{errors.__doc__}{membership_errors.__doc__}{storage_errors.__doc__}"
    drawn = set(re.findall(r"[|`]- (\w+)", both))
    assert drawn == {leaf.__name__ for leaf in leaves().values()} | {"Refused", "Broken"}


def test_reasons_are_upper_snake() -> None:
    assert reason_of(errors.WrongBase) == "WRONG_BASE"
    assert all(dataclasses.is_dataclass(leaf) for leaf in leaves().values())


def failed(code: grpc.StatusCode, details: str) -> grpc.RpcError:
    class Failed(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return code

        def details(self) -> str:
            return details

        def trailing_metadata(self) -> tuple[()]:
            return ()

    return Failed()


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "CANCELLED"])
def test_a_broken_connection_may_be_tried_again_whatever_grpc_calls_it(code: str) -> None:
    found = status.from_rpc_error(failed(grpc.StatusCode[code], "Internal error from Core"), "host:1")
    assert type(found) is errors.Unreachable


@pytest.mark.parametrize(
    ("code", "details"), [("UNIMPLEMENTED", "Method not found!"), ("INTERNAL", "Exception deserializing request!")]
)
def test_a_call_the_other_side_cannot_understand_is_not_tried_again(code: str, details: str) -> None:
    assert type(status.from_rpc_error(failed(grpc.StatusCode[code], details), "host:1")) is errors.Internal
