"""The limit of open files is divided so that connections never take the files that writes need."""

import os
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralllm.server.process.config import ServerConfig
from pluralllm.server.process.open_files import (
    FEWEST,
    MOST_JOINING,
    RESERVE,
    TARGET,
    Ceilings,
    ceilings,
    limit,
    limit_of,
    reachable_limit,
)

DEFAULT = ServerConfig().max_connections


@pytest.mark.parametrize(
    ("limit", "room"),
    [
        (256, Ceilings(80, 16)),
        (1024, Ceilings(400, 80)),
        (TARGET, Ceilings(DEFAULT, MOST_JOINING)),
        (524_288, Ceilings(DEFAULT, MOST_JOINING)),
        (0, Ceilings(FEWEST, FEWEST)),
    ],
)
def test_half_of_the_files_that_are_left_are_for_connections(limit: int, room: Ceilings) -> None:
    assert ceilings(limit, DEFAULT) == room


@given(limit=st.integers(160, 10**6), most=st.integers(8, 10**6))
def test_connections_leave_the_reserve_and_as_many_files_as_they_take(limit: int, most: int) -> None:
    room = ceilings(limit, most)
    assert 2 * (room.main + room.enrolment) + RESERVE <= limit
    assert FEWEST <= room.main <= most
    assert FEWEST <= room.enrolment <= MOST_JOINING


@pytest.mark.parametrize(("most", "main"), [(8, 8), (399, 399), (400, 400), (401, 400)])
def test_the_configured_ceiling_holds_where_it_is_lower(most: int, main: int) -> None:
    assert ceilings(1024, most).main == main


def test_the_limit_of_a_process_is_read_from_the_kernel_and_an_unknown_process_has_none() -> None:
    assert limit_of(os.getpid()) == limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert limit_of(2**22 + 1) is None
    assert reachable_limit() >= limit()
