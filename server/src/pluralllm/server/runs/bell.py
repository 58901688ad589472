"""Notifiers that wake the waiting calls when something has changed."""

import asyncio

from pluralllm.common.words.ids import ClientId


class Bell:
    """A notifier: it wakes the calls that wait for a change.

    A waiting call is woken by the next ring, or when the call's own time limit is over.
    """

    def __init__(self, *, closed: bool = False) -> None:
        self._waiting: set[asyncio.Future[None]] = set()  # one for each waiting call
        self.rings = 0  # a waiter compares it, and so misses no ring between looking and waiting
        self.closed = closed  # the process is about to stop: a call that is held answers now

    def ring(self) -> None:
        """Wakes every waiting call and adds 1 to `rings`, the number of rings so far."""
        self.rings += 1
        for waiting in self._waiting:
            _end(waiting)

    def close(self) -> None:
        """Wakes every waiting call and sets the attribute `closed`, because the process is about to stop."""
        self.closed = True
        self.ring()

    async def wait(self, heard: int, timeout_s: float) -> None:
        """Waits for the next ring.

        timeout_s: the longest wait in seconds. heard: the value of the attribute `rings` (the number of rings so far) that the
        caller read before it checked the state. If the notifier has rung since then, the method returns at once. So the caller
        misses no ring between check and wait.
        """
        if self.rings != heard or timeout_s <= 0:
            return
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()
        timer = loop.call_later(
            timeout_s, _end, waiting
        )  # asyncio.wait costs several times as much, for each held poll
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            timer.cancel()
            self._waiting.discard(waiting)


def _end(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_result(None)


class ClientBells:
    """One notifier for each client. A ring wakes only the waiting calls of this client."""

    def __init__(self) -> None:
        self._bells: dict[ClientId, Bell] = {}
        self._closed = False

    def of(self, client: ClientId) -> Bell:
        """Returns the client's notifier. The first call for a client makes the client's notifier."""
        if (bell := self._bells.get(client)) is None:
            bell = self._bells[client] = Bell(closed=self._closed)
        return bell

    def ring(self, client: ClientId) -> None:
        """Wakes every waiting call of the client."""
        self.of(client).ring()

    def close(self) -> None:
        """Wakes the waiting calls of all clients and closes all notifiers, because the process is about to stop."""
        self._closed = True
        for bell in self._bells.values():
            bell.close()
