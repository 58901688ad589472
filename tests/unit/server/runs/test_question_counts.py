"""The members of a run learn how many of their questions others have, and nothing else."""

import numpy as np
import pytest

from pluralllm.common.words.ids import ClientId, RunId
from pluralllm.server.runs.question_counts import KEPT_MEMBERS, KEPT_RUNS, QuestionCounts

RUN = RunId("r")
TOP = 2**64 - 1


def compared(counts: QuestionCounts, name: str, *digests: int, run: str = RUN) -> tuple[int, int]:
    return counts.compare(RunId(run), ClientId(name), np.asarray(digests, np.uint64))


def test_a_question_counts_once_however_many_others_have_it() -> None:
    counts = QuestionCounts()
    assert compared(counts, "ann", 0, 5, 9, TOP) == (0, 0)
    assert compared(counts, "ben", 0, 5, TOP) == (1, 3)
    assert compared(counts, "cem", 1, 5, 9) == (2, 2)
    assert compared(counts, "ann", 0, 5, 9, TOP) == (2, 4)
    assert compared(counts, "dee", 2, 6, 10, TOP - 1) == (3, 0)


def test_the_newest_digests_of_a_member_count_and_its_own_never() -> None:
    counts = QuestionCounts()
    compared(counts, "ann", 1, 2, 3)
    assert compared(counts, "ann", 1, 2, 3) == (0, 0)
    assert compared(counts, "ben", 1) == (1, 1)
    compared(counts, "ann", 7)
    assert compared(counts, "ben", 1) == (1, 0)


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
    assert compared(counts, "ann", 4, 5) == (KEPT_MEMBERS, 1)
