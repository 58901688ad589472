"""The nemesis's verdict on progress can fail, on both sides of its limit."""

import pytest
from nemesis.standstill import LIMIT_S, Standstill


def stands(seconds: float, sign_s: float = 0.0, *, is_struck_at_s: float = 0.0) -> list[str]:
    """Returns the problems of a federation that stood still from second 0 on."""
    verdict = Standstill(0.0)
    for now_s in (0.0, is_struck_at_s):
        verdict.look(now_s, step=1, is_struck=now_s == is_struck_at_s, signs_s={"first": 0.0})
    for _ in range(2):
        verdict.look(seconds, step=1, is_struck=False, signs_s={"first": sign_s})
    return verdict.problems


def test_a_run_may_stand_still_for_the_limit_and_no_longer() -> None:
    assert stands(LIMIT_S, LIMIT_S) == []
    assert stands(LIMIT_S + 0.1, LIMIT_S) == [
        "progress: the run does nothing for more than 30 s although no fault lasts"
    ]


@pytest.mark.parametrize(("now_s", "is_named"), [(LIMIT_S + 5.0, False), (LIMIT_S + 5.1, True)])
def test_a_coordinator_without_a_sign_is_named_once_although_its_run_goes_on(now_s: float, is_named: bool) -> None:
    verdict = Standstill(0.0)
    for step in (1, 2):
        verdict.look(now_s, step=step, is_struck=False, signs_s={"first": 5.0, "second": now_s})
    assert ["first is alive" in problem for problem in verdict.problems] == [True] * is_named


def test_the_time_counts_from_the_end_of_the_last_fault() -> None:
    assert stands(LIMIT_S + 5.0, 35.0, is_struck_at_s=5.0) == []
    assert len(stands(LIMIT_S + 5.1, 35.0, is_struck_at_s=5.0)) == 1


def test_a_step_ends_a_standstill() -> None:
    verdict = Standstill(0.0)
    for number in range(100):
        verdict.look(number * LIMIT_S, step=number, is_struck=False, signs_s={"first": number * LIMIT_S})
    assert verdict.problems == []
