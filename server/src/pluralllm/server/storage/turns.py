"""Lets one transaction after another use the database's connection. Reads go before the writes that wait."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

READS_IN_A_ROW = 20  # while a write waits; then the write has its turn


class Turns:
    """The turns of transactions. A read waits for the transaction under way, and not for all writes that have come before it.

    So a member whose calls write much does not delay the calls of others that only read. Reads and reads, and writes and writes,
    keep their order.
    """

    def __init__(self) -> None:
        self._is_taken = False
        self._reads: deque[asyncio.Future[None]] = deque()
        self._writes: deque[asyncio.Future[None]] = deque()
        self._reads_in_a_row = 0

    @contextlib.asynccontextmanager
    async def turn(self, *, reads: bool = False) -> AsyncIterator[None]:
        """Waits for the turn, and keeps it until the block ends. reads: whether the transaction only reads."""
        await self._wait(self._reads if reads else self._writes)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, queue: deque[asyncio.Future[None]]) -> None:
        if not self._is_taken:
            self._is_taken = True
            return
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):  # _pass_on may have skipped it
                    queue.remove(turn)
            else:  # the turn had come in the same moment
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._reads or self._writes:
            is_read = bool(self._reads) and (not self._writes or self._reads_in_a_row < READS_IN_A_ROW)
            turn = (self._reads if is_read else self._writes).popleft()
            if not turn.done():
                self._reads_in_a_row = self._reads_in_a_row + 1 if is_read else 0
                turn.set_result(None)
                return
        self._is_taken, self._reads_in_a_row = False, 0
