"""Measures one coordinator with a thousand and more members over mutual TLS, and writes each figure as a line of JSON.

.venv/bin/python benchmarks/scale.py OUT.jsonl                       all measurements, three times each
.venv/bin/python benchmarks/scale.py OUT.jsonl --only round --repeats 1

round   1,000 members in rounds of small updates: the coordinator's CPU for a member in a round, memory, times of updates
idle    5,000 members that wait: CPU; then the times of ListRuns, idle and with a round of a thousand members open
full    one member more than the coordinator may hold polls for: what it is told, and whether the administrator gets in
task    1,000 members that wait: the time from the call that starts a run until its client has the task

A measurement that OUT.jsonl has already, for the same commit, is left out. The members are sessions of this process; each has
its own connection. CPU times and ratios say more than times on a machine that has other work.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from idle_clients import Simulated, cpu_s
from idle_clients import spec_of as spec_of_one
from issued_members import connected_by, issue_members
from many_members import AT_ONCE, RUN, Members, greet, spec_of
from processes import SERVER, START_LIMIT_S, administrator, coordinator

from pluralllm.common.trust.identity import Identity
from pluralllm.operator.remote import Remote
from pluralllm.server.process.open_files import raise_limit

LIMIT_S = 1_800.0
IDLE_S = 30.0
LISTS = 200
TASKS = 200
HELD = 4_096
Figures = dict[str, float | str]


@contextlib.asynccontextmanager
async def federation(count: int, **settings: str) -> AsyncIterator[tuple[Path, psutil.Process, str, list[Identity]]]:
    """Runs a coordinator with `count` members. Yields its folder, its process, its address and the identities."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await asyncio.to_thread(initialise, folder)
        identities = await issue_members(folder / "state", [f"member-{number:05}" for number in range(count)])
        with coordinator(
            folder, plain_text=False, with_authority=False, files=None, calls_per_second="100000", **settings
        ) as process:
            administrator(folder).close()
            yield folder, process, (folder / "state" / "address").read_text().strip(), identities


def initialise(folder: Path) -> None:
    init = [*SERVER, "init", "--host", "127.0.0.1", "--admin-identity", str(folder / "admin")]
    command = [*init, "--state-dir", str(folder / "state")]
    subprocess.run(command, check=True, capture_output=True, timeout=START_LIMIT_S)


@contextlib.asynccontextmanager
async def waiting(identities: Sequence[Identity], address: str) -> AsyncIterator[list[Simulated]]:
    """Connects members that wait for tasks; yields them when all polls are held."""
    members = [Simulated(identity.membership.name, connected_by(identity, address)) for identity in identities]
    at_once = asyncio.Semaphore(AT_ONCE)

    async def live(member: Simulated) -> None:
        await greet(member.transport, f"group of {member.name}", at_once)
        member.greeted = True
        await member.wait()

    living = [asyncio.create_task(live(member)) for member in members]
    try:
        while sum(member.greeted for member in members) < len(members):
            await asyncio.sleep(0.5)
            for task in living:
                if task.done():
                    task.result()
        await asyncio.sleep(5)
        yield members
    finally:
        for task in living:
            task.cancel()
        await asyncio.gather(*living, return_exceptions=True)
        await asyncio.gather(*(member.transport.close() for member in members), return_exceptions=True)


async def measure_round(members: int = 1000, rounds: int = 2) -> Figures:
    """Returns the figures of rounds in which all members train. Evaluations, before and after, are not in the figures."""
    spec = spec_of(members, rounds)
    async with federation(members) as (folder, process, address, identities):
        remote = administrator(folder)
        await asyncio.to_thread(remote.create_run, RUN, spec.canonical_json())
        taking = Members(spec, folder)
        transports = [connected_by(identity, address) for identity in identities]
        living = [
            asyncio.create_task(taking.take_part(transport, n, f"group of {identity.membership.name}"))
            for n, (transport, identity) in enumerate(zip(transports, identities, strict=True))
        ]
        while taking.greeted < members:
            await asyncio.sleep(0.5)
            for task in living:
                if task.done():
                    task.result()
        await asyncio.sleep(5)
        at_s: dict[int, float] = {}  # CPU time of the coordinator when so many updates had been delivered

        async def note() -> None:
            while len(taking.updates_s) < members * rounds and not all(task.done() for task in living):
                at_s[len(taking.updates_s)] = cpu_s(process)
                await asyncio.sleep(0.05)
            at_s[len(taking.updates_s)] = cpu_s(process)

        noting, began_s = asyncio.create_task(note()), time.perf_counter()
        await asyncio.to_thread(remote.start_run, RUN)
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(noting, *living)
        took_s = time.perf_counter() - began_s
        await asyncio.gather(*(transport.close() for transport in transports))
        remote.close()
        first, last = min(count for count in at_s if count >= members // 10), max(at_s)  # without the first evaluation
        used_s = at_s[last] - at_s[first]
        return {
            "members": members,
            "cpu_ms": round(1e3 * used_s / (last - first), 2),
            "updates": last,
            "updates_s": round(last / took_s, 1),
            "update_p50_s": round(percentile(taking.updates_s, 0.5), 2),
            "update_p99_s": round(percentile(taking.updates_s, 0.99), 2),
            "peak_mib": round(peak_mib(process)),
        }


async def measure_idle(members: int = 5000, in_round: int = 1000) -> Figures:
    async with federation(members) as (folder, process, address, identities):
        remote = administrator(folder)
        before_s = cpu_s(process)
        async with waiting(identities, address):
            connected_s, resident = cpu_s(process) - before_s, peak_mib(process)
            share = await idle_share(process)
            idle_ms = await list_runs_ms(remote)
            spec = spec_of(in_round, 1)
            await asyncio.to_thread(remote.create_run, RUN, spec.canonical_json())
            await asyncio.to_thread(remote.start_run, RUN)
            await asyncio.sleep(5)
            assert (await asyncio.to_thread(remote.get_run, RUN))["phase"] not in ("CREATED", "WAITING")
            open_ms, whole_ms = await list_runs_ms(remote), await list_runs_ms(remote, summary=False)
            share_open = await idle_share(process)
        remote.close()
        return {
            "members": members,
            "in_round": in_round,
            "core": round(share, 3),
            "core_round_open": round(share_open, 3),
            "connect_cpu_ms": round(1e3 * connected_s / members, 2),
            "list_p50_ms": round(percentile(idle_ms, 0.5), 1),
            "list_p99_ms": round(percentile(idle_ms, 0.99), 1),
            "list_open_p50_ms": round(percentile(open_ms, 0.5), 1),
            "list_open_p99_ms": round(percentile(open_ms, 0.99), 1),
            "list_whole_p50_ms": round(percentile(whole_ms, 0.5), 1),
            "list_whole_p99_ms": round(percentile(whole_ms, 0.99), 1),
            "peak_mib": round(resident),
        }


async def measure_full(held: int = HELD) -> Figures:
    """Returns what one member more than the coordinator holds polls for is told, and how fast the administrator gets in.

    A poll ends after a while and is asked again, so the refused member is not always the last one that came.
    """
    async with (
        federation(held + 1, max_held_polls=str(held)) as (folder, _, address, identities),
        waiting(identities, address) as members,
    ):
        remote = administrator(folder)
        for _ in range(600):
            if refused := {member.reason for member in members if "max_held_polls" in member.reason}:
                break
            await asyncio.sleep(0.1)
        listed = await list_runs_ms(remote, 20)
        remote.close()
    return {"held": held, "members": held + 1, "answer": " | ".join(refused), "list_p99_ms": round(max(listed), 1)}


async def measure_task(members: int = 1000, tasks: int = TASKS) -> Figures:
    async with federation(members) as (folder, _, address, identities):
        remote, delays_s = administrator(folder), []
        async with waiting(identities, address) as simulated:
            for number in range(tasks):
                member = simulated[number * members // tasks]
                run = f"run-{number}"
                spec = spec_of_one(f"group of {member.name}").canonical_json()
                await asyncio.to_thread(remote.create_run, run, spec)
                member.arrived = asyncio.get_running_loop().create_future()
                began_s = time.perf_counter()
                start = asyncio.create_task(asyncio.to_thread(remote.start_run, run))
                async with asyncio.timeout(60):
                    delays_s.append(await member.arrived - began_s)
                await start
                await asyncio.to_thread(remote.cancel_run, run, "measured")
        remote.close()
        written_ms = await asyncio.to_thread(fsyncs_ms, folder)
    delays_ms = [1e3 * delay_s for delay_s in delays_s]
    figures = {f"p{share:g}_ms": round(percentile(delays_ms, share / 100), 1) for share in (50, 90, 99, 100)}
    late = sum(delay_ms > 50 for delay_ms in delays_ms)
    disk = {f"fsync_p{share}_ms": round(percentile(written_ms, share / 100), 1) for share in (50, 99)}
    return {"members": members, "tasks": tasks, **figures, "late": late, **disk}


def fsyncs_ms(folder: Path, times: int = 200) -> list[float]:
    """Returns the durations of writes of one page with fsync, on the coordinator's disk. A start of a run waits for several."""
    durations_ms = []
    with (folder / "page").open("wb") as file:
        for _ in range(times):
            began_s = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            durations_ms.append(1e3 * (time.perf_counter() - began_s))
            time.sleep(0.01)
    return durations_ms


async def idle_share(process: psutil.Process) -> float:
    """Returns the share of a core that the coordinator uses for IDLE_S seconds."""
    before_s, began_s = cpu_s(process), time.perf_counter()
    await asyncio.sleep(IDLE_S)
    return (cpu_s(process) - before_s) / (time.perf_counter() - began_s)


async def list_runs_ms(remote: Remote, times: int = LISTS, *, summary: bool = True) -> list[float]:
    """Returns the durations of calls of ListRuns, one after another over an open connection.

    summary: False for every participant of each run as well, as `pluralllm runs --json` asks.
    """

    def lists() -> Iterator[float]:
        for _ in range(times):
            began_s = time.perf_counter()
            remote.runs(summary=summary)
            yield 1e3 * (time.perf_counter() - began_s)
            time.sleep(0.02)

    return await asyncio.to_thread(lambda: list(lists()))


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def peak_mib(process: psutil.Process) -> float:
    """Returns the largest resident set of a process since its start, in MiB."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


MEASUREMENTS: dict[str, Callable[[], Coroutine[Any, Any, Figures]]] = {
    "round": measure_round,
    "task": measure_task,
    "idle": measure_idle,
    "full": measure_full,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    raise_limit()  # of open files
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    lines = chosen.out.read_text().splitlines() if chosen.out.exists() else []
    done = {(line["commit"], line["name"], line["repeat"]) for line in map(json.loads, lines)}
    for repeat in range(chosen.repeats):
        for name in chosen.only:
            if (commit, name, repeat) not in done:
                load = round(os.getloadavg()[0], 1)
                line = {
                    "commit": commit,
                    "name": name,
                    "repeat": repeat,
                    "load": load,
                    **asyncio.run(MEASUREMENTS[name]()),
                }
                with chosen.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)
    for name in chosen.only:
        show_medians(
            name, [line for line in map(json.loads, chosen.out.read_text().splitlines()) if line["commit"] == commit]
        )
    return 0


def show_medians(name: str, lines: Sequence[dict[str, Any]]) -> None:
    same = [line for line in lines if line["name"] == name]
    numbers = {key for line in same for key, value in line.items() if isinstance(value, int | float)} - {"repeat"}
    medians = {key: statistics.median(line[key] for line in same) for key in sorted(numbers)}
    print(f"{name}, medians of {len(same)}: {json.dumps(medians)}")


if __name__ == "__main__":
    sys.exit(main())
