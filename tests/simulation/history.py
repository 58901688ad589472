"""A long history in a store, made by the round machine itself, without model files."""

import hashlib

from simulation.scenario import RUN, scenario
from support.bare_run import bare_run, evaluate_first_version
from support.memory_store import MemoryStore, Tables

from pluralllm.common.words.ids import ClientId, Digest, RoundNumber
from pluralllm.server.rounds import events as ev
from pluralllm.server.runs.inbox import Inbox
from pluralllm.server.storage.store import RunRecord


async def long_history(rounds: int, clients: int) -> tuple[MemoryStore, RunRecord]:
    """Returns a store with a run that has had `rounds` rounds and goes on."""
    store, names = MemoryStore(Tables()), tuple(ClientId(f"client-{number:03}") for number in range(clients))
    base_spec = scenario("fedavg", rounds + 1).spec
    policy = base_spec.round.model_copy(
        update={"min_clients": clients, "target_clients": clients, "evaluate_every": rounds + 1}
    )
    spec = base_spec.model_copy(update={"round": policy})
    run, inbox = await bare_run(store, spec, RUN), Inbox(store)
    await evaluate_first_version(inbox, run, names)
    for number in range(1, rounds + 1):
        now_s = 10.0 * number
        await inbox.put(run, ev.ClientsSeen(now_s, names, ()))
        for name in names:
            receipt = ev.Receipt(name, _digest(f"{name} {number}"), 50)
            await inbox.put(run, ev.UpdateArrived(now_s, RoundNumber(number), run.state.version, receipt))
        await inbox.put(run, ev.ModelAveraged(now_s, RoundNumber(number), _digest(f"model {number}")))
    return store, run.record


def _digest(text: str) -> Digest:
    return Digest(hashlib.sha256(text.encode()).hexdigest())
