"""Batches of rollouts are written and read as JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralllm.common.errors.tree import InvalidArgument, OverLimit
from pluralllm.common.rewards.rollout_batch import (
    MAX_BYTES,
    Candidates,
    count_candidates,
    read_rollouts,
    sampled,
    write_rollouts,
)

texts = st.text(min_size=1, max_size=20).filter(lambda text: bool(text.strip()))
candidates = st.builds(
    lambda prompt, options, counts: Candidates(prompt, tuple(options), tuple(map(float, counts[: len(options)]))),
    texts,
    st.lists(texts, min_size=2, max_size=6, unique=True),
    st.just([]) | st.lists(st.integers(1, 9), min_size=6, max_size=6),
)


@given(st.lists(candidates, min_size=1, max_size=5))
def test_a_batch_comes_back_as_it_was_and_has_the_same_bytes(batch: list[Candidates]) -> None:
    raw = write_rollouts(batch)
    again = read_rollouts(raw, 100)
    assert list(again) == batch
    assert write_rollouts(again) == raw
    assert len(sampled(again)) == count_candidates(again) == sum(len(each.options) for each in batch)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        {},
        "text",
        [1],
        [["p"]],
        [["p", ["a", "b"], [1, 1], 3]],
        [["", ["a", "b"]]],
        [["p", ["a"]]],
        [["p", ["a", "a"]]],
        [["p", ["a", " "]]],
        [["p", ["a", 1]]],
        [[1, ["a", "b"]]],
        [["p", ["a", "b"], [1]]],
        [["p", ["a", "b"], [0, 0]]],
        [["p", ["a", "b"], [-1, 2]]],
        [["p", ["a", "b"], ["1", 2]]],
        [["p", ["a", "b"], [1e300, 2]]],
        [["good", ["a", "b"]], ["p", "ab"]],
    ],
)
def test_a_row_that_cannot_be_scored_is_named(rows: Any) -> None:
    with pytest.raises(InvalidArgument, match="rollouts"):
        read_rollouts(json.dumps(rows).encode(), 100)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff",
        b'[["p",["a","b"],[NaN,1]]]',
        b'[["p",["a","b"],[1e999,1]]]',
        b'[["p",["a","b"],[1%s,1]]]' % (b"0" * 400),
    ],
)
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidArgument):
        read_rollouts(raw, 100)


@pytest.mark.parametrize("count", [b"1e999", b"1" + b"0" * 400])
def test_a_count_that_no_number_can_hold_is_refused(count: bytes) -> None:
    with pytest.raises(InvalidArgument, match="needs one count"):
        read_rollouts(b'[["p",["a","b"],[%s,1]]]' % count, 100)


def test_a_batch_that_is_too_large_is_refused_unread() -> None:
    with pytest.raises(OverLimit, match="candidates"):
        read_rollouts(write_rollouts([Candidates("p", ("a", "b", "c"))]), 2)
    with pytest.raises(OverLimit, match="bytes"):
        read_rollouts(b"[" * (MAX_BYTES + 1), 100)
