"""The evaluations of a run's newest versions, and the few numbers of them that a list of runs shows."""

from pathlib import Path

import pytest
from support.memory_coordinator import Hooks, MemoryCoordinator

from pluralllm.common.words.ids import GroupName
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.ended_evaluations import Fairness
from pluralllm.server.runs.live_run import LiveRun


def named(**scores: float | None) -> list[tuple[GroupName, float | None]]:
    return [(GroupName(group), score) for group, score in scores.items()]


def test_fairness_is_about_the_groups_that_report_and_names_the_one_with_the_lowest_score() -> None:
    fairness = Fairness.of(named(a=None, b=0.8, c=0.6, d=0.6))
    assert fairness is not None
    assert (fairness.min_alignment_score, fairness.min_group) == (0.6, "c")
    assert (fairness.reporting_groups, fairness.groups) == (3, 4)
    assert fairness.mean_alignment_score == pytest.approx(2 / 3)
    assert fairness.index == pytest.approx(2.0**2 / (3 * (0.8**2 + 2 * 0.6**2)))
    assert fairness.coefficient_of_variation == pytest.approx((0.8 - 2 / 3) / 2**0.5 / (2 / 3))


def test_without_a_reported_score_there_is_no_fairness() -> None:
    assert Fairness.of(named(a=None)) is Fairness.of([]) is None


async def evaluated(place: MemoryCoordinator, run: LiveRun, score: float) -> None:
    for client in run.state.active:
        role = place.parts.sessions.of(client).role
        event = ev.Score(client, GroupName(client), role, run.state.version, score, 0.5, None, 9)
        await place.coordinator.dispatch(run, ev.EvaluationArrived(1.0, event))


async def test_nothing_is_read_before_an_evaluation_has_ended_and_once_after_each(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.new_run(rounds=3, round={"min_clients": 2, "target_clients": 2, "evaluate_every": 1})
    for name in ("ann", "ben"):
        await place.hello(name)
    await place.look(run)
    assert run.state.phase is Phase.EVALUATING
    evaluations = place.parts.evaluations
    place.before = hooks = Hooks()
    assert await evaluations.fairness(run) is None
    assert await evaluations.of(run) == ()
    assert hooks.calls == []
    for seed, score in enumerate((0.4, 0.7)):
        await evaluated(place, run, score)
        hooks.calls.clear()
        for _ in range(2):
            fairness = await evaluations.fairness(run)
            assert fairness is not None
            assert fairness.mean_alignment_score == pytest.approx(score)
            assert len(await evaluations.of(run)) == 2 * (seed + 1)
        assert [operation for operation, _ in hooks.calls] == ["store.alignment_scores", "store.latest_evaluations"]
        await place.look(run)
        for member in ("ann", "ben"):
            await place.deliver(run, member, place.update(run, seed), 40)
        await place.coordinator.until_averaged(run)
        await place.look(run)
    await place.stop()
