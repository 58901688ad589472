"""Runs whose aggregator is another package's: refused, held, abandoned or verified, and never the loss of anything."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs
from support.coordinator_harness import small_spec
from support.installed_package import RULE, Site, of_page, plugin
from support.memory_blobs import MemoryBlobs
from support.memory_coordinator import TIMING, Hooks, MemoryCoordinator, until
from support.memory_store import MemoryMembership

from pluralllm.common.errors.tree import NotFound, PluginBroken, PluginMissing, StorageFull
from pluralllm.common.process.plugins import AGGREGATORS
from pluralllm.common.weights.layout import flat_values
from pluralllm.common.words.ids import ClientId
from pluralllm.server.aggregation.aggregator import aggregator
from pluralllm.server.commands import verify
from pluralllm.server.commands.verify import verify_state
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs import held_runs
from pluralllm.server.runs.coordinator import RETRY_S
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.storage.store import RoundOutcome

CLIENTS = ("ann", "ben", "cat")
RUN: dict[str, Any] = {
    "format": "pluralllm.run/2",
    "rounds": 3,
    "aggregation": of_page("aggregation"),
}
MISSING = "The run spec names the aggregator clamped-mean of town-hall-methods 1.0: this package is not installed."
FAILING = """
from pluralllm.server.aggregation.aggregator import Aggregator
def make(**_):
    return Aggregator(combine=lambda deltas, weights: open('/private/words'))
"""


HANGING = """
import pathlib, time
while not pathlib.Path(%r).exists(): time.sleep(0.005)
from pluralllm.server.aggregation.aggregator import Aggregator
def make(**_):
    return Aggregator()
"""


EVIL = r"""
def raised():
    raise type("\x1b" + "A" * 5000, (Exception,), {})
"""
UNMADE = """
def make(**_):
    raise LookupError
"""
UNUSABLE = "town-hall-methods 1.0 cannot be used: LookupError in line 3 of made.py"


class Gate:
    """A file that a package waits for while it is imported."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.module = HANGING % str(path)

    def open(self) -> None:
        self._path.touch()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


@pytest.fixture
def place(tmp_path: Path) -> MemoryCoordinator:
    return MemoryCoordinator(tmp_path)


def loads() -> list[bool]:
    """Returns of each thread in which a package loads whether it is a daemon."""
    return [thread.daemon for thread in threading.enumerate() if thread.name == "load of a plug-in"]


async def turn_until(place: MemoryCoordinator, holds: Callable[[], bool]) -> None:
    """Lets the loop of a coordinator turn again and again until a condition holds, at most twenty seconds."""

    def turned() -> bool:
        place.clock.advance(TIMING.tick_s)
        return holds()

    await until(turned)


async def deliver(place: MemoryCoordinator, run: LiveRun, clients: Sequence[str] = CLIENTS, seed: int = 0) -> None:
    for number, client in enumerate(clients, seed):
        await place.deliver(run, client, place.update(run, number))


async def findings(place: MemoryCoordinator) -> list[tuple[int, str]]:
    assert isinstance(place.parts.blobs, MemoryBlobs)
    report = await verify_state(
        place.parts.store, MemoryMembership(place.tables), place.parts.blobs, place.folder / "scratch"
    )
    return [(finding.invariant, finding.problem) for finding in report.findings]


async def test_a_run_goes_its_rounds_with_another_packages_aggregator_and_verify_makes_them_again(
    place: MemoryCoordinator, site: Site
) -> None:
    site.install("town_hall_methods")
    run = await place.collecting(*CLIENTS, **RUN)
    before = flat_values(await place.parts.blobs.path(run.newest.digest), run.layout)
    await deliver(place, run)
    deltas = [flat_values(place.folder / f"update-{number}", run.layout) for number in range(3)]
    await place.coordinator.until_averaged(run)
    assert run.newest.version == 1
    after = flat_values(await place.parts.blobs.path(run.newest.digest), run.layout)
    moved = aggregator(run.spec.aggregation).whole(np.stack(deltas), np.ones(3))
    assert np.allclose(after - before, moved, atol=1e-6)
    assert np.abs(moved - np.median(np.stack(deltas), axis=0)).max() < 1e-6, "of three, the ends move to the middle"
    assert await findings(place) == []
    site.uninstall()
    [(invariant, problem)] = await findings(place)
    assert invariant == 5
    assert problem.startswith(f"version 1 cannot be made again here: {MISSING}")
    assert "pip install 'town-hall-methods==1.0'" in problem


async def test_verify_does_without_a_package_where_nothing_can_be_made_again_and_checks_the_rest(
    place: MemoryCoordinator, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("town_hall_methods")
    run = await place.collecting(*CLIENTS, **RUN)
    updates = []
    for number in (1, 2):
        for client in CLIENTS:
            await place.hello(client)
        await place.look(run)
        await deliver(place, run, seed=10 * number)
        await place.coordinator.until_averaged(run)
        assert run.newest.version == number
        updates += [digest for _, digest, _ in run.newest.updates]
    site.uninstall()
    [(invariant, problem)] = await findings(place)
    assert (invariant, problem.split(":")[0]) == (5, "version 1 cannot be made again here"), "one problem for the run"
    with monkeypatch.context() as patch:
        patch.setattr(verify, "check_update", lambda *_: 7.0)
        others = [(invariant, problem) for invariant, problem in await findings(place) if "made again" not in problem]
        assert len(others) == 6
        assert all(invariant == 4 and "is 7, on record is" in problem for invariant, problem in others)
        patch.setattr(verify, "check_update", failing_check)
        assert [invariant for invariant, _ in await findings(place)] == [5, 7, 7], "an update that cannot be read"
    for digest in updates:
        await place.parts.blobs.delete(digest)
    assert await findings(place) == [], "no updates are kept, as for a built-in rule"


def failing_check(*_: object) -> float:
    raise OSError


async def test_verify_finds_a_package_that_makes_other_bits_or_fails(place: MemoryCoordinator, site: Site) -> None:
    site.install("town_hall_methods")
    run = await place.collecting(*CLIENTS, **RUN)
    await deliver(place, run)
    await place.coordinator.until_averaged(run)
    site.uninstall()
    site.install_module(AGGREGATORS, FAILING.replace("open('/private/words')", "deltas[0]"))
    assert await findings(place) == [(5, "version 1: aggregating again gives other bits of the model")]
    site.uninstall()
    site.install_module(AGGREGATORS, FAILING)
    [(invariant, problem)] = await findings(place)
    assert (invariant, problem.split(":")[0]) == (5, "version 1 cannot be made again here")
    assert "town-hall-methods 1.0 cannot be used: FileNotFoundError in line 4 of made.py" in problem


async def test_a_run_whose_package_is_not_here_is_not_created(place: MemoryCoordinator, site: Site) -> None:
    with pytest.raises(PluginMissing, match=r"not installed\. Install it on the coordinator's machine"):
        await place.new_run(**RUN)
    site.install("town_hall_methods", version="1.1")
    with pytest.raises(PluginMissing, match=r"version 1\.1 is installed\. .*pip install 'town-hall-methods==1\.0'"):
        await place.new_run(**RUN)
    refused = {"rule": "plugin", "plugin": plugin(RULE, "1.1", clamped="0")}
    with pytest.raises(PluginBroken, match=r"ValueError in line \d+ of town_hall_rules"):
        await place.new_run(**{**RUN, "aggregation": refused})
    with pytest.raises(NotFound):
        place.parts.runs.get("r")
    assert place.tables.runs == {}


async def test_after_a_restart_without_its_package_a_run_stays_as_it_is_and_goes_on_when_it_is_there(
    place: MemoryCoordinator, site: Site
) -> None:
    site.install("town_hall_methods")
    run = await place.collecting(*CLIENTS, **RUN)
    await place.new_run("other")
    await deliver(place, run, CLIENTS[:1])
    site.uninstall()
    place.clock.advance(10_000)  # every deadline is over

    following = await place.next_process()
    run, other = following.parts.runs.get("r"), following.parts.runs.get("other")
    events = run.sequence
    await following.look(run)
    await until(lambda: loads() == [])
    with pytest.raises(PluginMissing, match=r"clamped-mean of town-hall-methods 1\.0"):
        await following.look(run)
    await following.look(run)  # not before it is time
    assert run.sequence == events
    await deliver(following, run, CLIENTS[1:2], 1)
    assert (run.state.phase, len(run.state.receipts)) == (Phase.COLLECTING, 2), "what clients still send is kept"
    for client in ("dan", "eva"):
        await following.hello(client)
    await following.look(other)
    assert other.state.phase is Phase.EVALUATING, "the other run goes on"

    site.install("town_hall_methods")
    following.clock.advance(RETRY_S - 0.001)
    await following.look(run)
    await until(lambda: loads() == [])
    await following.look(run)
    assert run.sequence == events + 1, "it is tried again later"
    following.clock.advance(0.001)
    await following.look(run)
    await until(lambda: loads() == [])
    await following.look(run)
    await following.look(run)
    assert run.state.phase is Phase.COLLECTING, "its deadline begins anew"
    await deliver(following, run, CLIENTS[2:], 2)
    await following.coordinator.until_averaged(run)
    assert run.newest.version == 1
    for client in CLIENTS:
        await following.hello(client)
    await following.look(run)
    assert (run.state.phase, run.state.round) == (Phase.COLLECTING, 2), "it is a run as every other one"


async def test_the_loop_tells_why_a_run_is_held_and_lets_it_go_by_itself(place: MemoryCoordinator, site: Site) -> None:
    site.install("town_hall_methods")
    await place.new_run(**RUN)  # nobody is there, so nothing else happens to it
    site.uninstall()
    following = MemoryCoordinator(place.folder, clock=place.clock, tables=place.tables)
    with capture_logs() as logs:
        await following.coordinator.start()
        run = following.parts.runs.get("r")
        await turn_until(following, lambda: following.parts.troubles.of(run.id).startswith(MISSING))
        assert [line["problem"][: len(MISSING)] for line in logs if line["event"] == "run.in_trouble"] == [MISSING]
        assert "run.recovered" not in [line["event"] for line in logs]
        site.install("town_hall_methods")
        await turn_until(following, lambda: "run.recovered" in [line["event"] for line in logs])
    assert following.parts.troubles.of(run.id) == ""
    await following.stop()


async def test_a_held_run_that_is_cancelled_is_in_no_trouble(place: MemoryCoordinator, site: Site) -> None:
    site.install("town_hall_methods")
    await place.collecting(*CLIENTS, **RUN)
    site.uninstall()
    following = await place.next_process()
    run = following.parts.runs.get("r")
    following.coordinator._note_trouble(run, PluginBroken("aggregator", RULE, "town-hall-methods", "1.0", "it fails"))
    await following.coordinator.dispatch(run, ev.RunCancelled(following.clock.now_s(), "enough"))
    assert following.parts.troubles.of(run.id) == "", "nothing tries it again"


async def test_an_operators_step_leaves_a_held_run_held(place: MemoryCoordinator, site: Site) -> None:
    site.install("town_hall_methods")
    await place.coordinator.create_run("r", small_spec(**RUN).canonical_json())
    following = await place.next_process()
    run = following.parts.runs.get("r")
    await following.coordinator.steer(run, ev.RunStarted(following.clock.now_s()))
    assert loads() == [], "only the loop tries its package"


async def test_a_held_run_stays_held_until_its_return_is_durable(place: MemoryCoordinator, site: Site) -> None:
    site.install("town_hall_methods")
    await place.collecting(*CLIENTS, **RUN)
    following, hooks = await place.next_process(), Hooks()
    following.before = hooks
    run = following.parts.runs.get("r")
    following.clock.advance(run.spec.round.deadline_s + 1)  # the time for which it is held does not count
    await following.look(run)
    await until(lambda: loads() == [])
    with hooks.failing("store.apply", StorageFull(what="the database")), pytest.raises(StorageFull):
        await following.look(run)
    following.clock.advance(RETRY_S)
    await following.look(run)
    await until(lambda: loads() == [])
    await following.look(run)
    assert (run.state.phase, run.state.round, run.state.extensions) == (Phase.COLLECTING, 1, 0)
    assert (run.state.deadline_s or 0.0) > following.clock.now_s(), "its deadline begins anew"


async def test_a_package_that_is_broken_after_a_restart_costs_no_update_and_no_task(
    place: MemoryCoordinator, site: Site
) -> None:
    site.install("town_hall_methods")
    await deliver(place, await place.collecting(*CLIENTS, **RUN), CLIENTS[:1])
    site.uninstall()
    site.install_module(AGGREGATORS, UNMADE)
    following = MemoryCoordinator(place.folder, clock=place.clock, tables=place.tables)
    await following.coordinator.start()
    run, troubles = following.parts.runs.get("r"), following.parts.troubles
    tasks = [run.task_name(ClientId(client)) for client in CLIENTS]
    assert [following.parts.leases.is_held(task) for task in tasks] == [False, True, True], "who trains keeps its task"
    await turn_until(following, lambda: UNUSABLE in troubles.of(run.id))
    await deliver(following, run, CLIENTS[1:], 1)
    assert UNUSABLE in troubles.of(run.id), "an update does not mend it"
    async with asyncio.timeout(5):
        await following.coordinator.until_averaged(run)  # nothing is averaged
    assert (run.state.phase, len(run.state.receipts)) == (Phase.AGGREGATING, 3)
    site.uninstall()
    site.install("town_hall_methods")
    await turn_until(following, lambda: run.newest.version == 1)
    assert troubles.of(run.id) == ""
    await following.stop()


async def test_a_package_that_hangs_after_a_restart_holds_up_its_own_run_only(
    place: MemoryCoordinator, site: Site, gate: Gate
) -> None:
    site.install("town_hall_methods")
    await place.collecting(*CLIENTS, **RUN)
    await place.new_run("other")
    site.uninstall()
    site.install_module(AGGREGATORS, gate.module)
    following = await place.next_process()
    run, other = following.parts.runs.get("r"), following.parts.runs.get("other")
    async with asyncio.timeout(5):
        for client in ("dan", "eva"):
            await following.hello(client)
        await following.look(run)
        await following.look(other)
        assert other.state.phase is Phase.EVALUATING
        following.clock.advance(held_runs.LOAD_S - 0.001)
        await following.look(run)
        following.clock.advance(0.001)
        for _ in range(9):
            with pytest.raises(PluginBroken, match=r"town-hall-methods 1\.0 .* did not load within 10 s"):
                await following.look(run)
            following.clock.advance(RETRY_S)
    assert loads() == [True], "one thread, which does not keep the process alive"
    events = run.sequence
    gate.open()
    await until(lambda: loads() == [])
    await following.look(run)
    assert run.sequence > events


async def test_a_package_that_hangs_holds_up_no_other_new_run_and_is_refused_in_time(
    place: MemoryCoordinator, site: Site, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install_module(AGGREGATORS, gate.module)
    async with asyncio.timeout(5):
        creating = asyncio.create_task(place.new_run(**RUN))
        await until(lambda: loads() == [True])
        await place.new_run("other")
        monkeypatch.setattr(held_runs, "LOAD_S", 0.05)
        with pytest.raises(PluginBroken, match=r"did not load within 0\.05 s"):
            await place.new_run("third", **RUN)
        assert not creating.done()
        assert loads() == [True], "the calls for one package wait for one thread"
        gate.open()
        run = await creating
    site.uninstall()
    assert await place.coordinator.create_run("r", run.spec.canonical_json()) is run, "it exists, so nothing is checked"


async def test_a_package_that_fails_costs_the_round_and_its_words_stay_in_the_log(
    place: MemoryCoordinator, site: Site
) -> None:
    site.install_module(AGGREGATORS, FAILING)
    run = await place.collecting(*CLIENTS, **RUN)
    with capture_logs() as logs:
        await deliver(place, run)
        await until(lambda: run.state.phase is not Phase.AGGREGATING)
    [row] = await place.parts.store.rounds(run.id, None, 10)
    assert row.outcome is RoundOutcome.ABANDONED
    assert "aggregator clamped-mean of town-hall-methods 1.0 cannot be used: FileNotFoundError in line 4" in row.reason
    assert "private" not in row.reason
    [line] = [line for line in logs if line["event"] == "round.averaging_failed"]
    assert "/private/words" in str(line["exc_info"])
    assert run.newest.version == 0
    assert not run.is_over
    assert await findings(place) == []
    await place.look(run)
    assert (run.state.phase, run.state.round) == (Phase.COLLECTING, 2), "the next round begins"


async def test_what_a_package_calls_its_error_is_cut_and_printable(place: MemoryCoordinator, site: Site) -> None:
    module = FAILING.replace("open('/private/words')", "raised()")
    site.install_module(AGGREGATORS, module + EVIL)
    run = await place.collecting(*CLIENTS, **RUN)
    with capture_logs() as logs:
        await deliver(place, run)
        await until(lambda: run.state.phase is not Phase.AGGREGATING)
    [row] = await place.parts.store.rounds(run.id, None, 10)
    [line] = [line for line in logs if line["event"] == "round.averaging_failed"]
    for text in (row.reason, line["problem"]):
        assert r"\x1bAAA" in text
        assert text.isprintable()
        assert len(text) < 500


@pytest.mark.parametrize("module", ["", UNMADE])
async def test_a_package_that_is_removed_or_broken_under_a_round_keeps_its_updates_until_it_is_back(
    place: MemoryCoordinator, site: Site, module: str
) -> None:
    site.install("town_hall_methods")
    run = await place.collecting(*CLIENTS, **RUN)
    site.uninstall()
    if module:
        site.install_module(AGGREGATORS, module)
    await deliver(place, run)
    await until(lambda: place.parts.troubles.of(run.id) != "" or run.state.phase is not Phase.AGGREGATING)
    assert run.state.phase is Phase.AGGREGATING
    assert (UNUSABLE if module else MISSING) in place.parts.troubles.of(run.id)
    site.uninstall()
    site.install("town_hall_methods")
    place.clock.advance(RETRY_S)
    await place.coordinator.until_averaged(run)
    assert run.newest.version == 1
    assert np.isfinite(flat_values(await place.parts.blobs.path(run.newest.digest), run.layout)).all()
