"""A TCP proxy that can cut, slow down, hold, lose and flap connections; one event loop in a thread serves all links."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

PIECE_BYTES = 16 * 1024
CONNECT_LIMIT_S = 5.0


@dataclass(eq=False, slots=True)
class Passage:
    """One connection with both of its ends."""

    ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    is_lost: bool = False  # bytes that go in never come out, and neither end is notified

    def cut(self) -> None:
        """Resets the connection, as a machine does that has lost its state."""
        for end in self.ends:
            end.transport.abort()


@dataclass(eq=False)
class Link:
    """A proxy from 127.0.0.1:port to a target. Every method may be called from any thread."""

    target: tuple[str, int]
    loop: asyncio.AbstractEventLoop
    address: str = ""
    _passages: set[Passage] = field(default_factory=set)
    _ways: tuple[asyncio.Event, asyncio.Event] = field(default_factory=lambda: (asyncio.Event(), asyncio.Event()))
    _piece_takes_s: float = 0.0
    _left: int | None = None  # the number of bytes to the target before the link cuts

    async def start(self) -> asyncio.Server:
        for way in self._ways:
            way.set()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    def cut(self) -> None:
        """Cuts every connection; new connections work at once."""
        self._soon(self._cut)

    def cut_after(self, count: int) -> None:
        """Cuts every connection after `count` more bytes have gone to the target."""
        self._soon(lambda: setattr(self, "_left", count))

    def slow(self, piece_takes_s: float) -> None:
        """Delays each piece of up to 16 KiB by so many seconds; 0 means no delay."""
        self._soon(lambda: setattr(self, "_piece_takes_s", piece_takes_s))

    def hold(self, *, there: bool, back: bool) -> None:
        """Holds the bytes in one or both directions, without loss, until `heal`: TCP repeats what a network has lost."""

        def change() -> None:
            for way, held in zip(self._ways, (there, back), strict=True):
                way.clear() if held else way.set()

        self._soon(change)

    def lose(self) -> None:
        """Makes today's connections silent: they bring no byte again and do not end; new connections work."""

        def change() -> None:
            for passage in self._passages:
                passage.is_lost = True

        self._soon(change)

    def heal(self) -> None:
        """Ends all faults; connections that had lost bytes are cut."""

        def change() -> None:
            self._piece_takes_s, self._left = 0.0, None
            for passage in list(self._passages):
                if passage.is_lost:
                    passage.cut()
            for way in self._ways:
                way.set()

        self._soon(change)

    def _soon(self, change: Callable[[], object]) -> None:
        self.loop.call_soon_threadsafe(change)

    def _cut(self) -> None:
        for passage in list(self._passages):
            passage.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                there = await asyncio.open_connection(*self.target)
        except OSError:  # TimeoutError is an OSError
            writer.transport.abort()
            return
        passage = Passage((writer, there[1]))
        self._passages.add(passage)
        try:
            await asyncio.gather(
                self._pass(passage, reader, there[1], counted=True),
                self._pass(passage, there[0], writer, counted=False),
            )
        finally:
            passage.cut()
            self._passages.discard(passage)

    async def _pass(
        self, passage: Passage, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, counted: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(PIECE_BYTES):
                if self._piece_takes_s:
                    await asyncio.sleep(self._piece_takes_s)
                await self._ways[0 if counted else 1].wait()
                if passage.is_lost:
                    continue
                if counted and self._left is not None:
                    self._left -= len(data)
                    if self._left <= 0:
                        self._left = None
                        self._cut()
                        return
                sink.write(data)
                await sink.drain()
        if not passage.is_lost:
            with contextlib.suppress(OSError):
                sink.write_eof()


class Links:
    """Creates links and closes all of them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._made: list[Link] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="links")
        self._thread.start()

    def to(self, address: str) -> Link:
        host, _, port = address.rpartition(":")
        link = Link((socket.gethostbyname(host), int(port)), self._loop)
        self._servers.append(asyncio.run_coroutine_threadsafe(link.start(), self._loop).result(10))
        self._made.append(link)
        return link

    def heal(self) -> None:
        for link in self._made:
            link.heal()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
