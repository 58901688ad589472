"""A private round of a coordinator in memory: four members, whose messages are short texts."""

import hashlib
from collections.abc import Callable

from support.memory_coordinator import MemoryCoordinator
from support.private_members import person

from pluralllm.common.words.ids import ClientId, Digest, GroupName, RoundNumber
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.live_run import LiveRun

NAMES = tuple(ClientId(name) for name in ("ann", "ben", "cat", "dan"))
ONE = RoundNumber(1)
ARRIVED: dict[ev.RoundStep, Callable[[float, RoundNumber, ClientId, Digest], ev.Event]] = {
    ev.RoundStep.KEYS: ev.KeysArrived,
    ev.RoundStep.SHARES: ev.SharesArrived,
    ev.RoundStep.CONFIRMATION: ev.ConfirmationArrived,
    ev.RoundStep.REVEAL: ev.RevealArrived,
}


def sha256(body: bytes) -> Digest:
    return Digest(hashlib.sha256(body).hexdigest())


def body_of(step: ev.RoundStep, client: ClientId) -> bytes:
    return f"{step} of {client}".encode()


async def keying(place: MemoryCoordinator) -> LiveRun:
    """Returns a run whose first private round collects the keys of four members."""
    run = await place.new_run(
        private_rounds={"colluders": 1},
        round={"min_clients": 3, "target_clients": 4},
        aggregation={"max_examples": 100},
    )
    for name in NAMES:
        await place.hello(name)
    await place.look(run)
    for client in NAMES:
        score = ev.Score(client, GroupName(client), GroupRole.TRAIN, run.state.version, 0.5, 0.5, None, 9)
        await place.coordinator.dispatch(run, ev.EvaluationArrived(place.clock.now_s(), score))
    await place.look(run)
    assert run.state.phase is Phase.KEYING
    return run


async def send(place: MemoryCoordinator, run: LiveRun, step: ev.RoundStep, *clients: ClientId) -> None:
    """Dispatches the message of each client in one step of the run's first round."""
    for client in clients:
        body, now_s = body_of(step, client), place.clock.now_s()
        if step is ev.RoundStep.UPDATE:
            receipt = ev.Receipt(client, sha256(client.encode()), 1)
            event: ev.Event = ev.UpdateArrived(now_s, ONE, run.state.version, receipt, statement=sha256(body))
        else:
            event = ARRIVED[step](now_s, ONE, client, sha256(body))
        await place.coordinator.dispatch(run, event, body)


async def collecting(place: MemoryCoordinator) -> LiveRun:
    """Returns a run whose members have real keys, and whose first private round collects updates."""
    run = await keying(place)
    for client in NAMES:
        member = person(client).member
        body = member.to_json()
        await place.parts.open_rounds.keep(run, client, sha256(body), member)
        arrived = ev.KeysArrived(place.clock.now_s(), ONE, client, sha256(body))
        await place.coordinator.dispatch(run, arrived, body)
    await send(place, run, ev.RoundStep.SHARES, *NAMES)
    assert run.state.phase is Phase.COLLECTING
    return run
