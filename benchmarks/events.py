"""Measures how many events a second the coordinator makes durable, from concurrent callers and from one caller.

    .venv/bin/python benchmarks/events.py [--callers 100] [--updates 2000] [--repeats 3] [--postgresql URL]

Each caller delivers updates of a round of `--updates` clients through the inbox, one after another, and each waits until its
event is durable: SQLite syncs the disk in each transaction, PostgreSQL its log. The updates are announcements only; nothing is
sent or averaged. `1 caller` is what a coordinator without group commit would do. --postgresql names an empty database; without
it the benchmark starts one, if PostgreSQL is installed or in a Python wheel. Figures are medians of the repeats.
"""

import argparse
import asyncio
import contextlib
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pluralllm.common.words.ids import ClientId, Digest, RoundNumber
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.inbox import Inbox
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.storage.sql_store import SqlStore, open_store
from pluralllm.server.storage.store import Change

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support import real_stores  # the tests start a PostgreSQL of their own, too
from support.bare_run import bare_run, evaluate_first_version


class CountedStore(SqlStore):
    """The store in SQL; it counts transactions."""

    transactions = 0

    async def apply(self, changes: Sequence[Change]) -> None:
        self.transactions += 1
        await super().apply(changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, default=100, help="Callers at the same time.")
    parser.add_argument("--updates", type=int, default=2000, help="Updates that they deliver together.")
    parser.add_argument("--repeats", type=int, default=3, help="Repetitions; the median counts.")
    parser.add_argument("--postgresql", help="URL of an empty database: postgresql://...")
    chosen = parser.parse_args()
    print("| store | callers | events a second | events a transaction | CPU of an event, ms |")
    print("|---|---|---|---|---|")
    with contextlib.ExitStack() as stack:
        for store, urls in (("SQLite", sqlite(stack)), ("PostgreSQL", postgresql(chosen.postgresql, stack))):
            for callers, updates in ((1, max(20, chosen.updates // 20)), (chosen.callers, chosen.updates)):
                measured = [asyncio.run(measure(next(urls), callers, updates)) for _ in range(chosen.repeats)]
                rate, batch, cpu_ms = (statistics.median(each) for each in zip(*measured, strict=True))
                print(f"| {store} | {callers} | {rate:,.0f} | {batch:.0f} | {cpu_ms:.2f} |", flush=True)


def sqlite(stack: contextlib.ExitStack) -> Iterator[str]:
    """Yields URLs of new databases."""
    while True:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        yield f"sqlite+aiosqlite:///{folder}/events.sqlite3"


def postgresql(named_url: str | None, stack: contextlib.ExitStack) -> Iterator[str]:
    """Yields URLs of new databases, or always the given one: the names of the runs differ."""
    server = None if named_url else stack.enter_context(real_stores.postgres())
    while True:
        url = named_url or (server.new_database() if server is not None else "")
        yield url.replace("postgresql:", "postgresql+psycopg:", 1)


async def measure(url: str, callers: int, updates: int) -> tuple[float, float, float]:
    """Returns events a second, events a transaction, and milliseconds of this process's CPU an event."""
    opened = await open_store(url)
    opened.__class__ = CountedStore
    store: CountedStore = opened  # type: ignore[assignment]
    try:
        run = await open_round(store, updates)
        inbox, names = Inbox(store), iter(run.state.cohort)
        store.transactions = 0

        async def caller() -> None:
            for name in names:  # each takes the next one
                receipt = ev.Receipt(name, Digest(hashlib.sha256(name.encode()).hexdigest()), 50, 0.2, 1.0)
                await inbox.put(run, ev.UpdateArrived(1.0, RoundNumber(1), run.state.version, receipt))

        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*(caller() for _ in range(callers)))
        took_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
        assert len(run.state.receipts) == updates
        return updates / took_s, updates / store.transactions, 1000 * cpu_s / updates
    finally:
        await store.close()


async def open_round(store: SqlStore, clients: int) -> LiveRun:
    """Returns a run whose first round waits for the updates of `clients` clients."""
    names = tuple(ClientId(f"client-{number:05}") for number in range(clients))
    spec = RunSpec.model_validate(
        {
            "rounds": 2,
            "round": {"min_clients": clients, "target_clients": clients, "evaluate_every": 10},
            "embedding": {"model": "none", "dimension": 8},
        }
    )
    run = await bare_run(store, spec, f"run-{time.time_ns():x}")
    inbox = Inbox(store)
    await evaluate_first_version(inbox, run, names)
    await inbox.put(run, ev.ClientsSeen(1.0, names, ()))
    assert run.state.phase is Phase.COLLECTING, run.state.phase
    return run


if __name__ == "__main__":
    main()
