"""A run of sums goes through the service as any run: refusals, restarts, verification, and the stages of its versions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.memory_coordinator import MemoryCoordinator, until

from pluralllm.common.errors.tree import InvalidSpec, NormTooLarge, WrongLayout
from pluralllm.common.predictor.architecture import update_layout, version_layout
from pluralllm.common.words.ids import ClientId, ModelVersion
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.live_run import LiveRun

SUMS: dict[str, Any] = {
    "rounds": 5,
    "predictor": {"architecture": "kernel-sums/1", "features": 24, "group_rank": 3, "subspace_rounds": 2},
    "aggregation": {"weighting": "uniform"},
    "format": "pluralllm.run/2",
}
NAMES = ("ann", "ben")


async def play_round(place: MemoryCoordinator, run: LiveRun) -> None:
    await place.look(run)
    while run.state.phase is Phase.EVALUATING:
        await evaluate(place, run)
        await place.look(run)
    assert run.state.phase is Phase.COLLECTING
    version = run.state.version
    for number, client in enumerate(run.state.cohort):
        await place.deliver(run, client, place.update(run, 10 * version + number), 40)
    await place.coordinator.until_averaged(run)
    await until(lambda: run.state.version == version + 1)


async def evaluate(place: MemoryCoordinator, run: LiveRun) -> None:
    client = run.state.active[0]
    score = ev.Score(client, client, GroupRole.TRAIN, run.state.version, 0.5, 0.5, None, 9)  # type: ignore[arg-type]
    await place.coordinator.dispatch(run, ev.EvaluationArrived(place.clock.now_s(), score))


def again(place: MemoryCoordinator, run: LiveRun) -> LiveRun:
    found = place.parts.runs.find(run.id)
    assert found is not None
    return found


async def greeted(place: MemoryCoordinator) -> None:
    for name in NAMES:
        await place.hello(name)


async def test_a_run_ends_with_the_layouts_of_both_stages(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting(*NAMES, **SUMS)
    for version in range(5):
        assert run.update_format.layout == update_layout(run.spec, version)
        await play_round(place, run)
        assert (await place.parts.blobs.path(run.newest.digest)).stat().st_size == version_layout(
            run.spec, version + 1
        ).size_bytes
        assert len(run.newest.moments) == (version < 2)
        assert (run.newest.weights, run.newest.scales) == ((), ())
    await place.stop()


async def test_a_coordinator_that_stops_between_rounds_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    digests = []
    for name, stops in (("once", ()), ("often", (1, 3, 4))):
        (tmp_path / name).mkdir()
        place = MemoryCoordinator(tmp_path / name)
        run = await place.collecting(*NAMES, **SUMS)
        for version in range(5):
            if version in stops:
                await place.stop()
                place = await place.next_process()
                run = again(place, run)
                await greeted(place)
            await play_round(place, run)
        digests.append(run.newest.digest)
        await place.stop()
    assert digests[0] == digests[1]


async def test_a_term_above_the_bound_is_refused_and_never_shortened(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    norm_bound = {"aggregation": {"weighting": "uniform", "max_delta_norm": 1e-4}}
    run = await place.collecting(*NAMES, **{**SUMS, **norm_bound})
    assert not run.state.limits_members
    with pytest.raises(NormTooLarge):
        await place.deliver(run, "ann", place.update(run), 40)
    assert run.state.receipts == ()
    await place.stop()


async def test_a_term_of_the_other_stage_is_refused(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting(*NAMES, **SUMS)
    early = place.update(run, 99)
    for _ in range(3):
        await play_round(place, run)
    await place.look(run)
    with pytest.raises(WrongLayout, match="of an update of this run"):
        await place.announce(run, "ann", early, 40)
    await place.stop()


async def test_rewards_need_a_version_with_a_group_projection(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting(*NAMES, **SUMS)
    for _ in range(3):
        await play_round(place, run)
    for version, digest in ((2, None), (3, run.newest.digest)):
        record = await place.parts.store.version(run.id, ModelVersion(version))
        assert record is not None
        rewards = {"source": f"runs/r/models/{version}", "model_digest": record.digest}
        spec = run.spec.model_copy(update={"aggregation": type(run.spec.aggregation)()})
        values = {**spec.model_dump(mode="json"), "rewards": rewards}
        text = type(spec).model_validate(values).canonical_json()
        if digest is None:
            with pytest.raises(InvalidSpec, match="has no group projection yet; name a later version"):
                await place.coordinator.create_run("s", text)
        else:
            made = await place.coordinator.create_run("s", text)
            assert made.base.digest == digest
    await place.stop()


async def test_a_member_that_leaves_changes_the_sum_and_the_run_goes_on(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting(*NAMES, "cay", **{**SUMS, "round": {"min_clients": 2, "target_clients": 3}})
    await play_round(place, run)
    await place.coordinator.dispatch(run, ev.MemberRevoked(place.clock.now_s(), ClientId("cay")))
    place.parts.sessions.close(ClientId("cay"))
    await place.look(run)
    place.clock.advance(run.spec.round.gather_s)
    await greeted(place)
    await play_round(place, run)
    assert [client for client, _, _ in run.newest.updates] == list(NAMES)
    values = np.fromfile(await place.parts.blobs.path(run.newest.digest), "<f4")
    assert np.isfinite(values[-24:]).all()
    await place.stop()
