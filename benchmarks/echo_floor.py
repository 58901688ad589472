"""Server and clients of the shortest possible durable round, called the floor; echo.py starts them.

The floor moves the same bytes as the service, over plain gRPC streams. One message is one chunk of raw bytes, hashed with
sha256 once at each end. The server writes an update to a file and syncs it. The server answers when every client's update of
the round has arrived, so that rounds follow one another as in a federation. Like the service it keeps the updates of a few
rounds. So an update is written to new memory of the file cache, which costs more than memory that was used before.
"""

import argparse
import asyncio
import hashlib
import json
import os
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from pluralllm.common.trust.identity import load_identity
from pluralllm.common.weights.chunks import CHUNK_BYTES
from pluralllm.server.members.authority import load_authority
from pluralllm.server.members.tls import server_credentials

LIMIT_S = 900.0
KEEP_ROUNDS = 3  # the service's default
DOWN, UP = "/floor/Down", "/floor/Up"
OPTIONS = (("grpc.max_receive_message_length", 4 * CHUNK_BYTES), ("grpc.so_reuseport", 0))


class Floor(grpc.GenericRpcHandler):
    """Server handler that sends the model and receives updates; a round ends when all its updates are on disk."""

    def __init__(self, folder: Path, clients: int, size: int, rounds: int) -> None:
        self._folder, self._clients, self._rounds = folder, clients, rounds
        self._waiting: list[asyncio.Future[None]] = []
        self._kept: deque[Path] = deque()
        self.ends_s: list[float] = []
        self.ended = asyncio.Event()  # set when all rounds have ended
        (folder / "model").write_bytes(os.urandom(size))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method == DOWN:
            return grpc.unary_stream_rpc_method_handler(self._down)
        return grpc.stream_unary_rpc_method_handler(self._up)

    async def _down(self, _request: bytes, _context: object) -> AsyncIterator[bytes]:
        with (self._folder / "model").open("rb") as file:
            while data := file.read(CHUNK_BYTES):
                yield data

    async def _up(self, stream: AsyncIterator[bytes], _context: object) -> bytes:
        digest, path = hashlib.sha256(), self._folder / f"update-{uuid.uuid4().hex}"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            async for data in stream:
                await asyncio.to_thread(_keep, handle, digest, data)
            await asyncio.to_thread(os.fsync, handle)
        finally:
            os.close(handle)
        self._kept.append(path)
        if len(self._kept) > (KEEP_ROUNDS + 1) * self._clients:
            self._kept.popleft().unlink()
        await self._all_there()
        return digest.digest()

    async def _all_there(self) -> None:
        round_end = asyncio.get_running_loop().create_future()
        self._waiting.append(round_end)
        if len(self._waiting) == self._clients:
            self.ends_s.append(time.monotonic())
            for other in self._waiting:
                other.set_result(None)
            self._waiting = []
            if len(self.ends_s) == self._rounds:
                self.ended.set()
        await round_end


def _keep(handle: int, digest: Any, data: bytes) -> None:
    digest.update(data)
    os.write(handle, data)


async def serve(folder: Path, clients: int, megabytes: int, rounds: int, state: Path | None) -> None:
    """Serves until all rounds have ended; prints the address at first, and the durations of the rounds at the end.

    megabytes: size of the model. state: state directory of a coordinator whose certificate authority is used; None: no TLS.
    """
    floor = Floor(folder, clients, megabytes * 1_000_000, rounds)
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((floor,))
    if state is None:
        port = server.add_insecure_port("127.0.0.1:0")  # sends random bytes on loopback only: the floor without TLS
    else:
        port = server.add_secure_port("127.0.0.1:0", server_credentials(load_authority(state), members_only=True))
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    async with asyncio.timeout(LIMIT_S):
        await floor.ended.wait()
    await server.stop(5)
    lengths = [after - before for before, after in zip(floor.ends_s, floor.ends_s[1:], strict=False)]
    print(json.dumps({"rounds_s": lengths, "cpu_s": time.process_time()}), flush=True)


async def take_part(address: str, rounds: int, megabytes: int, identity: Path | None) -> None:
    channel: grpc.aio.Channel
    if identity is None:
        channel = grpc.aio.insecure_channel(address, options=OPTIONS)
    else:
        own = load_identity(identity, "")
        keys = grpc.ssl_channel_credentials(own.authority_pem, own.key_pem, own.chain_pem)
        channel = grpc.aio.secure_channel(address, keys, options=OPTIONS)
    update = os.urandom(CHUNK_BYTES)
    async with channel, asyncio.timeout(LIMIT_S):
        down: Any = channel.unary_stream(DOWN)
        up: Any = channel.stream_unary(UP)
        for _ in range(rounds):
            digest = hashlib.sha256()
            async for data in down(b"", timeout=LIMIT_S):
                digest.update(data)
            await up(_chunks(update, megabytes * 1_000_000), timeout=LIMIT_S)


async def _chunks(update: bytes, size: int) -> AsyncIterator[bytes]:
    digest = hashlib.sha256()
    for start in range(0, size, CHUNK_BYTES):
        piece = update[: min(CHUNK_BYTES, size - start)]
        digest.update(piece)
        yield piece


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("server", "client"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--clients", type=int)
    parser.add_argument("--megabytes", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--address")
    parser.add_argument("--identity", type=Path)
    arguments = parser.parse_args()
    if arguments.side == "server":
        await serve(arguments.folder, arguments.clients, arguments.megabytes, arguments.rounds, arguments.state)
    else:
        await take_part(arguments.address, arguments.rounds, arguments.megabytes, arguments.identity)


if __name__ == "__main__":
    asyncio.run(main())
