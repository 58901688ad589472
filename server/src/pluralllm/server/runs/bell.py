"""Wakes everybody who waits for "something changed"."""

import asyncio
from collections import defaultdict

from pluralllm.common.words.ids import ClientId


class Bell:
    """Each waiter waits for the next ring only, and never longer than it says."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None
        self.rings = 0  # lets a waiter see that it missed none between looking and waiting

    def ring(self) -> None:
        self.rings += 1
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    async def wait(self, heard: int, timeout_s: float) -> None:
        """Returns at once if it rang since `heard`, else at the next ring or after `timeout_s`."""
        if self.rings != heard or timeout_s <= 0:
            return
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._next], timeout=timeout_s)


class ClientBells:
    """One for each client, so that of a thousand who wait only the one wakes whom something concerns."""

    def __init__(self) -> None:
        self._bells: defaultdict[ClientId, Bell] = defaultdict(Bell)

    def of(self, client: ClientId) -> Bell:
        return self._bells[client]

    def ring(self, client: ClientId) -> None:
        self._bells[client].ring()

    def ring_all(self) -> None:
        for bell in self._bells.values():
            bell.ring()
