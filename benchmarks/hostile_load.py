"""Measures how attacks by some members affect another member: latency of a small call, and the coordinator's memory.

.venv/bin/python benchmarks/hostile_load.py          about two minutes; exit code 1 if a limit is not kept

A real coordinator and real attackers run as processes on loopback, over mutual TLS. Each attack is measured for ten seconds
and compared with the idle coordinator in the same run. Limits: p99 of the latency below 100 ms, and a growth of the
coordinator's memory below 150 MB.
"""

import argparse
import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import psutil
from processes import administrator, coordinator, member

from pluralllm.common.trust.handshake import split
from pluralllm.common.trust.identity import Identity, load_identity
from pluralllm.common.wire.channels import credentials
from pluralllm.common.words.roles import MemberRole
from pluralllm.v1 import operations_pb2 as pb
from pluralllm.v1 import operations_pb2_grpc

MEASURE_S = 10.0
CALL_EVERY_S = 0.02
CHUNK_IDLE_S = 12.0  # the coordinator's chunk_idle_s in this benchmark; its default is 30
ATTACKERS = 5
TARGET_P99_MS = 100.0
TARGET_GROWTH_MB = 150.0
PUT_CHUNKS = "/pluralllm.v1.FederationService/PutChunks"
BEGIN_UPDATE = "/pluralllm.v1.FederationService/BeginUpdate"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(
    [0, 0, 0, 4, 0, 0, 0, 0, 0]
)  # RFC 9113, section 3.4, with empty SETTINGS

Attack = Callable[[list[Identity]], Coroutine[Any, Any, Counter[str]]]


# The attackers


def channel(identity: Identity) -> grpc.aio.Channel:
    unlimited = [("grpc.max_send_message_length", -1)]
    return grpc.aio.secure_channel(identity.membership.coordinator, credentials(identity), options=unlimited)


def outcome(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {(error.details() or '').split('(')[0].strip()[:48]}"


def call(there: grpc.aio.Channel, kind: str, method: str) -> Any:
    """Returns the RPC `method` as a callable that takes and returns bytes, so that a caller can send any bytes.

    kind: the kind of gRPC call on the channel, such as unary_unary.
    """
    return getattr(there, kind)(method)


async def oversize_messages(members: list[Identity]) -> Counter[str]:
    """Sends 5 MiB messages from every attacker; each attacker sends the next message when the coordinator has refused the last.

    Returns how often each gRPC status was the answer.
    """
    seen: Counter[str] = Counter()

    async def one(identity: Identity) -> None:
        async with channel(identity) as there:
            until_s = time.monotonic() + MEASURE_S
            while time.monotonic() < until_s:
                try:
                    await call(there, "unary_unary", BEGIN_UPDATE)(bytes(5 * 1024**2), timeout=10)
                except grpc.aio.AioRpcError as error:
                    seen[outcome(error)] += 1

    say_ready()
    await asyncio.gather(*(one(member) for member in members))
    return seen


async def gzip_bomb(members: list[Identity]) -> Counter[str]:
    """Sends gzip-compressed messages that each expand to 512 MiB of zeros, one after the other."""
    seen: Counter[str] = Counter()
    zeros = bytes(512 * 1024**2)
    async with channel(members[0]) as there:
        say_ready()
        until_s = time.monotonic() + MEASURE_S
        while time.monotonic() < until_s:
            try:
                await call(there, "unary_unary", BEGIN_UPDATE)(zeros, timeout=60, compression=grpc.Compression.Gzip)
            except grpc.aio.AioRpcError as error:
                seen[outcome(error)] += 1
    return seen


async def stalled_uploads(members: list[Identity]) -> Counter[str]:
    """Opens 200 upload streams that send nothing, and waits until the coordinator ends them."""
    seen: Counter[str] = Counter()

    async def silence() -> AsyncIterator[bytes]:
        await asyncio.sleep(3600)
        yield b""

    async def one(there: grpc.aio.Channel) -> None:
        try:
            await call(there, "stream_unary", PUT_CHUNKS)(silence(), timeout=60)
        except grpc.aio.AioRpcError as error:
            seen[outcome(error)] += 1

    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(channel(member)) for member in members[:4]]
        streams = [asyncio.create_task(one(there)) for there in channels for _ in range(50)]
        say_ready()
        await asyncio.wait(streams, timeout=60)
    return seen


async def idle_connections(members: list[Identity]) -> Counter[str]:
    """Holds 1,000 connections with mutual TLS and HTTP/2, and makes no call on them."""
    return await hold_connections(1000, members, with_tls=True)


async def silent_connections(members: list[Identity]) -> Counter[str]:
    """Holds 1,000 TCP connections on which no TLS handshake begins."""
    return await hold_connections(1000, members, with_tls=False)


async def hold_connections(count: int, members: list[Identity], *, with_tls: bool) -> Counter[str]:
    contexts = [tls_context(member) for member in members]
    host, port = split(members[0].membership.coordinator)
    held = []
    for number in range(count):
        context = contexts[number % len(contexts)] if with_tls else None
        reader, writer = await asyncio.open_connection(
            host, port, ssl=context, server_hostname=host if with_tls else None
        )
        if with_tls:
            writer.write(PREFACE)
        held.append((reader, writer))
    say_ready()
    await asyncio.sleep(MEASURE_S)
    seen: Counter[str] = Counter()
    for reader, writer in held:
        seen["closed by the coordinator" if reader.at_eof() else "held"] += 1
        writer.close()
    return seen


def tls_context(identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=identity.authority_pem.decode())
    context.load_cert_chain(identity.credentials)
    context.set_alpn_protocols(["h2"])
    return context


ATTACKS: dict[str, Attack] = {
    "5 MiB messages": oversize_messages,
    "512 MiB gzip bombs": gzip_bomb,
    "200 stalled uploads": stalled_uploads,
    "1,000 idle mTLS connections": idle_connections,
    "1,000 TCP connections, no handshake": silent_connections,
}


def say_ready() -> None:
    print("ready", flush=True)


# The coordinator, and the member that is measured


async def measure(identity: Identity, process: psutil.Process, during_s: float) -> tuple[list[float], float]:
    """Calls ListRuns every 20 ms; returns the latencies in ms and the coordinator's largest resident memory in MB.

    identity: the calling member. process: the coordinator. during_s: duration of the measurement in seconds.
    """
    latencies, peak_mb = [], 0.0
    async with grpc.aio.secure_channel(identity.membership.coordinator, credentials(identity)) as there:
        stub: Any = operations_pb2_grpc.OperationsServiceStub(there)
        await stub.ListRuns(pb.ListRunsRequest(), timeout=30)
        end_s = time.monotonic() + during_s
        while (started_s := time.monotonic()) < end_s:
            await stub.ListRuns(pb.ListRunsRequest(), timeout=30)
            latencies.append((time.monotonic() - started_s) * 1000)
            peak_mb = max(peak_mb, process.memory_info().rss / 1e6)
            await asyncio.sleep(max(0.0, CALL_EVERY_S - (time.monotonic() - started_s)))
    return latencies, peak_mb


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)  # how this file starts its attackers
    parser.add_argument("--members", type=Path, nargs="*", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.attack is not None:
        os.nice(10)
        identities = [load_identity(folder, "").at(arguments.coordinator) for folder in arguments.members]
        print(json.dumps(asyncio.run(ATTACKS[arguments.attack](identities))), flush=True)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with coordinator(folder, chunk_idle_s=str(CHUNK_IDLE_S)) as process:
            return compare(folder, process)


def compare(folder: Path, process: psutil.Process) -> int:
    remote = administrator(folder)
    observer = member(remote, folder, "observer", MemberRole.OBSERVER)
    attackers = [member(remote, folder, f"attacker-{number}", MemberRole.CLIENT) for number in range(ATTACKERS)]
    remote.close()
    print(f"{'':<36} {'p50 ms':>8} {'p99 ms':>8} {'memory MB':>10} {'growth':>8}  what became of it")
    idle, before_mb = asyncio.run(measure(observer, process, MEASURE_S))
    print(f"{'idle':<36} {quantile(idle, 0.5):>8.1f} {quantile(idle, 0.99):>8.1f} {before_mb:>10.0f}")
    missed = []
    for name in ATTACKS:
        command = [sys.executable, __file__, "--attack", name, "--coordinator", observer.membership.coordinator]
        command += ["--members", *(str(attacker.folder) for attacker in attackers)]
        start_mb = process.memory_info().rss / 1e6
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attack:
            assert attack.stdout is not None
            assert attack.stdout.readline() == "ready\n", f"the attack {name} did not begin"
            latencies, peak_mb = asyncio.run(measure(observer, process, MEASURE_S))
            became = json.loads(attack.stdout.read())
        p99, growth_mb = quantile(latencies, 0.99), peak_mb - start_mb
        results = "; ".join(f"{count} {what}" for what, count in became.items())
        print(
            f"{name:<36} {quantile(latencies, 0.5):>8.1f} {p99:>8.1f} {peak_mb:>10.0f} {growth_mb:>+8.0f}  {results}",
            flush=True,
        )
        if p99 >= TARGET_P99_MS or growth_mb >= TARGET_GROWTH_MB:
            missed.append(name)
    verdict = f"missed by {', '.join(missed)}" if missed else "met"
    print(f"targets: p99 < {TARGET_P99_MS:.0f} ms, growth < {TARGET_GROWTH_MB:.0f} MB: {verdict}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
