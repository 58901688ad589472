"""The leader over a PostgreSQL database, and the loss of its lead."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import psycopg
import pytest
import sqlalchemy as sa
from support.real_stores import Postgres

from pluralllm.common.errors.tree import InUse
from pluralllm.server.storage.leadership import LOCK, alone, leading


@pytest.fixture
def database(postgres: Postgres) -> str:
    return postgres.new_database()


def url_of(database: str) -> sa.URL:
    return sa.make_url(database).set(drivername="postgresql+psycopg")


@contextlib.asynccontextmanager
async def looked_after(database: str) -> AsyncIterator["asyncio.Task[None]"]:
    """Yields the task that ends when the lead is lost."""
    async with leading(url_of(database), wait=False) as leadership:
        assert leadership is not None
        until_lost = asyncio.create_task(leadership.until_lost())
        yield until_lost
        until_lost.cancel()
        await asyncio.wait([until_lost])


def end_sessions_and_take_the_lock(database: str) -> "psycopg.Connection[tuple[object, ...]]":
    """Lets another session hold the lock: a second leader's, or our own whose end the server has not noticed."""
    other = psycopg.connect(database, autocommit=True)
    others = "pid <> pg_backend_pid() AND datname = current_database()"
    other.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}").fetchall()
    assert other.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,)).fetchone() == (True,)
    return other


async def test_a_lock_that_an_ended_session_holds_for_a_moment_is_taken_again(database: str) -> None:
    async with looked_after(database) as until_lost:
        await asyncio.sleep(0.2)
        other = await asyncio.to_thread(end_sessions_and_take_the_lock, database)
        await asyncio.sleep(3)
        assert not until_lost.done()
        other.close()
        await asyncio.sleep(2)
        assert not until_lost.done()
        with pytest.raises(InUse):
            async with leading(url_of(database), wait=False):
                pass


async def test_a_lock_that_another_keeps_is_lost(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pluralllm.server.storage.leadership.REFUSED_LIMIT_S", 1.0)
    async with looked_after(database) as until_lost:
        other = await asyncio.to_thread(end_sessions_and_take_the_lock, database)
        await asyncio.wait_for(until_lost, 20)
        other.close()


async def test_a_command_keeps_the_lock_for_longer_than_an_idle_session_may_live(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pluralllm.server.storage.leadership.IDLE_LIMIT", "2s")
    async with alone(url_of(database)):
        await asyncio.sleep(4)
        with pytest.raises(InUse):
            async with alone(url_of(database)):
                pass
