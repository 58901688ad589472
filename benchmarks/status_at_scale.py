"""Measures how soon a coordinator with a history of 1,000 rounds and 100 members serves, and how soon an operator gets answers.

.venv/bin/python benchmarks/status_at_scale.py [--rounds 1000] [--members 100] [--ended-runs 0] [--times 15]

The coordinator's own round machine and store create the history, event by event: every member trains in every round, and
evaluates every tenth version. Then a coordinator serves the history over TLS; every member is connected and holds a task. The
commands run as processes, as an operator runs them, and are timed from their start to their last line. Results are the median
and the slowest time. With --ended-runs the coordinator has that many runs more, each of one round of all members.
"""

import argparse
import asyncio
import contextlib
import hashlib
import os
import pty
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from idle_clients import Simulated
from processes import administrator, coordinator, member

from pluralllm.client.link.channel import Connection
from pluralllm.client.link.transport import Transport
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.trust.identity import Identity
from pluralllm.common.wire.channels import secure_channel
from pluralllm.common.words.ids import ClientId, Digest, GroupName, RunId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole, RunSpec
from pluralllm.operator.remote import Remote
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.inbox import Inbox
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.new_run import make_run
from pluralllm.server.storage.blobs import LocalBlobs
from pluralllm.server.storage.sql_store import open_store
from pluralllm.server.storage.state_directory import StateDirectory

LIMIT_S = 60.0
# Texts that the top of the status screen shows.
RUNNING, PAUSED = re.compile(rb"collecting for .*next: ", re.DOTALL), re.compile(rb"collecting \(paused\) for")
SCREEN = {**os.environ, "COLUMNS": "120", "LINES": "140", "TERM": "xterm-256color"}


def spec_of(rounds: int, members: int) -> RunSpec:
    return RunSpec.model_validate(
        {
            "rounds": rounds,
            "round": {"min_clients": members, "target_clients": members, "evaluate_every": 10, "deadline_s": 3600},
            "predictor": {"d_model": 16, "layers": 1, "heads": 2, "feedforward": 16, "embedder_layers": 2},
            "embedding": {"model": "none", "dimension": 32},
        }
    )


async def make_history(folder: Path, rounds: int, ended_runs: int, names: list[ClientId]) -> int:
    """Writes the history of ended runs and of a run in which `rounds` rounds have ended; returns the number of their events.

    folder: state directory of the coordinator. names: the clients of every round.
    """
    state, clock = StateDirectory(folder), SystemClock()
    store = await open_store(state.database_url)
    count = 0
    try:
        inbox, blobs = Inbox(store), LocalBlobs(state.blobs)
        for number in range(ended_runs + 1):
            is_long = number == ended_runs
            spec = spec_of(2 * rounds if is_long else 1, len(names))
            name = RunId("long" if is_long else f"ended-{number:05}")
            run = await make_run(store, blobs, state.scratch, {}, name, spec, clock.now_s())
            await inbox.put(run, ev.RunStarted(clock.now_s()))
            while not run.is_over and (run.state.round < rounds or run.state.phase is not Phase.WAITING):
                events = tuple(events_from(run, names, clock.now_s()))
                await asyncio.gather(
                    *(inbox.put(run, event) for event in events)
                )  # in their order, in few transactions
            count += run.sequence
        return count
    finally:
        await store.close()


def events_from(run: LiveRun, names: list[ClientId], at_s: float) -> Iterator[ev.Event]:
    """Yields the events that move a run from its current phase to the next phase.

    names: the clients, which all answer. at_s: time of the events in seconds.
    """
    state = run.state
    match state.phase:
        case Phase.WAITING:
            yield ev.ClientsSeen(at_s, tuple(names), ())
        case Phase.COLLECTING:
            for name in state.active:
                update = Digest(hashlib.sha256(f"{state.round} {name}".encode()).hexdigest())
                yield ev.UpdateArrived(at_s, state.round, state.version, ev.Receipt(name, update, 100))
        case Phase.AGGREGATING:
            yield ev.ModelAveraged(at_s, state.round, run.first.digest)
        case Phase.EVALUATING:
            yield ev.ClientsSeen(at_s, tuple(names), ())
            for number, name in enumerate(names):
                score = 0.6 + 0.2 * (1 - 0.99**state.version) + number / 1000
                group = GroupName(f"group of {name}")
                yield ev.EvaluationArrived(
                    at_s, ev.Score(name, group, GroupRole.TRAIN, state.version, score, score - 0.05, None, 100)
                )


def connected(identity: Identity) -> Transport:
    own = (("grpc.use_local_subchannel_pool", 1),)
    connection = Connection([identity.membership.coordinator], lambda at: secure_channel(identity.at(at), own))
    return Transport(connection, identity.membership.name, in_plain_text=False)


@contextlib.contextmanager
def members_at_work(members: list[Identity]) -> Iterator[None]:
    """Connects all members for the duration of the `with` block; each has a session, and a task while a round is open."""
    loop = asyncio.new_event_loop()

    async def wait(identity: Identity) -> None:
        transport = connected(identity)
        try:
            await Simulated(identity.membership.name, transport).live()
        finally:
            await transport.close()

    async def all_wait() -> None:
        await asyncio.gather(*(wait(identity) for identity in members))

    work = loop.create_task(all_wait())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait([work])), daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(work.cancel)
        thread.join(LIMIT_S)


def milliseconds(work: Callable[[], object], times: int) -> str:
    taken = []
    for _ in range(times):
        began_s = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began_s) * 1e3)
    return f"{statistics.median(taken):.0f} ms (slowest {max(taken):.0f} ms)"


def command(folder: Path, *words: str) -> list[str]:
    address = (folder / "state" / "address").read_text().strip()
    program = [sys.executable, "-m", "pluralllm.cli", "--identity", str(folder / "admin")]
    return [*program, *words, "--coordinator", address]


def run_command(folder: Path, *words: str) -> None:
    done = subprocess.run(command(folder, *words), check=True, capture_output=True, timeout=LIMIT_S, env=SCREEN)
    assert done.stdout


def watch(folder: Path, remote: Remote, times: int) -> tuple[str, str]:
    """Times the command `status --watch`, `times` times.

    Returns two texts: the time until the first screen, and the time until the screen shows a change of the run. The second time
    begins when the coordinator has acknowledged the change.
    """
    ours, its = pty.openpty()
    began_s = time.perf_counter()
    watching = subprocess.Popen(command(folder, "status", "long", "--watch"), stdout=its, stderr=its, env=SCREEN)
    os.close(its)
    shown: list[float] = []
    try:
        read_until(ours, RUNNING)
        first_ms = (time.perf_counter() - began_s) * 1e3
        for _ in range(times):
            remote.pause_run("long")
            changed_s = time.perf_counter()
            read_until(ours, PAUSED)
            shown.append((time.perf_counter() - changed_s) * 1e3)
            remote.resume_run("long")
            read_until(ours, RUNNING)
    finally:
        watching.terminate()
        watching.wait(LIMIT_S)
        os.close(ours)
    return f"{first_ms:.0f} ms", f"{statistics.median(shown):.0f} ms (slowest {max(shown):.0f} ms)"


def read_until(terminal: int, pattern: re.Pattern[bytes]) -> None:
    """Reads the terminal until the text that arrives after the call matches `pattern`.

    terminal: file descriptor of the terminal.
    """
    seen, until_s = b"", time.monotonic() + LIMIT_S
    while not pattern.search(re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", seen)):
        if time.monotonic() > until_s:
            raise SystemExit(f"no {pattern.pattern!r} in {LIMIT_S:g} s, but: {seen[-2000:]!r}")
        seen += os.read(terminal, 65_536)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--ended-runs", type=int, default=0)
    parser.add_argument("--times", type=int, default=15)
    arguments = parser.parse_args()
    names = [ClientId(f"member-{number:03}") for number in range(arguments.members)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with coordinator(folder, joins_per_minute="10000") as process:
            remote = administrator(folder)
            members = [member(remote, folder, client, MemberRole.CLIENT) for client in names]
            remote.close()
            process.terminate()
            process.wait(LIMIT_S)
        began_s = time.perf_counter()
        events = asyncio.run(make_history(folder / "state", arguments.rounds, arguments.ended_runs, names))
        print(
            f"{arguments.rounds} rounds of {arguments.members} members, {arguments.ended_runs} ended runs, {events} events, "
            f"made in {time.perf_counter() - began_s:.0f} s"
        )
        began_s = time.perf_counter()
        with coordinator(folder, with_authority=False):
            remote = administrator(folder)
            print(f"the coordinator has them again after {time.perf_counter() - began_s:.1f} s", flush=True)
            address = (folder / "state" / "address").read_text().strip()
            with members_at_work([identity.at(address) for identity in members]):
                wait_for_round(remote, arguments.members)
                report(folder, remote, arguments.times)
            remote.close()
    return 0


def wait_for_round(remote: Remote, members: int) -> None:
    """Waits until every member has a task."""
    until_s = time.monotonic() + LIMIT_S
    while True:
        run = remote.get_run("long")
        if sum(client["state"] in ("assigned", "working") for client in run["participants"]) == members:
            return
        if time.monotonic() > until_s:
            raise SystemExit(f"no round with everyone in {LIMIT_S:g} s, but: {run['next']}")
        time.sleep(0.2)


def report(folder: Path, remote: Remote, times: int) -> None:
    first, shown = watch(folder, remote, times)
    for name, taken in (
        (
            "the coordinator's answer to GetRun, over an open connection",
            milliseconds(lambda: remote.get_run("long"), times),
        ),
        ("pluralllm runs, all of them", milliseconds(lambda: run_command(folder, "runs"), times)),
        ("pluralllm status", milliseconds(lambda: run_command(folder, "status", "long"), times)),
        ("pluralllm status --json", milliseconds(lambda: run_command(folder, "status", "long", "--json"), times)),
        ("pluralllm rounds", milliseconds(lambda: run_command(folder, "rounds", "long"), times)),
        ("pluralllm members", milliseconds(lambda: run_command(folder, "members"), times)),
        (
            "pluralllm report, all rounds",
            milliseconds(lambda: run_command(folder, "report", "long", "--out", str(folder / "report")), 3),
        ),
        ("pluralllm status --watch, its first screen", first),
        ("pluralllm status --watch, from a change to the screen that shows it", shown),
        ("for comparison: python -c 'import grpc, typer, rich.table'", milliseconds(bare, times)),
    ):
        print(f"{name}: {taken}", flush=True)


def bare() -> None:
    subprocess.run([sys.executable, "-c", "import grpc, typer, rich.table"], check=True, timeout=LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
