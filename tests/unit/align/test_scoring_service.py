"""The port of predicted shares has room for programs of this machine, whatever others connect to it."""

from typing import Any

import pytest
from hostile.evil_strangers import open_among, seconds_until_closed, silent_connections

from pluralllm.align.scoring_service import MAX_CONNECTIONS, Scoring, bind_scores
from pluralllm.common.errors.tree import InUse, InvalidArgument, NotLoopback

NO_REWARD: Any = None  # no call is made


@pytest.mark.seconds
def test_silent_connections_to_the_scoring_port_are_few_and_do_not_last() -> None:
    server, address = bind_scores(Scoring(NO_REWARD), "127.0.0.1:0")
    server.start()
    try:
        with silent_connections(address, 2 * MAX_CONNECTIONS) as connections:
            assert seconds_until_closed(connections[-1], 20) < 4, "what is above the ceiling is closed at once"
            assert open_among(connections) <= MAX_CONNECTIONS
            assert 3 < seconds_until_closed(connections[0], 20) < 10
    finally:
        server.stop(None).wait()


def test_the_scoring_port_is_of_this_machine_and_of_one_process() -> None:
    with pytest.raises(NotLoopback):
        bind_scores(Scoring(NO_REWARD), "0.0.0.0:0")
    server, address = bind_scores(Scoring(NO_REWARD), "127.0.0.1:0")
    with pytest.raises(InUse):
        bind_scores(Scoring(NO_REWARD), address)
    server.stop(None).wait()


def test_an_address_that_is_none_is_named_with_its_option() -> None:
    with pytest.raises(InvalidArgument, match="--listen"):
        bind_scores(Scoring(NO_REWARD), "here")
