"""When a call of Hello writes to the database."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.memory_store import MemoryStore, Tables

from pluralllm.common.errors.tree import StorageFull
from pluralllm.common.process.clock import FakeClock
from pluralllm.common.words.ids import ClientId, GroupName
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.runs.client_rows import SEEN_AGAIN_S, WRITTEN_AT_ONCE, WRITTEN_EACH_S, ClientRows
from pluralllm.server.storage.store import ClientRecord

ANN = ClientRecord(ClientId("ann"), GroupName("A"), GroupRole.TRAIN, 50, "1.0", 100.0, 100.0)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(Tables())


def seen(at_s: float) -> ClientRecord:
    return replace(ANN, created_s=at_s, last_seen_s=at_s)


async def turns() -> None:
    """Lets the other tasks go on until they wait for the clock."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_client_that_says_hello_again_with_nothing_new_writes_nothing(store: MemoryStore) -> None:
    rows = ClientRows(store, FakeClock())
    await rows.start()
    assert await rows.save(ANN)
    assert [await rows.save(seen(100.0 + number)) for number in (0, 1, SEEN_AGAIN_S - 1)] == [False] * 3
    await rows.write_times()
    assert await store.clients() == [ANN]
    assert not await rows.save(seen(100.0 + SEEN_AGAIN_S)), "its time is written later"
    await rows.write_times()
    later = replace(ANN, last_seen_s=100.0 + SEEN_AGAIN_S)
    assert await store.clients() == [later]
    assert (rows.get(ANN.client), rows.all()) == (later, (later,))


async def test_the_hellos_of_many_clients_after_a_restart_cost_a_few_transactions() -> None:
    writes: list[int] = []

    async def note(operation: str, about: object) -> None:
        if operation.startswith("store.save"):
            writes.append(len(about) if isinstance(about, dict) else 1)

    tables = Tables()
    many = [replace(ANN, client=ClientId(f"client-{number:04}")) for number in range(WRITTEN_AT_ONCE + 1)]
    for record in many:
        tables.clients[record.client] = record
    rows = ClientRows(MemoryStore(tables, note), FakeClock())
    await rows.start()
    at_s = 100.0 + SEEN_AGAIN_S
    assert not any([await rows.save(replace(record, last_seen_s=at_s)) for record in many])
    assert writes == []
    await rows.write_times()
    assert writes == [WRITTEN_AT_ONCE, 1]
    assert {record.last_seen_s for record in tables.clients.values()} == {at_s}
    await rows.write_times()
    assert writes == [WRITTEN_AT_ONCE, 1], "there is nothing left to write"


async def test_times_that_could_not_be_written_are_written_later() -> None:
    fails = True

    async def full(operation: str, _: object) -> None:
        if fails and operation == "store.save_last_seen":
            raise StorageFull(what="the database")

    store, clock = MemoryStore(Tables(), full), FakeClock()
    rows = ClientRows(store, clock)
    await rows.save(ANN)
    await rows.save(seen(100.0 + SEEN_AGAIN_S))
    keeping = asyncio.create_task(rows.keep_times())
    with capture_logs() as logs:
        await turns()
        clock.advance(WRITTEN_EACH_S)
        await turns()
    assert [entry["event"] for entry in logs] == ["clients.times_not_written"]
    fails = False
    clock.advance(WRITTEN_EACH_S)
    await turns()
    assert (await store.clients())[0].last_seen_s == 100.0 + SEEN_AGAIN_S
    keeping.cancel()


@pytest.mark.parametrize(
    "changes",
    [{"group": "B"}, {"role": GroupRole.HELD_OUT}, {"training_questions": 51}, {"software_version": "1.1"}],
)
async def test_a_client_with_other_facts_is_written_at_once(store: MemoryStore, changes: dict[str, Any]) -> None:
    rows = ClientRows(store, FakeClock())
    await rows.save(ANN)
    assert await rows.save(replace(seen(101.0), **changes))
    assert await store.clients() == [replace(ANN, last_seen_s=101.0, **changes)]


async def test_what_the_database_has_after_a_restart_is_not_written_again(store: MemoryStore) -> None:
    await ClientRows(store, FakeClock()).save(ANN)
    rows = ClientRows(store, FakeClock())
    await rows.start()
    assert not await rows.save(seen(101.0))
    assert await ClientRows(store, FakeClock()).save(seen(101.0)), "who has not read the rows writes"


async def test_a_clock_that_goes_back_does_not_keep_a_row_from_being_written(store: MemoryStore) -> None:
    rows = ClientRows(store, FakeClock())
    await rows.save(ANN)
    await rows.save(seen(50.0))
    await rows.write_times()
    assert (await store.clients())[0].last_seen_s == 50.0


class SlowStore(MemoryStore):
    """A store that writes a client's row only when the test lets it, and counts the writes that have begun."""

    def __init__(self) -> None:
        super().__init__(Tables())
        self.goes_on = asyncio.Event()
        self.begun: list[ClientId] = []

    async def save_client(self, record: ClientRecord) -> None:
        self.begun.append(record.client)
        await self.goes_on.wait()
        await super().save_client(record)


async def test_of_a_client_that_says_hello_many_times_at_once_one_write_waits_and_others_wait_for_none_of_it() -> None:
    store = SlowStore()
    rows = ClientRows(store, FakeClock())
    different = [replace(ANN, training_questions=number) for number in range(10)]
    of_ann = [asyncio.create_task(rows.save(record)) for record in (*different, *[different[-1]] * 10)]
    of_ben = asyncio.create_task(rows.save(replace(ANN, client=ClientId("ben"))))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert store.begun == ["ann", "ben"]
    store.goes_on.set()
    assert await of_ben
    assert await asyncio.gather(*of_ann) == [True] * 10 + [False] * 10
    assert store.begun.count(ClientId("ann")) == 10
    assert (await store.clients())[0].training_questions == 9
