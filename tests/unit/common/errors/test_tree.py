"""The error tree, its drawing in the docstring, and its table of status codes."""

import copy
import dataclasses
import re

import grpc
import pytest
from support.errors_to_raise import example, failed_call

from pluralllm.common.errors import grpc_status as status
from pluralllm.common.errors import membership as membership_errors
from pluralllm.common.errors import plugins as plugin_errors
from pluralllm.common.errors import privacy as privacy_errors
from pluralllm.common.errors import private_rounds as private_round_errors
from pluralllm.common.errors import storage as storage_errors
from pluralllm.common.errors import tree as errors
from pluralllm.common.errors.tree import PluralError, leaves, reason_of
from pluralllm.common.process.exits import UNREACHABLE, exit_code_of
from pluralllm.common.process.proxies import Proxies


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
    of_the_call = {"address": "somewhere"} if isinstance(error, errors.NoAnswer) else {}
    assert received.facts == {**error.facts, **of_the_call}
    elsewhere = copy.deepcopy(error)  # as pickle makes it
    assert (type(elsewhere), elsewhere.facts, str(elsewhere)) == (leaf, error.facts, str(error))


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
    modules = (errors, membership_errors, plugin_errors, privacy_errors, private_round_errors, storage_errors)
    drawn = set(re.findall(r"[|`]- (\w+)", "".join(str(module.__doc__) for module in modules)))
    assert drawn == {leaf.__name__ for leaf in leaves().values()} | {"Refused", "Broken", "NoAnswer"}


def test_reasons_are_upper_snake() -> None:
    assert reason_of(errors.WrongBase) == "WRONG_BASE"
    assert all(dataclasses.is_dataclass(leaf) for leaf in leaves().values())


NOTHING_ANSWERED = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")


@pytest.mark.parametrize("code", NOTHING_ANSWERED)
def test_a_call_that_nothing_answered_says_that_the_coordinator_is_unreachable(code: str) -> None:
    error = status.from_rpc_error(failed_call(grpc.StatusCode[code], "Socket closed"), "host:1")
    assert type(error) is errors.Unreachable
    assert error.facts == {"address": "host:1", "problem": "Socket closed"}


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name not in NOTHING_ANSWERED])
@pytest.mark.parametrize("details", ["Method not found!", "Exception deserializing request!", ""])
def test_a_status_without_a_reason_of_ours_has_no_meaning_of_ours(code: grpc.StatusCode, details: str) -> None:
    error = status.from_rpc_error(failed_call(code, details), "host:1")
    assert type(error) is errors.ForeignAnswer
    assert error.facts == {"address": "host:1", "code": code.name, "problem": details or "no text"}


@pytest.mark.parametrize("reason", ["OF_A_LATER_RELEASE", ""])
def test_a_reason_that_this_release_does_not_know_is_shown_with_its_text(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors.StorageFull, "reason", reason)
    sent = status.to_status(errors.StorageFull(what="the update"))
    received = status.from_rpc_error(failed_call(sent.code, sent.details, sent.trailing_metadata), "host:1")
    assert type(received) is errors.ForeignAnswer
    assert "No space left for the update" in str(received)


def test_the_address_of_a_coordinator_is_the_one_that_was_called_whatever_it_says_itself() -> None:
    for address in ("ann", "", "elsewhere:1", "[::1"):
        for error in (
            errors.Unreachable(address=address, problem="it is down"),
            errors.StreamSilent(address=address, silent_s=3.0),
            errors.LinkTooSlow(address=address, way="to", kib_s=1.0, needed_kib_s=16.0),
            errors.WrongPort(address=address, wanted="main port", problem="it enrols"),
        ):
            sent = status.to_status(error)
            received = status.from_rpc_error(failed_call(sent.code, sent.details, sent.trailing_metadata), "host:1")
            assert received.facts == error.facts | {"address": "host:1"}
            assert type(Proxies(url="http://proxy:3128").explained(received)) is type(error)


def test_a_call_above_grpcs_own_limit_meets_a_busy_coordinator_and_a_message_that_is_too_large_does_not() -> None:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    busy = status.from_rpc_error(failed_call(code, "Concurrent RPC limit exceeded!"), "here:7443")
    assert type(busy) is errors.Busy
    assert "here:7443 has no room for another call now: Concurrent RPC limit exceeded!" in str(busy)
    large = status.from_rpc_error(failed_call(code, "Received message larger than max"), "here:7443")
    assert type(large) is errors.ForeignAnswer


def test_only_failures_without_an_answer_have_the_exit_code_of_an_unreachable_coordinator() -> None:
    unreachable = {leaf.__name__ for leaf in leaves().values() if exit_code_of(leaf) == UNREACHABLE}
    assert unreachable == {
        "Unreachable",
        "Busy",
        "ForeignAnswer",
        "LinkTooSlow",
        "ProxyFailed",
        "StreamSilent",
        "WrongPort",
    }
