"""Of several coordinators on one PostgreSQL database one serves: it holds an advisory lock, the others stand by.

The lock says who may begin; what makes it safe is the generation in the database, which every transaction looks at
(sql_store.py): who was overtaken, however late it wakes up, writes and reads nothing more.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from pluralllm.common.errors.tree import InUse, StoreFailed
from pluralllm.server.storage.sql_engine import new_engine

log = structlog.get_logger()

LOCK = 0x506C7572616C4C4C  # "PluralLL": one for each database
LOOK_EVERY_S = 1.0
LOOK_LIMIT_S = 5.0
# The database ends the session of a leader that no longer looks, for one because its process is paused (PostgreSQL 14 and later).
IDLE_LIMIT = "8s"
REFUSED_LIMIT_S = 10.0  # above that


class Leadership:
    """See `leading`. Of SQLite, which is one machine's file, the lock on the state directory already says all this."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._connection: AsyncConnection | None = None

    async def take(self, *, wait: bool) -> None:
        """Until the lock is ours. Raises StoreFailed if there is no database at the start, InUse if it is not to wait."""
        if await self._try():
            return
        if not wait:
            raise InUse(what="The database", by="a coordinator that serves from it")
        log.info("server.standing_by", reason="another coordinator serves from this database")
        taken = False
        while not taken:
            await asyncio.sleep(LOOK_EVERY_S)
            with contextlib.suppress(StoreFailed):  # the database is away for a moment
                taken = await self._try()

    async def until_lost(self) -> None:
        """While the lock is ours, or nobody else's: a database that was away is waited for.

        When our connection broke, its session may hold the lock for some seconds more: only who is refused for longer has lost
        it. Safe all the while: who begins meanwhile counts the generation on, and our next transaction finds that.
        """
        refused_s: float | None = None  # since when
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if await self._holds():
                continue
            try:
                if await self._try():
                    refused_s = None
                    log.warning("server.lock_taken_again", reason="the database ended the connection that held it")
                    continue
            except StoreFailed as error:
                refused_s = None
                log.warning("server.database_away", problem=error.problem)
                continue
            now_s = asyncio.get_running_loop().time()
            refused_s = now_s if refused_s is None else refused_s
            if now_s - refused_s > REFUSED_LIMIT_S:
                return

    async def _holds(self) -> bool:
        if self._connection is None:
            return False
        try:
            async with asyncio.timeout(LOOK_LIMIT_S):
                await self._connection.execute(sa.text("SELECT 1"))
        except (DBAPIError, TimeoutError):
            return False
        return True

    async def _try(self) -> bool:
        """Whether the lock is ours now. Raises StoreFailed."""
        try:
            async with asyncio.timeout(LOOK_LIMIT_S + 10):
                await self.release()
                connection = await self._engine.connect()
                self._connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
                found = await self._connection.execute(sa.select(sa.func.pg_try_advisory_lock(LOCK)))
                if not (is_ours := bool(found.scalar())):
                    await self.release()
                return is_ours
        except (DBAPIError, TimeoutError) as error:
            raise StoreFailed(problem=str(getattr(error, "orig", "no answer in time")).strip()) from error

    async def release(self) -> None:
        """The lock goes with its connection."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(DBAPIError):
                await connection.invalidate()
                await connection.close()


@contextlib.asynccontextmanager
async def leading(url: sa.URL, *, wait: bool) -> "AsyncIterator[Leadership | None]":
    """Begins when this process is the one that serves; lets go when the block ends. None for SQLite.

    Raises StoreFailed, or InUse if another one serves and it is not to `wait`.
    """
    if url.get_backend_name() != "postgresql":
        yield None
        return
    engine = new_engine(url, idle_session_timeout=IDLE_LIMIT)
    leadership = Leadership(engine)
    try:
        await leadership.take(wait=wait)
        yield leadership
    finally:
        await leadership.release()
        await engine.dispose()


@contextlib.asynccontextmanager
async def alone(url: sa.URL) -> AsyncIterator[None]:
    """For a command: no coordinator begins on the database meanwhile. Raises StoreFailed, or InUse while one serves.

    The lock is looked after all the while: the database ends the session of a leader that does not look.
    """
    async with leading(url, wait=False) as leadership:
        looking = None if leadership is None else asyncio.create_task(leadership.until_lost())
        try:
            yield
        finally:
            if looking is not None:
                looking.cancel()
                await asyncio.wait([looking])
