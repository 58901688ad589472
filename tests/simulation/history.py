"""A long history in a store, made by the round machine itself, without model files."""

import hashlib

from simulation.scenario import RUN, scenario
from support.memory_store import MemoryStore, Tables

from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.rounds import events as ev
from pluralllm.server.runs.inbox import Inbox
from pluralllm.server.runs.live_run import LiveRun, Progress, first_state
from pluralllm.server.storage.store import RunRecord


async def long_history(rounds: int, clients: int) -> tuple[MemoryStore, RunRecord]:
    """Returns a store with a run that has had `rounds` rounds and goes on."""
    store, names = MemoryStore(Tables()), tuple(ClientId(f"client-{number:03}") for number in range(clients))
    base_spec = scenario("fedavg", rounds + 1).spec
    policy = base_spec.round.model_copy(
        update={"min_clients": clients, "target_clients": clients, "evaluate_every": rounds + 1}
    )
    spec = base_spec.model_copy(update={"round": policy})
    record = RunRecord(RUN, spec.canonical_json(), spec.sha256(), 0.0)
    first = VersionRecord(RUN, ModelVersion(0), RoundNumber(0), _digest("first"), spec.sha256(), "", (), 0.0)
    await store.create_run(record, first)
    run = LiveRun(record, spec, layout_for(spec), first, Progress(first_state(record, spec, first), first))
    inbox = Inbox(store)
    seen = ev.ClientsSeen(1.0, names, ())
    for event in (ev.RunStarted(1.0), seen, seen):
        await inbox.put(run, event)
    for name in names:
        score = ev.Score(name, GroupName(name), GroupRole.TRAIN, ModelVersion(0), 0.5, 0.5, None, 9)
        await inbox.put(run, ev.EvaluationArrived(1.0, score))
    for number in range(1, rounds + 1):
        now_s = 10.0 * number
        await inbox.put(run, ev.ClientsSeen(now_s, names, ()))
        for name in names:
            receipt = ev.Receipt(name, _digest(f"{name} {number}"), 50)
            await inbox.put(run, ev.UpdateArrived(now_s, RoundNumber(number), run.state.version, receipt))
        await inbox.put(run, ev.ModelAveraged(now_s, RoundNumber(number), _digest(f"model {number}")))
    return store, record


def _digest(text: str) -> Digest:
    return Digest(hashlib.sha256(text.encode()).hexdigest())
