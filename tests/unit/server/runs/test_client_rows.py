"""When a call of Hello writes to the database."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from support.memory_store import MemoryStore, Tables

from pluralllm.common.words.ids import ClientId, GroupName
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.runs.client_rows import SEEN_AGAIN_S, ClientRows
from pluralllm.server.storage.store import ClientRecord

ANN = ClientRecord(ClientId("ann"), GroupName("A"), GroupRole.TRAIN, 50, "1.0", 100.0, 100.0)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(Tables())


def seen(at_s: float) -> ClientRecord:
    return replace(ANN, created_s=at_s, last_seen_s=at_s)


async def test_a_client_that_says_hello_again_with_nothing_new_writes_nothing(store: MemoryStore) -> None:
    rows = ClientRows(store)
    await rows.start()
    assert await rows.save(ANN)
    assert [await rows.save(seen(100.0 + number)) for number in (0, 1, SEEN_AGAIN_S - 1)] == [False] * 3
    assert await store.clients() == [ANN]
    assert await rows.save(seen(100.0 + SEEN_AGAIN_S))
    assert await store.clients() == [replace(ANN, last_seen_s=100.0 + SEEN_AGAIN_S)]


@pytest.mark.parametrize(
    "changes",
    [{"group": "B"}, {"role": GroupRole.HELD_OUT}, {"training_questions": 51}, {"software_version": "1.1"}],
)
async def test_a_client_with_other_facts_is_written_at_once(store: MemoryStore, changes: dict[str, Any]) -> None:
    rows = ClientRows(store)
    await rows.save(ANN)
    assert await rows.save(replace(seen(101.0), **changes))
    assert await store.clients() == [replace(ANN, last_seen_s=101.0, **changes)]


async def test_what_the_database_has_after_a_restart_is_not_written_again(store: MemoryStore) -> None:
    await ClientRows(store).save(ANN)
    rows = ClientRows(store)
    await rows.start()
    assert not await rows.save(seen(101.0))
    assert await ClientRows(store).save(seen(101.0)), "who has not read the rows writes"


async def test_a_clock_that_goes_back_does_not_keep_a_row_from_being_written(store: MemoryStore) -> None:
    rows = ClientRows(store)
    await rows.save(ANN)
    assert await rows.save(seen(50.0))


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
    rows = ClientRows(store)
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
