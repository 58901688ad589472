"""The members of a run learn how many of their questions others have, and nothing else."""

import numpy as np
import pytest

from pluralllm.common.words.ids import ClientId, RunId
from pluralllm.common.words.question_digests import MAX_DIGESTS
from pluralllm.server.runs.question_counts import KEPT_MEMBERS, KEPT_RUNS, Counts, QuestionCounts

RUN = RunId("r")
TOP = 2**64 - 1


def compared(counts: QuestionCounts, name: str, *digests: int, run: str = RUN) -> tuple[int, int]:
    counted = counts.compare(RunId(run), ClientId(name), np.asarray(digests, np.uint64))
    return counted.members, counted.shared


def test_a_question_counts_once_however_many_others_have_it() -> None:
    counts = QuestionCounts()
    assert compared(counts, "ann", 0, 5, 9, TOP) == (0, 0)
    assert compared(counts, "ben", 0, 5, TOP) == (1, 3)
    assert compared(counts, "cem", 1, 5, 9) == (2, 2)
    assert compared(counts, "ann", 0, 5, 9, TOP) == (2, 4)
    assert compared(counts, "dee", 2, 6, 10, TOP - 1) == (3, 0)


def test_the_first_digests_of_a_member_count_so_that_it_cannot_ask_about_single_questions() -> None:
    counts = QuestionCounts()
    compared(counts, "ann", 1, 2, 3)
    assert compared(counts, "ann", 1, 2, 3) == (0, 0)
    assert compared(counts, "ben", 1) == (1, 1)
    assert compared(counts, "ben", 7) == (1, 1)
    assert compared(counts, "cem", 7) == (2, 0), "the second digest of ben is not kept"


def test_beyond_the_end_of_a_full_list_nothing_is_compared() -> None:
    """A member with a hundred times as many questions sends those with the smallest digests."""
    counts = QuestionCounts()
    compared(counts, "large", *range(0, 2 * MAX_DIGESTS, 2))
    end = 2 * (MAX_DIGESTS - 1)
    counted = counts.compare(RUN, ClientId("small"), np.asarray([2, 3, end, end + 1, end + 50], np.uint64))
    assert counted == Counts(members=1, shared=2, compared=3)
    compared(counts, "almost", *range(1, 2 * MAX_DIGESTS - 1, 2))  # one question fewer: the list is whole
    counted = counts.compare(RUN, ClientId("small"), np.asarray([2, 3, end, end + 1, end + 50], np.uint64))
    assert counted == Counts(members=2, shared=3, compared=3)


@pytest.mark.parametrize("own", [(), (0,)])
def test_a_member_without_questions_shares_none(own: tuple[int, ...]) -> None:
    counts = QuestionCounts()
    assert compared(counts, "ann") == (0, 0)
    assert compared(counts, "ben", *own) == (1, 0)


def test_runs_are_apart_and_only_the_newest_are_kept() -> None:
    counts = QuestionCounts()
    for number in range(KEPT_RUNS + 1):
        assert compared(counts, "ann", 1, run=f"run-{number}") == (0, 0)
    assert compared(counts, "ben", 1, run="run-0") == (0, 0), "the first run was forgotten"
    assert compared(counts, "ben", 1, run="run-2") == (1, 1)


def test_of_a_large_run_the_newest_members_are_kept() -> None:
    counts = QuestionCounts()
    for number in range(KEPT_MEMBERS + 5):
        compared(counts, f"member-{number}", number)
    assert compared(counts, "ann", 5, 6) == (KEPT_MEMBERS - 1, 1)
