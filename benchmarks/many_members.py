"""Measures the coordinator's work for one member in one round of many members with small updates.

.venv/bin/python benchmarks/many_members.py [--members 400] [--rounds 2]

A member in a round polls, reads the manifest and the model, announces its update, sends it and commits it. The members are
sessions of this process; each has its own plain-text connection. They train nothing. The run has an evaluation before its first
round and one after its last round; their cost is part of the figure.
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from echo_client import write_constant
from idle_clients import connected, cpu_s
from processes import administrator, coordinator

from pluralllm.client.link.tasks import Introduction, RunOver, Scores, Task, Wait
from pluralllm.client.link.transport import Transport
from pluralllm.common.errors.tree import NoAnswer
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.words.ids import Digest, RunId
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.spec import GroupRole, RunSpec

SETTLE_S = 5.0
AT_ONCE = 30  # members that connect
LIMIT_S = 540.0
RUN = RunId("many")


def spec_of(members: int, rounds: int) -> RunSpec:
    return RunSpec.model_validate(
        {
            "rounds": rounds,
            "round": {
                "min_clients": max(1, members * 9 // 10),  # on a busy machine some lose their slots
                "target_clients": members,
                "grace_after_quorum_s": 60.0,
                "evaluate_every": 1000,
                "deadline_s": LIMIT_S,
                "evaluation_deadline_s": LIMIT_S,
            },
            "predictor": {"d_model": 16, "layers": 1, "heads": 2, "feedforward": 16, "embedder_layers": 2},
            "embedding": {"model": "many", "dimension": 32},
        }
    )


async def greet(transport: Transport, group: str, at_once: asyncio.Semaphore) -> None:
    """Says Hello as a daemon does: again, if no answer comes. at_once: of all members, because a handshake has five seconds."""
    while True:
        async with at_once:
            with contextlib.suppress(NoAnswer):
                await transport.hello(Introduction(group, GroupRole.TRAIN, questions=100))
                return
        await asyncio.sleep(1)


@dataclass(slots=True)
class Members:
    """The members of the run, and the times that their updates took."""

    spec: RunSpec
    folder: Path
    updates_s: list[float] = field(default_factory=list)
    greeted: int = 0
    greeting: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def take_part(self, transport: Transport, number: int, group: str) -> None:
        """Says Hello, and then answers one member's tasks until the run is over."""
        await greet(transport, group, self.greeting)
        self.greeted += 1
        is_over = False
        while not is_over:
            with contextlib.suppress(NoAnswer):  # a machine with other work may need longer; the same task comes again
                is_over = await self._do_next(transport, number)

    async def _do_next(self, transport: Transport, number: int) -> bool:
        """Asks for a task and answers it; returns whether the run is over."""
        match await transport.poll(None, [RUN]):
            case RunOver():
                return True
            case Wait(after_s, _):
                await asyncio.sleep(after_s)
            case Task(kind=TaskKind.EVALUATE) as task:
                await transport.report_scores(task.name, Scores(0.7, 0.4, None, 50))
            case Task() as task:
                base, delta = self.folder / f"{number}.base", self.folder / f"{number}.delta"
                size_bytes = layout_for(self.spec).size_bytes
                await transport.fetch_model(task.run, task.base_version, task.base_digest, size_bytes, base)
                manifest = await asyncio.to_thread(write_constant, base, delta, (task.round + number / 1000) * 1e-6)
                spec, digest = Digest(task.spec_sha256), Digest(task.base_digest)
                began_s = time.perf_counter()
                await transport.push_update(task.name, delta, manifest, spec, digest, 100, {})
                self.updates_s.append(time.perf_counter() - began_s)
                base.unlink()
        return False


async def measure(folder: Path, address: str, process: psutil.Process, spec: RunSpec) -> tuple[float, float, Members]:
    """Returns the coordinator's CPU time and the whole time of the run in seconds, and the members.

    process: the coordinator.
    """
    remote, count = administrator(folder, plain_text=True), spec.round.target_clients
    await asyncio.to_thread(remote.create_run, RUN, spec.canonical_json())
    members = Members(spec, folder)
    transports = [connected(address, f"member-{number}") for number in range(count)]
    living = [
        asyncio.create_task(members.take_part(transport, n, f"group {n}")) for n, transport in enumerate(transports)
    ]
    while members.greeted < count:  # noqa: ASYNC110 - each member counts for itself
        await asyncio.sleep(0.5)
    await asyncio.sleep(SETTLE_S)
    before_s, began_s = cpu_s(process), time.perf_counter()
    await asyncio.to_thread(remote.start_run, RUN)
    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*living)
    used_s, took_s = cpu_s(process) - before_s, time.perf_counter() - began_s
    await asyncio.gather(*(transport.close() for transport in transports))
    remote.close()
    return used_s, took_s, members


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    spec = spec_of(arguments.members, arguments.rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with coordinator(folder, plain_text=True) as process:
            administrator(folder, plain_text=True).close()
            address = (folder / "state" / "address").read_text().strip()
            used_s, took_s, members = asyncio.run(measure(folder, address, process, spec))
            resident_mib = process.memory_info().rss / 2**20
    late_s = sorted(members.updates_s)[int(0.99 * (len(members.updates_s) - 1))]
    rounds = arguments.members * arguments.rounds
    print(
        f"{arguments.members} members, {arguments.rounds} rounds: {used_s / rounds * 1e3:.1f} ms of the coordinator's CPU for "
        f"a member in a round, {rounds / took_s:.0f} a second, an update takes {late_s:.1f} s (p99), {resident_mib:.0f} MiB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
