"""Measures how attacks affect the members that behave well: their calls and registrations, and the coordinator's memory.

.venv/bin/python benchmarks/hostile_load.py                     about five minutes; exit code 1 if a limit is not kept
.venv/bin/python benchmarks/hostile_load.py --only "Hello flood"   one attack; `--files 65536` for another limit of open files

A real coordinator that may open 256 files and real attackers (attackers.py) run as processes on loopback. Each attack is
measured for ten seconds. Meanwhile five members make 50 calls a second together, a client registers every second, and one
more member, which was invited before, tries to join. Limits: p99 of the calls below 100 ms, no failed registration, and a growth
of the coordinator's memory below 150 MB.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import psutil
from attackers import ATTACKS, Stage, channel
from processes import administrator, coordinator, member

from pluralllm.client.joining.joining import join
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.trust.identity import Identity, load_identity
from pluralllm.common.trust.invite import Invite
from pluralllm.common.wire.messages import PROTOCOL_MAX, PROTOCOL_MIN
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.process.open_files import raise_limit
from pluralllm.v1 import federation_pb2 as fed
from pluralllm.v1 import federation_pb2_grpc, operations_pb2_grpc, resources_pb2
from pluralllm.v1 import operations_pb2 as pb

Result = TypeVar("Result")
FILES = 256
MEASURE_S = 10.0
CALL_EVERY_S = 0.02
REGISTER_EVERY_S = 1.0
JOIN_LIMIT_S = 60.0
CHUNK_IDLE_S = 12.0  # the coordinator's chunk_idle_s in this benchmark; its default is 30
READERS = 5
ATTACKERS = 5
TARGET_P99_MS = 100.0
TARGET_GROWTH_MB = 150.0
COLUMNS = f"{'':<40} {'p50 ms':>8} {'p99 ms':>8} {'slowest':>8} {'failed':>6} {'joined s':>8} {'MB':>6} {'growth':>7}"


@dataclass(slots=True)
class Measured:
    """The observations of the members that behave well, and of the coordinator's memory."""

    calls_ms: list[float]
    registrations_ms: list[float]
    failed: int  # registrations without an answer
    peak_mb: float

    def row(self, name: str, before_mb: float, joined_s: float | None) -> str:
        """Returns the line of an attack in the table. before_mb: the coordinator's memory before the attack."""
        joined = "" if joined_s is None else f"{joined_s:.1f}" if joined_s < JOIN_LIMIT_S else "never"
        return (
            f"{name:<40} {quantile(self.calls_ms, 0.5):>8.1f} {self.p99_ms:>8.1f} {max(self.registrations_ms):>8.1f} "
            f"{self.failed:>6} {joined:>8} {self.peak_mb:>6.0f} {self.peak_mb - before_mb:>+7.0f}"
        )

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the calls' latencies in milliseconds."""
        return quantile(self.calls_ms, 0.99)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


class Members:
    """Members that behave well. They call without a pause, and what they observe counts while `measured` is set."""

    def __init__(self, readers: list[Identity], client: Identity, process: psutil.Process) -> None:
        self._readers, self._client, self._process = readers, client, process
        self.measured: Measured | None = None

    @contextlib.asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Connects, and calls until the end of the block."""
        async with contextlib.AsyncExitStack() as stack:
            stubs: list[Any] = []
            for reader in self._readers:
                there = await stack.enter_async_context(channel(reader))
                stubs.append(operations_pb2_grpc.OperationsServiceStub(there))
                await stubs[-1].ListRuns(pb.ListRunsRequest(), timeout=30)
            there = await stack.enter_async_context(channel(self._client))
            clients: Any = federation_pb2_grpc.FederationServiceStub(there)
            await clients.Hello(hello(self._client, "first"), timeout=30)
            async with asyncio.TaskGroup() as tasks:
                both = [tasks.create_task(self._read(stubs)), tasks.create_task(self._register(clients))]
                yield
                for task in both:
                    task.cancel()

    async def measure(self, during_s: float) -> Measured:
        """Returns the observations of the next `during_s` seconds."""
        self.measured = measured = Measured([], [], 0, 0.0)
        await asyncio.sleep(during_s)
        self.measured = None
        return measured

    async def _read(self, stubs: list[Any]) -> None:
        """Calls ListRuns every 20 ms, each time as the next reader."""
        turn = 0
        while True:
            turn += 1
            started_s = time.monotonic()
            await stubs[turn % len(stubs)].ListRuns(pb.ListRunsRequest(), timeout=30)
            if (measured := self.measured) is not None:
                measured.calls_ms.append((time.monotonic() - started_s) * 1000)
                measured.peak_mb = max(measured.peak_mb, self._process.memory_info().rss / 1e6)
            await asyncio.sleep(max(0.0, CALL_EVERY_S - (time.monotonic() - started_s)))

    async def _register(self, clients: Any) -> None:
        """Registers the client every second, as a new instance, so that the coordinator writes to its database."""
        while True:
            started_s = time.monotonic()
            failed = 0
            try:
                await clients.Hello(hello(self._client, f"{started_s}"), timeout=30)
            except grpc.aio.AioRpcError:
                failed = 1
            if (measured := self.measured) is not None:
                measured.failed += failed
                measured.registrations_ms.append((time.monotonic() - started_s) * 1000)
            await asyncio.sleep(max(0.0, REGISTER_EVERY_S - (time.monotonic() - started_s)))


def hello(client: Identity, instance: str) -> fed.HelloRequest:
    """Returns a registration as a daemon sends it. Each instance has a version of its own, so that the coordinator writes."""
    return fed.HelloRequest(
        protocol=fed.ProtocolRange(min=PROTOCOL_MIN, max=PROTOCOL_MAX),
        software_version=f"benchmark {instance}",  # a fact that has changed, so that the coordinator writes
        instance_id=instance,
        group=client.membership.group,
        role=resources_pb2.GROUP_ROLE_TRAIN,
        training_questions=50,
    )


async def seconds_to_join(invite: Invite, folder: Path) -> float:
    """Tries to join and to register until both work. Returns the time in seconds, or JOIN_LIMIT_S if they never work.

    A new member connects to both ports, while the members that are measured are connected already.
    """
    began_s = time.monotonic()

    async def joined() -> Identity:
        identity, _ = await asyncio.to_thread(join, invite, folder, "", frozenset(MemberRole))
        return identity

    async def registered(identity: Identity) -> None:
        async with channel(identity) as there:
            stub: Any = federation_pb2_grpc.FederationServiceStub(there)
            await stub.Hello(hello(identity, "new"), timeout=JOIN_LIMIT_S)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(JOIN_LIMIT_S):
            await again(registered, await again(joined))
    return time.monotonic() - began_s


async def again(call: Callable[..., Awaitable[Result]], *arguments: Any) -> Result:
    """Repeats a call until the coordinator does not refuse it, and returns its result."""
    while True:
        with contextlib.suppress(PluralError, grpc.aio.AioRpcError):
            return await call(*arguments)
        await asyncio.sleep(0.2)


async def attacked(
    name: str, attackers: list[Identity], members: Members, during_s: float, invite: Invite, folder: Path
) -> Any:
    """Runs one attack. Returns the members' observations, the time to join in seconds, and the attack's own counts."""
    command = [__file__, "--attack", name, "--members", *(str(attacker.folder) for attacker in attackers)]
    pipe = asyncio.subprocess.PIPE
    environment = {**os.environ, "GRPC_VERBOSITY": "ERROR"}
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdin=pipe, stdout=pipe, env=environment)
    assert process.stdin is not None
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n", f"the attack {name} did not begin"
    measured, joined_s = await asyncio.gather(members.measure(during_s), seconds_to_join(invite, folder))
    process.stdin.close()
    counts = json.loads(await process.stdout.read())
    await process.wait()
    return measured, joined_s, counts


async def attack(name: str, attackers: list[Identity]) -> dict[str, int]:
    """Attacks in this process until standard input ends, and returns how often each result happened."""
    stage = Stage(1, lambda: print("ready", flush=True))
    attacking = asyncio.create_task(ATTACKS[name](attackers, stage))
    await asyncio.to_thread(sys.stdin.read)
    stage.over.set()
    return await attacking


async def compare(folder: Path, process: psutil.Process, names: list[str], during_s: float, limit_p99_ms: float) -> int:
    """Measures the idle coordinator and each attack for `during_s` each, prints the table and returns the exit code."""
    remote = administrator(folder)
    readers = [member(remote, folder, f"reader-{number}", MemberRole.OBSERVER) for number in range(READERS)]
    client = member(remote, folder, "client", MemberRole.CLIENT)
    attackers = [member(remote, folder, f"attacker-{number}", MemberRole.CLIENT) for number in range(ATTACKERS)]
    invites = [
        remote.invite(f"new-{number}", MemberRole.CLIENT, f"group {number}", None, 3600, needs_approval=False)
        for number in range(len(names))
    ]
    remote.close()
    members = Members(readers, client, process)
    print(COLUMNS)
    missed = []
    async with members.calling():
        idle = await members.measure(during_s)
        print(idle.row("no attack", idle.peak_mb, None), flush=True)
        for name, invite in zip(names, invites, strict=True):
            before_mb = process.memory_info().rss / 1e6
            measured, joined_s, counts = await attacked(
                name, attackers, members, during_s, invite, folder / invite.name
            )
            results = "; ".join(f"{count:,} {what}" for what, count in counts.items())
            print(f"{measured.row(name, before_mb, joined_s)}  {results}", flush=True)
            if measured.p99_ms >= limit_p99_ms or measured.failed or measured.peak_mb - before_mb >= TARGET_GROWTH_MB:
                missed.append(name)
    verdict = f"missed by {', '.join(missed)}" if missed else "met"
    print(f"limits: p99 < {limit_p99_ms:.0f} ms, 0 failed, growth < {TARGET_GROWTH_MB:.0f} MB: {verdict}")
    return 1 if missed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=FILES, help="The coordinator's limit of open files.")
    parser.add_argument("--only", choices=ATTACKS, nargs="*", default=list(ATTACKS), help="Attacks to measure.")
    parser.add_argument("--seconds", type=float, default=MEASURE_S, help="Time that each attack is measured.")
    parser.add_argument("--p99-ms", type=float, default=TARGET_P99_MS, help="Limit of the calls' p99 in milliseconds.")
    parser.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)  # how this file starts its attackers
    parser.add_argument("--members", type=Path, nargs="*", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.attack is not None:
        os.nice(10)
        raise_limit()
        identities = [load_identity(folder, "") for folder in arguments.members]
        print(json.dumps(asyncio.run(attack(arguments.attack, identities))), flush=True)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with coordinator(folder, files=arguments.files, chunk_idle_s=str(CHUNK_IDLE_S)) as process:
            return asyncio.run(compare(folder, process, arguments.only, arguments.seconds, arguments.p99_ms))


if __name__ == "__main__":
    sys.exit(main())
