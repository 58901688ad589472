"""Measures the coordinator's CPU time for a thousand waiting clients, and the time until a task reaches one of them.

.venv/bin/python benchmarks/idle_clients.py [--clients 1000] [--tasks 40]

The clients are sessions of one process; each has its own plain-text connection and holds a poll open as a daemon does. The
CPU time is measured over half a minute in which nothing happens. Then runs with one client each are started one after the
other. For each run, the time from the call that starts the run until the client has its task is measured.
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import psutil
from processes import administrator, coordinator

from pluralllm.client.link.channel import Connection
from pluralllm.client.link.tasks import Introduction, RunOver, Task, Wait
from pluralllm.client.link.transport import Transport
from pluralllm.common.errors.tree import NoAnswer
from pluralllm.common.wire.channels import plain_channel
from pluralllm.common.words.ids import ClientId, RunId
from pluralllm.common.words.spec import GroupRole, RunSpec

IDLE_S = 30.0
SETTLE_S = 5.0
TASK_LIMIT_S = 30.0


def spec_of(group: str) -> RunSpec:
    return RunSpec.model_validate(
        {
            "rounds": 1,
            "groups": {"train": [group]},
            "round": {"min_clients": 1, "target_clients": 1},
            "predictor": {"d_model": 16, "layers": 1, "heads": 2, "feedforward": 16, "embedder_layers": 2},
            "embedding": {"model": "idle", "dimension": 32},
        }
    )


class Simulated:
    """Simulated client that waits for tasks and records the time at which one arrives."""

    def __init__(self, name: str, transport: Transport) -> None:
        self.name = name
        self.transport = transport
        self.arrived: asyncio.Future[float] | None = None
        self.greeted = False
        self.reason = ""  # of the last answer that told it to wait

    async def greet(self) -> None:
        await self.transport.hello(Introduction(f"group of {self.name}", GroupRole.TRAIN, questions=100))
        self.greeted = True

    async def live(self) -> None:
        await self.greet()
        await self.wait()

    async def wait(self) -> None:
        """Polls the coordinator until it is cancelled; sets the future `arrived` to the time at which a task comes."""
        over: set[RunId] = set()
        held: Task | None = None
        while True:
            following = [held.run] if held is not None else []
            try:
                answer = await self.transport.poll(None if held is None else held.name, following)
            except NoAnswer:  # a machine with other work may need longer
                continue
            match answer:
                case Task() as task:
                    if task.run not in over and self.arrived is not None and not self.arrived.done():
                        self.arrived.set_result(time.perf_counter())
                    held = task
                case RunOver(run=run):
                    over.add(run)
                    held = None
                case Wait(after_s, reason):
                    held, self.reason = None, reason
                    await asyncio.sleep(after_s)


def connected(address: str, name: str) -> Transport:
    """Returns a transport with its own connection to the coordinator, for the client `name`.

    Without this function's channel option, gRPC shares one connection among all channels of a process.
    """
    connection = Connection([address], lambda at: plain_channel(at, (("grpc.use_local_subchannel_pool", 1),)))
    return Transport(connection, ClientId(name), in_plain_text=True)


async def measure(
    folder: Path, address: str, process: psutil.Process, clients: int, tasks: int
) -> tuple[float, list[float]]:
    """Returns the share of a core that the idle coordinator uses, and for each task the time to its client in seconds.

    process: the coordinator. clients, tasks: numbers of clients and of tasks.
    """
    remote = administrator(folder, plain_text=True)
    simulated = [Simulated(f"idle-{number}", connected(address, f"idle-{number}")) for number in range(clients)]
    waiting = [asyncio.create_task(client.live()) for client in simulated]
    try:
        await asyncio.sleep(SETTLE_S + clients / 200)
        before_s = cpu_s(process)
        await asyncio.sleep(IDLE_S)
        share = (cpu_s(process) - before_s) / IDLE_S
        delays_s = []
        for number in range(tasks):
            client = simulated[number * clients // tasks]
            run = f"run-{number}"
            await asyncio.to_thread(remote.create_run, run, spec_of(f"group of {client.name}").canonical_json())
            client.arrived = asyncio.get_running_loop().create_future()
            began_s = time.perf_counter()
            start = asyncio.create_task(asyncio.to_thread(remote.start_run, run))
            async with asyncio.timeout(TASK_LIMIT_S):
                delays_s.append(await client.arrived - began_s)
            await start
            await asyncio.to_thread(remote.cancel_run, run, "measured")
        return share, delays_s
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        with contextlib.suppress(Exception):
            await asyncio.gather(*(client.transport.close() for client in simulated))
        remote.close()


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with coordinator(folder, plain_text=True) as process:
            administrator(folder, plain_text=True).close()
            address = (folder / "state" / "address").read_text().strip()
            share, delays_s = asyncio.run(measure(folder, address, process, arguments.clients, arguments.tasks))
    delays_s.sort()
    middle, late = delays_s[len(delays_s) // 2] * 1e3, delays_s[min(len(delays_s) - 1, int(0.99 * len(delays_s)))] * 1e3
    print(
        f"{arguments.clients} waiting clients: {share:.1%} of a core; a task arrives in {middle:.0f} ms (p50), "
        f"{late:.0f} ms (p99)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
