"""The coordinator's work for one update does not grow with the number of clients in the round."""

from pathlib import Path

from support.counted_calls import GROWTH, counted_calls
from support.memory_coordinator import MemoryCoordinator

from pluralllm.common.words.ids import ClientId, Digest, RoundNumber
from pluralllm.server.rounds import events as ev
from pluralllm.server.runs.live_run import LiveRun


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
