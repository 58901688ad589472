"""The gauges read the database only for what has changed."""

from pathlib import Path

from prometheus_client import Metric
from support.memory_coordinator import Hooks, MemoryCoordinator

from pluralllm.common.words.ids import ClientId, GroupName
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.composition import gauges_of
from pluralllm.server.rounds import events as ev


def values(metrics: tuple[Metric, ...], name: str) -> dict[tuple[str, ...], float]:
    (metric,) = (metric for metric in metrics if metric.name == name)
    return {tuple(sample.labels.values()): sample.value for sample in metric.samples if sample.value}


async def test_clients_are_counted_in_memory_and_evaluations_are_read_after_their_end_only(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting("ann", "ben", round={"evaluate_every": 1})
    await place.hello("cem")
    gauges = gauges_of(place.parts, None, place.clock.now_s)
    hooks = place.before = Hooks()
    first = await gauges.read()
    assert values(first, "pluralllm_clients") == {("assigned",): 2, ("idle",): 1}
    assert set(values(first, "pluralllm_alignment_score").values()) == {0.5}
    assert [operation for operation, _ in hooks.calls] == ["store.latest_evaluations"]
    await gauges.read()
    assert len(hooks.calls) == 1, "nothing has happened"
    for seed, client in enumerate(run.state.cohort):
        await place.deliver(run, client, place.update(run, seed))
        await gauges.read()
    reads = [operation for operation, _ in hooks.calls if operation == "store.latest_evaluations"]
    assert len(reads) == 1, "an update ends no evaluation"
    await place.coordinator.until_averaged(run)
    await place.look(run)
    for client in run.state.cohort:
        score = ev.Score(client, GroupName(client), GroupRole.TRAIN, run.state.version, 0.7, 0.5, None, 9)
        await place.coordinator.dispatch(run, ev.EvaluationArrived(place.clock.now_s(), score))
    assert set(values(await gauges.read(), "pluralllm_alignment_score").values()) == {0.7}
    place.parts.sessions.close(ClientId("cem"))
    assert values(await gauges.read(), "pluralllm_clients")[("away",)] == 1
    await place.coordinator.remove_client(ClientId("cem"))
    assert values(await gauges.read(), "pluralllm_clients")[("revoked",)] == 1
    await place.stop()
