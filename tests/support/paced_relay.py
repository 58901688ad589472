"""A TCP relay that passes bytes on at a steady speed, as a slow link does."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

PIECE_BYTES = 2048
BUFFER_BYTES = 8192  # a large buffer would take at once what the link carries in seconds


class PacedRelay:
    """A relay to one address. The speeds may change at any time; all connections of one direction share its speed."""

    def __init__(self, target: str, to_bytes_s: float, from_bytes_s: float) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.bytes_s = {"to": to_bytes_s, "from": from_bytes_s}
        self.passed_bytes = {"to": 0, "from": 0}
        self._free_s = {"to": 0.0, "from": 0.0}
        self._moved = asyncio.Condition()
        self._connections: set[asyncio.Task[None]] = set()
        self.address = ""

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target, limit=BUFFER_BYTES)
        except OSError:
            writer.transport.abort()
            return
        ways = [self._pace(reader, far_writer, "to"), self._pace(far_reader, writer, "from")]
        try:
            await asyncio.gather(*ways)
        except (OSError, asyncio.CancelledError):
            pass  # `close` cancels this task; asyncio's server would report it as broken
        finally:
            for end in (writer, far_writer):
                end.transport.abort()
            self._connections.discard(connection)

    async def until_passed(self, way: str, count: int) -> None:
        """Waits until `count` bytes in all have passed in one direction."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.passed_bytes[way] >= count)

    async def close(self) -> None:
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _pace(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: str) -> None:
        loop = asyncio.get_running_loop()
        while piece := await source.read(PIECE_BYTES):
            start_s = max(loop.time(), self._free_s[way])
            self._free_s[way] = start_s + len(piece) / self.bytes_s[way]
            await asyncio.sleep(self._free_s[way] - loop.time())
            self.passed_bytes[way] += len(piece)
            async with self._moved:
                self._moved.notify_all()
            sink.write(piece)
            await sink.drain()
        with contextlib.suppress(OSError):
            sink.write_eof()


@contextlib.asynccontextmanager
async def paced_relay(target: str, to_bytes_s: float, from_bytes_s: float) -> AsyncIterator[PacedRelay]:
    """Relays from a free port of 127.0.0.1 to `target` (host:port) until the block ends."""
    relay = PacedRelay(target, to_bytes_s, from_bytes_s)
    listener = socket.create_server(("127.0.0.1", 0))
    async with await asyncio.start_server(relay.pass_on, sock=listener, limit=BUFFER_BYTES):
        relay.address = f"127.0.0.1:{listener.getsockname()[1]}"
        try:
            yield relay
        finally:
            await relay.close()
