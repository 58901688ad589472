"""Events that come in while a transaction is written share the next one, and nothing is answered before it is durable."""

import asyncio
from collections.abc import Sequence

import pytest
from support.bare_run import bare_run
from support.coordinator_harness import small_spec
from support.memory_store import MemoryStore, Tables

from pluralllm.common.errors.tree import PluralError, StorageFull, StoreFailed, WrongPhase
from pluralllm.server.rounds import events as ev
from pluralllm.server.runs import inbox as inbox_module
from pluralllm.server.runs.inbox import Inbox
from pluralllm.server.runs.live_run import LiveRun, Progress, next_step
from pluralllm.server.storage.store import Change


class SlowStore(MemoryStore):
    """A store that writes when a test lets it, notes the events of each transaction, and can refuse some."""

    def __init__(self) -> None:
        super().__init__(Tables())
        self.may_write = asyncio.Event()
        self.transactions: list[list[str]] = []
        self.refuses: dict[str, PluralError] = {}  # run: error

    async def apply(self, changes: Sequence[Change]) -> None:
        self.transactions.append([f"{change.run} {change.sequence}" for change in changes])
        await self.may_write.wait()
        for change in changes:
            if (error := self.refuses.get(change.run)) is not None:
                raise error
        await super().apply(changes)


@pytest.fixture
def store() -> SlowStore:
    return SlowStore()


async def a_run(store: MemoryStore, name: str = "r") -> LiveRun:
    return await bare_run(store, small_spec(), name)


async def puts(inbox: Inbox, *entries: tuple[LiveRun, ev.Event]) -> list[asyncio.Task[object]]:
    """Puts entries from as many callers, and returns when each of them waits."""
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(inbox.put(run, event)) for run, event in entries]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


def toggles(count: int) -> list[ev.Event]:
    return [ev.RunPaused(float(at)) if at % 2 else ev.RunResumed(float(at)) for at in range(1, count + 1)]


async def test_what_comes_in_meanwhile_is_written_in_one_transaction_in_the_order_of_the_calls(
    store: SlowStore,
) -> None:
    inbox, run, other = Inbox(store), await a_run(store), await a_run(store, "s")
    events = [(run, ev.RunStarted(0.0)), *((run, event) for event in toggles(4)), (other, ev.RunStarted(0.0))]
    tasks = await puts(inbox, *events)
    assert store.transactions == [["r 1"]]
    assert (run.sequence, [task.done() for task in tasks]) == (0, 6 * [False])
    store.may_write.set()
    await asyncio.gather(*tasks)
    assert store.transactions == [["r 1"], ["r 2", "r 3", "r 4", "r 5", "s 1"]]
    assert (run.sequence, run.state.paused, other.sequence) == (5, False, 1)
    kept = await store.events(run.id, 0, 10)
    assert [row.kind for row in kept] == ["RunStarted", "RunPaused", "RunResumed", "RunPaused", "RunResumed"]
    steps = [task.result() for task in tasks[:5]]
    assert [(step.before.sequence, step.after.sequence) for step in steps] == [(at, at + 1) for at in range(5)]  # type: ignore[attr-defined]


async def test_a_refused_entry_leaves_no_row_and_is_answered_with_the_transaction_that_it_follows_from(
    store: SlowStore,
) -> None:
    inbox, run = Inbox(store), await a_run(store)
    first, ended, refused, unchanged = await puts(
        inbox,
        (run, ev.RunStarted(0.0)),
        (run, ev.RunCancelled(1.0, "enough")),
        (run, ev.RunResumed(2.0)),
        (run, ev.ClockTicked(3.0)),
    )
    store.may_write.set()
    await first
    assert not refused.done()
    await ended
    with pytest.raises(WrongPhase):
        await refused
    assert await unchanged is None
    assert store.transactions == [["r 1"], ["r 2"]]
    assert run.is_over


async def test_entries_that_change_nothing_cost_no_transaction(store: SlowStore) -> None:
    inbox, run = Inbox(store), await a_run(store)
    assert await inbox.put(run, ev.ClockTicked(1.0)) is None
    assert store.transactions == []


async def test_a_full_disk_answers_every_entry_of_the_transaction_and_changes_no_run(store: SlowStore) -> None:
    inbox, run = Inbox(store), await a_run(store)
    store.refuses["r"] = StorageFull(what="the database")
    tasks = await puts(inbox, (run, ev.RunStarted(0.0)), (run, ev.RunStarted(1.0)), (run, ev.RunPaused(2.0)))
    before = run.progress
    store.may_write.set()
    assert [type(answer) for answer in await asyncio.gather(*tasks, return_exceptions=True)] == 3 * [StorageFull]
    assert (run.progress is before, store.transactions) == (True, [["r 1"], ["r 1", "r 2"]])
    store.refuses.clear()
    assert await inbox.put(run, ev.RunStarted(3.0)) is not None


async def test_what_the_database_refuses_costs_the_other_runs_nothing(store: SlowStore) -> None:
    inbox, run, bad = Inbox(store), await a_run(store), await a_run(store, "bad")
    store.refuses["bad"] = StoreFailed(problem="a value is out of range")
    first, failed, good = await puts(
        inbox, (run, ev.RunStarted(0.0)), (bad, ev.RunStarted(0.0)), (run, ev.RunPaused(1.0))
    )
    store.may_write.set()
    await asyncio.gather(first, good)
    with pytest.raises(StoreFailed):
        await failed
    assert (run.sequence, run.state.paused, bad.sequence) == (2, True, 0)
    assert store.transactions == [["r 1"], ["bad 1", "r 2"], ["bad 1"], ["r 2"]]


async def test_an_error_of_the_round_machine_is_the_answer_to_its_entry_alone(
    store: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(record: object, before: Progress, event: ev.Event, body: bytes) -> object:
        if isinstance(event, ev.RunPaused):
            raise ZeroDivisionError
        return next_step(record, before, event, body)  # type: ignore[arg-type]

    monkeypatch.setattr(inbox_module, "next_step", broken)
    inbox, run = Inbox(store), await a_run(store)
    tasks = await puts(inbox, (run, ev.RunStarted(0.0)), (run, ev.RunPaused(1.0)), (run, ev.RunCancelled(2.0, "x")))
    store.may_write.set()
    started, paused, cancelled = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(paused, ZeroDivisionError)
    assert not isinstance(started, Exception)
    assert not isinstance(cancelled, Exception)
    assert run.is_over


async def test_a_transaction_has_a_bound_and_every_entry_gets_its_turn(
    store: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_module, "MAX_ENTRIES", 3)
    inbox, run = Inbox(store), await a_run(store)
    tasks = await puts(inbox, (run, ev.RunStarted(0.0)), *((run, event) for event in toggles(7)))
    store.may_write.set()
    await asyncio.gather(*tasks)
    assert [len(transaction) for transaction in store.transactions] == [1, 3, 3, 1]


async def test_an_event_whose_caller_hangs_up_is_written_all_the_same(store: SlowStore) -> None:
    inbox, run = Inbox(store), await a_run(store)
    first, second = await puts(inbox, (run, ev.RunStarted(0.0)), (run, ev.RunPaused(1.0)))
    for task in (first, second):
        task.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    store.may_write.set()
    await inbox.put(run, ev.RunResumed(2.0))
    assert [row.kind for row in await store.events(run.id, 0, 10)] == ["RunStarted", "RunPaused", "RunResumed"]


async def test_a_hundred_callers_need_two_transactions() -> None:
    written = []

    async def takes_a_turn(operation: str, about: object) -> None:
        if operation == "store.apply":
            written.append(about)
            await asyncio.sleep(0)

    store = MemoryStore(Tables(), takes_a_turn)
    inbox, run = Inbox(store), await a_run(store)
    await asyncio.gather(inbox.put(run, ev.RunStarted(0.0)), *(inbox.put(run, event) for event in toggles(99)))
    assert run.sequence == 100
    assert len(written) == 2
