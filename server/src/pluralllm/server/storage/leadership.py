"""Lets only one of several coordinators on a PostgreSQL database serve.

One coordinator holds an advisory lock, and the other coordinators stand by. The lock decides which coordinator may begin. The
generation, a number in the database, protects the data: every transaction checks the generation (sql_store.py). So a
coordinator with an old generation can neither read nor write, even if it was suspended for a long time.
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

LOCK = 0x506C7572616C4C4C  # "PluralLL" in ASCII; PostgreSQL keeps such locks apart for each database
LOOK_EVERY_S = 1.0
LOOK_LIMIT_S = 5.0
# PostgreSQL 14 and later ends the session of a leader that no longer checks its lock, for example because its process is paused.
IDLE_LIMIT = "8s"
REFUSED_LIMIT_S = 10.0  # longer than IDLE_LIMIT


class Leadership:
    """The advisory lock in a PostgreSQL database, which a coordinator must hold to serve. `leading` takes and frees the lock.

    SQLite needs no such lock: an SQLite file is on one machine, where the lock on the state directory keeps a second coordinator
    out.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._connection: AsyncConnection | None = None

    async def take(self, *, wait: bool) -> None:
        """Takes the lock. If another coordinator holds the lock and `wait` is true, waits until the lock is free.

        Raises InUse if another coordinator holds the lock and `wait` is false; StoreFailed if the database does not answer at the
        first attempt.
        """
        if await self._try():
            return
        if not wait:
            raise InUse(what="The database", by="a coordinator that serves from it")
        log.info("server.standing_by", reason="another coordinator serves from this database")
        taken = False
        while not taken:
            await asyncio.sleep(LOOK_EVERY_S)
            with contextlib.suppress(StoreFailed):  # the database does not answer for a moment
                taken = await self._try()

    async def until_lost(self) -> None:
        """Returns when another coordinator holds the lock. While the database does not answer, the method waits.

        When a connection breaks, the database may keep the old session and its lock for some seconds. So the lock
        counts as lost only if the database refuses the lock for longer than REFUSED_LIMIT_S. The delay is safe: a coordinator
        that begins meanwhile increases the generation in the database, and this coordinator's next transaction fails.
        """
        refused_s: float | None = None  # time of the first refusal since the lock was ours
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
        """Tries to take the lock on a new connection. Returns whether this process holds the lock now.

        Raises StoreFailed if the database does not answer.
        """
        try:
            async with asyncio.timeout(LOOK_LIMIT_S + 10):
                await self.release()
                connection = await self._engine.connect()
                self._connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
                answer = await self._connection.execute(sa.select(sa.func.pg_try_advisory_lock(LOCK)))
                if not (is_ours := bool(answer.scalar())):
                    await self.release()
                return is_ours
        except (DBAPIError, TimeoutError) as error:
            raise StoreFailed(problem=str(getattr(error, "orig", "no answer in time")).strip()) from error

    async def release(self) -> None:
        """Closes the connection to the database, which frees the lock."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(DBAPIError):
                await connection.invalidate()
                await connection.close()


@contextlib.asynccontextmanager
async def leading(url: sa.URL, *, wait: bool) -> "AsyncIterator[Leadership | None]":
    """Runs the block while this process holds the lock that lets a coordinator serve, and frees the lock when the block ends.

    Yields the lock; None for SQLite, which needs no lock. wait: whether to wait while another coordinator holds the lock.
    Raises InUse if `wait` is false and another coordinator holds the lock; StoreFailed if the database does not answer.
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
    """Holds the coordinators' lock during the block, so that no coordinator serves while a command uses the database.

    For SQLite the function takes no lock. During the block a task checks the lock again and again, because PostgreSQL ends a
    session that is silent for too long. Raises InUse while a coordinator serves; StoreFailed if the database does not answer.
    """
    async with leading(url, wait=False) as leadership:
        looking = None if leadership is None else asyncio.create_task(leadership.until_lost())
        try:
            yield
        finally:
            if looking is not None:
                looking.cancel()
                await asyncio.wait([looking])
