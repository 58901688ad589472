"""Group commit: events that come in while a transaction is being written share the next transaction.

    waiting  --drain-->  folded through the round machine  --one transaction-->  durable  -->  answered

An entry that the round machine refuses leaves no row. No entry is answered before the transaction of its drain is durable, a
refused one neither: the refusal may follow from an entry before it, for example from a round that this one has closed.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pluralllm.common.errors.tree import StoreFailed
from pluralllm.common.words.ids import RunId
from pluralllm.server.process.cancellation import unbroken
from pluralllm.server.rounds import events as ev
from pluralllm.server.runs.live_run import LiveRun, Step, next_step
from pluralllm.server.storage.store import Change, Store

MAX_ENTRIES = 1000  # of one transaction, so that no answer waits for a transaction without a bound


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """An event that waits for its place in a run's event log, and the answer to come: a step, or None if nothing changes."""

    run: LiveRun
    event: ev.Event
    body: bytes = b""  # the message that has arrived with the event
    answer: "asyncio.Future[Step | None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Inbox:
    """The one way into the event logs of all runs of a process. Only a drain changes a run, and one drain works at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[Entry] = deque()
        self._turn = asyncio.Lock()

    @unbroken
    async def put(self, run: LiveRun, event: ev.Event, body: bytes = b"") -> Step | None:
        """Passes one event to the run's round machine and makes the result durable before it returns.

        body: the message of a private round that has arrived with the event; it is stored in the same transaction.
        Returns the step, or None if the event changes nothing. Raises a subclass of Refused if the round machine does not allow
        the event; StoreFailed, StorageFull or Overtaken if the store cannot write. After an error of the store, the runs of all
        entries of the transaction are unchanged. Events have the order of their calls.
        """
        entry = Entry(run, event, body)
        self._waiting.append(entry)
        async with (
            self._turn
        ):  # turns have the order of the entries, so a drain answers its own caller, and others who wait
            if not entry.answer.done():
                await self.drain()
        return entry.answer.result()

    async def drain(self) -> None:
        """Makes the entries that wait durable in one transaction, and answers them."""
        await self._write([self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_ENTRIES))])

    async def _write(self, entries: Sequence[Entry]) -> None:
        outcomes, changes = _fold(entries)
        try:
            if changes:
                await self._store.apply(changes)
        except Exception as error:  # noqa: BLE001 - it is the answer to the entries
            if isinstance(error, StoreFailed) and len(entries) > 1:  # what the database refuses costs one run, not all
                for entry in entries:
                    await self._write([entry])
            else:
                for entry in entries:
                    entry.answer.set_exception(error)
            return
        # The events are durable: what follows must not fail, so that memory agrees with the store.
        for entry, outcome in zip(entries, outcomes, strict=True):
            if isinstance(outcome, Exception):
                entry.answer.set_exception(outcome)
                continue
            if outcome is not None:
                entry.run.take(outcome)
            entry.answer.set_result(outcome)


def _fold(entries: Sequence[Entry]) -> tuple[list[Step | Exception | None], list[Change]]:
    """Passes entries to the round machines of their runs, one after another, and changes no run.

    Returns the answer to each entry, and the rows to write.
    """
    steps_of: dict[RunId, list[Step]] = {}  # in this drain
    outcomes: list[Step | Exception | None] = []
    changes = []
    for entry in entries:
        run, steps = entry.run, steps_of.setdefault(entry.run.id, [])
        try:
            made = next_step(run.record, steps[-1].after if steps else run.progress, entry.event, entry.body)
        except Exception as error:  # noqa: BLE001 - it is the answer to this entry, and the others go on
            outcomes.append(error)
            continue
        if made is None:
            outcomes.append(None)
            continue
        step, change = made
        steps.append(step)
        outcomes.append(step)
        changes.append(replace(change, checkpoint=run.checkpoint_after(steps)) if step.needs_checkpoint else change)
    return outcomes, changes
