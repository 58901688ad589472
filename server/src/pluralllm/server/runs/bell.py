"""Wakes the calls that wait until something changes."""

import asyncio

from pluralllm.common.words.ids import ClientId


class Bell:
    """Each waiter waits for the next ring only, and never longer than it asks for."""

    def __init__(self, *, closed: bool = False) -> None:
        self._next: asyncio.Future[None] | None = None
        self.rings = 0  # a waiter compares it, and so misses no ring between looking and waiting
        self.closed = closed  # the process is about to stop: a call that is held answers now

    def ring(self) -> None:
        """Wakes every waiter."""
        self.rings += 1
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    def close(self) -> None:
        """Wakes every waiter for the last time."""
        self.closed = True
        self.ring()

    async def wait(self, heard: int, timeout_s: float) -> None:
        """Returns at once if the bell has rung since `heard`, else at the next ring or after `timeout_s`."""
        if self.rings != heard or timeout_s <= 0:
            return
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._next], timeout=timeout_s)


class ClientBells:
    """A bell for each client, so that a change wakes only the client that it concerns."""

    def __init__(self) -> None:
        self._bells: dict[ClientId, Bell] = {}
        self._closed = False

    def of(self, client: ClientId) -> Bell:
        """The client's bell, made when it is first asked for."""
        if (bell := self._bells.get(client)) is None:
            bell = self._bells[client] = Bell(closed=self._closed)
        return bell

    def ring(self, client: ClientId) -> None:
        """Wakes this client's waiters."""
        self.of(client).ring()

    def close(self) -> None:
        """Wakes the waiters of all clients for the last time."""
        self._closed = True
        for bell in self._bells.values():
            bell.close()
