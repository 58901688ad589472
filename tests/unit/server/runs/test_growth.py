"""The coordinator's work for one update does not grow with the number of clients in the round."""

import asyncio
from pathlib import Path

from support.counted_calls import GROWTH, counted_calls
from support.memory_coordinator import TIMING, MemoryCoordinator

from pluralllm.common.words.ids import ClientId, Digest, RoundNumber
from pluralllm.server.rounds import events as ev
from pluralllm.server.runs.live_run import LiveRun

LEASE_S = TIMING.lease_s


def names(number: int) -> list[str]:
    return [f"client-{position:03}" for position in range(number)]


def arrivals(run: LiveRun, clients: list[str]) -> list[ev.Event]:
    receipts = [ev.Receipt(ClientId(client), Digest(client), 10) for client in clients]
    return [ev.UpdateArrived(1.0, RoundNumber(run.state.round), run.state.version, receipt) for receipt in receipts]


async def test_an_update_costs_as_many_calls_in_a_round_of_twice_as_many_clients(tmp_path: Path) -> None:
    async def play(number: int) -> int:
        place = MemoryCoordinator(tmp_path)
        run = await place.collecting(*names(number))
        events = arrivals(run, names(number)[:-1])  # the last one ends the round, once for all clients

        with counted_calls() as counted:
            for event in events:
                await place.coordinator.dispatch(run, event)
        await place.stop()
        return counted.calls

    assert await play(100) <= GROWTH * await play(50)


async def test_clients_that_are_gone_at_the_same_time_share_a_transaction(tmp_path: Path) -> None:
    place, applied = MemoryCoordinator(tmp_path), 0
    run = await place.collecting(*names(50))
    place.clock.advance(LEASE_S)

    async def slowly(operation: str, _: object) -> None:
        nonlocal applied
        applied += operation == "store.apply"
        await asyncio.sleep(0)  # as a database, which others need not wait for

    place.before = slowly
    await place.look(run)
    assert [loss.client for loss in run.state.losses] == names(50)
    assert applied <= 4, "two for their slots, and two for their places in the roster"
    assert place.parts.leases.count_in(run.id) == 0
