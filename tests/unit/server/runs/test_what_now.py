"""Each row of the table of what a held poll is answered."""

import pytest

from pluralllm.common.words.ids import ClientId, RoundNumber, RunId
from pluralllm.common.words.names import TaskKind, TaskName
from pluralllm.server.runs.what_now import IDLE_HINT_S, RETRY_AFTER_S, DoTask, RunOver, Wait, spread_of, what_now

RUN, CLIENT = RunId("r"), ClientId("ann")
TASK = TaskName(RUN, RoundNumber(1), TaskKind.TRAIN, CLIENT)
EARLIER = TaskName(RUN, RoundNumber(0), TaskKind.EVALUATE, CLIENT)


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("leased", [None, TASK])
def test_the_end_of_a_run_that_the_client_follows_comes_first(leased: TaskName | None, is_last: bool) -> None:
    assert what_now([RUN], leased, "", 0.5, is_last=is_last) == RunOver(RUN)


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("works_on", ["", str(EARLIER)])
def test_a_leased_task_that_the_client_does_not_work_on_is_sent_at_once(works_on: str, is_last: bool) -> None:
    assert what_now([], TASK, works_on, 0.5, is_last=is_last) == DoTask(TASK)


def test_a_client_at_work_on_its_task_is_held_to_the_end_and_then_sent_the_same_task() -> None:
    assert what_now([], TASK, str(TASK), 0.5, is_last=False) is None
    assert what_now([], TASK, str(TASK), 0.5, is_last=True) == DoTask(TASK)


@pytest.mark.parametrize(
    ("step", "held_step", "answer"), [(2, 1, DoTask(TASK)), (2, 2, None), (0, 5, None), (0, 0, None)]
)
def test_a_client_that_works_on_an_earlier_step_of_its_task_hears_of_the_next_one_at_once(
    step: int, held_step: int, answer: DoTask | None
) -> None:
    assert what_now([], TASK, str(TASK), 0.5, is_last=False, phase=step, held_phase=held_step) == answer
    assert what_now([], TASK, str(TASK), 0.5, is_last=True, phase=step, held_phase=held_step) == DoTask(TASK)


@pytest.mark.parametrize("is_last", [False, True])
def test_a_client_at_work_on_a_task_without_a_lease_is_stopped_at_once(is_last: bool) -> None:
    assert what_now([], None, str(TASK), 0.5, is_last=is_last) == Wait(RETRY_AFTER_S)


def test_an_idle_client_is_held_to_the_end_and_then_asked_to_wait() -> None:
    assert what_now([], None, "", 0.5, is_last=False) is None
    assert what_now([], None, "", 0.0, is_last=True) == Wait(RETRY_AFTER_S)
    assert what_now([], None, "", 0.5, is_last=True) == Wait(RETRY_AFTER_S + IDLE_HINT_S / 2)


def test_the_wait_of_an_idle_client_varies_from_poll_to_poll_and_from_client_to_client() -> None:
    of_one_client = {spread_of(CLIENT, 1_000.0 + 25.0 * poll) for poll in range(50)}
    at_one_moment = {spread_of(ClientId(f"client-{number}"), 1_000.0) for number in range(50)}
    for spreads in (of_one_client, at_one_moment):
        assert len(spreads) == 50
        assert all(0 <= spread < 1 for spread in spreads)
        assert 0.3 < sum(spreads) / 50 < 0.7


def test_the_wait_is_the_same_for_the_same_client_and_moment_so_that_a_simulation_repeats() -> None:
    assert spread_of(CLIENT, 1_000.0) == spread_of(CLIENT, 1_000.0)
