"""Leases follow the slots, whatever the order in which steps are heard of."""

from pathlib import Path

from support.memory_coordinator import MemoryCoordinator

from pluralllm.common.words.ids import ClientId, Digest, RoundNumber
from pluralllm.server.rounds import events as ev
from pluralllm.server.runs.assignments import Assignments
from pluralllm.server.runs.live_run import LiveRun, Step

ANN, BEN = ClientId("ann"), ClientId("ben")


def assignments_of(place: MemoryCoordinator) -> Assignments:
    return Assignments(place.parts.leases, place.parts.client_bells, place.clock)


def delivery(run: LiveRun) -> Step:
    """Returns a step of ann's delivery that changes no slot."""
    receipt = ev.Receipt(ANN, Digest("u"), 10)
    arrived = ev.UpdateArrived(1.0, RoundNumber(run.state.round), run.state.version, receipt)
    return Step(arrived, run.progress, run.progress, ())


async def test_a_delivery_that_is_heard_of_late_does_not_end_the_lease_on_the_next_task(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting("ann", "ben")
    lease = place.parts.leases.of(ANN)
    assert lease is not None
    assignments_of(place).follow(run, delivery(run))
    assert place.parts.leases.of(ANN) is lease, "the run has given ann another slot by now"


async def test_a_delivery_ends_the_lease_of_its_client_alone_and_none_of_another_run(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting("ann", "ben")
    await place.deliver(run, "ann", place.update(run))
    assert place.parts.leases.of(ANN) is None
    assert place.parts.leases.of(BEN) is not None
    other = await place.collecting("ann", "cat", run_id="other")
    lease = place.parts.leases.of(ANN)
    assert lease is not None
    assert lease.run == other.id
    assignments_of(place).follow(run, delivery(run))
    assert place.parts.leases.of(ANN) is lease
