"""Open calls are limited, and held polls apart from them."""

import pytest

from pluralllm.common.errors.tree import Busy
from pluralllm.server.rpc.open_calls import POLL, OpenCalls

GET_RUN = "/pluralllm.v1.OperationsService/GetRun"


def test_a_call_above_the_limit_is_refused_until_another_one_ends() -> None:
    calls = OpenCalls(2)
    with calls.enter(GET_RUN):
        with calls.enter(GET_RUN), pytest.raises(Busy, match="2 calls are open"), calls.enter(GET_RUN):
            pass
        with calls.enter(GET_RUN):
            pass


def test_a_call_that_fails_is_open_no_longer() -> None:
    calls = OpenCalls(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="a bug"), calls.enter(GET_RUN):
            raise ValueError("a bug")


def test_polls_are_neither_limited_nor_counted() -> None:
    calls = OpenCalls(1)
    with calls.enter(POLL), calls.enter(POLL), calls.enter(GET_RUN), calls.enter(POLL):
        pass


def test_a_port_without_a_limit_counts_and_refuses_nothing() -> None:
    calls = OpenCalls(None)
    with calls.enter(GET_RUN), calls.enter(GET_RUN):
        pass


def test_the_name_of_the_poll_is_that_of_the_protocol() -> None:
    assert POLL == "/pluralllm.v1.FederationService/Poll"
