"""Measures rounds of the real service with clients that do not train, and compares them with the shortest possible round.

.venv/bin/python benchmarks/echo.py                     about ten minutes on two idle cores
.venv/bin/python benchmarks/echo.py --points 2x4 8x64 --rounds 5 --tls on

Every client is a process. The coordinator is a process too and keeps its state on disk. Every chunk is hashed at both ends.
The shortest possible round, called the floor, moves the same bytes over plain gRPC streams with the same TLS, hashes them once
at each end, and syncs each update to disk before it answers. Results are medians over the rounds of one run without the first
round. Service and floor are measured in turn, for each number of clients and size of the model.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from processes import administrator, coordinator, member

from pluralllm.common.trust.identity import Identity
from pluralllm.common.words.names import RoundName
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import RunSpec
from pluralllm.operator.remote import Remote

POINTS = ("2x4", "8x4", "32x4", "8x64", "2x256", "32x64")
WIDTHS = {4: 192, 64: 768, 256: 1536}  # by approximate size of the predictor in megabytes: its d_model
HERE = Path(__file__).parent
LIMIT_S = 900.0
EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of one run of a federation."""

    rounds_s: list[float]
    moved_bytes: int  # both ways, in all rounds
    coordinator_cpu_s: float
    coordinator_grows_mb: float  # peak resident set minus the idle one
    client_peak_mb: float


def spec_of(clients: int, megabytes: int, rounds: int) -> RunSpec:
    width = WIDTHS[megabytes]
    return RunSpec.model_validate(
        {
            "rounds": rounds,
            "round": {"min_clients": clients, "target_clients": clients, "evaluate_every": rounds, "gather_s": 120},
            "predictor": {
                "d_model": width, "layers": 4, "heads": 4, "feedforward": width, "embedder_layers": 4
            },
            "embedding": {"model": "echo", "dimension": 32},
        }
    )  # fmt: skip


class Watch:
    """Sampler of a process's memory: records the largest resident set until `end` is called."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._stop = threading.Event()
        self.idle_mb = self.peak_mb = process.memory_info().rss / 1e6
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.wait(EVERY_S):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.peak_mb = max(self.peak_mb, self._process.memory_info().rss / 1e6)

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


@contextlib.contextmanager
def processes(commands: list[list[str]], log: Path) -> "Iterator[list[subprocess.Popen[str]]]":
    """Starts the commands as processes, and kills them at the end of the `with` block.

    log: the file for the processes' error output.
    """
    with log.open("w") as errors:
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) for command in commands]
        try:
            yield running
        finally:
            for process in running:
                process.kill()
                process.wait(10)


def service(
    folder: Path, clients: int, megabytes: int, rounds: int, *, is_secure: bool
) -> tuple[Measured, list[Identity]]:
    """Runs one federation on the real service; returns its measurements and the clients' identities.

    megabytes: size of the model. is_secure: whether TLS is used; without TLS the clients have no identities.
    The floor, which echo_floor.py measures, uses the same identities.
    """
    with coordinator(folder, plain_text=not is_secure, joins_per_minute="10000", calls_per_second="1000000") as process:
        remote = administrator(folder, plain_text=not is_secure)
        names = [f"echo-{number}" for number in range(clients)]
        members = [member(remote, folder, name, MemberRole.CLIENT) for name in names] if is_secure else []
        address = (folder / "state" / "address").read_text().strip()
        remote.create_run("echo", spec_of(clients, megabytes, rounds).canonical_json())
        remote.start_run("echo")
        watch = Watch(process)
        cpu_s = sum(process.cpu_times()[:2])
        commands = [
            echo_command(folder, name, address, members[n] if is_secure else None) for n, name in enumerate(names)
        ]
        with processes(commands, folder / "clients.log") as running:
            client_reports = [finished(client, folder / "clients.log") for client in running]
        watch.end()
        cpu_s = sum(process.cpu_times()[:2]) - cpu_s
        lengths = round_lengths(remote)
        remote.close()
    moved = int(sum(client["sent"] + client["received"] for client in client_reports))
    peak_mb = max(client["peak_mb"] for client in client_reports)
    return Measured(lengths, moved, cpu_s, watch.peak_mb - watch.idle_mb, peak_mb), members


def echo_command(folder: Path, name: str, address: str, identity: Identity | None) -> list[str]:
    home = folder / f"{name}-work"
    home.mkdir()
    identity_options = [] if identity is None else ["--identity", str(identity.folder)]
    command = [sys.executable, str(HERE / "echo_client.py"), "--address", address, "--name", name, "--run", "echo"]
    return [*command, "--folder", str(home), *identity_options]


def finished(client: "subprocess.Popen[str]", log: Path) -> dict[str, Any]:
    out, _ = client.communicate(timeout=LIMIT_S)
    if client.returncode:
        raise SystemExit(log.read_text()[-3000:])
    return dict(json.loads(out.splitlines()[-1]))


def round_lengths(remote: Remote, run: str = "echo") -> list[float]:
    """Returns the duration of each round of a run in seconds, without the first round.

    A round lasts until the next one begins; the last round lasts until its own end.
    """
    rounds = sorted(remote.rounds(run, 1000), key=lambda row: RoundName.parse(row["name"]).number)
    begins = [moment(each["create_time"]) for each in rounds]
    ends = [*begins[1:], moment(rounds[-1]["update_time"])]
    return [end - begin for begin, end in zip(begins, ends, strict=True)][1:]


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def floor(
    folder: Path, clients: int, megabytes: int, rounds: int, secured: tuple[Path, list[Identity]] | None
) -> list[float]:
    common = ["--megabytes", str(megabytes), "--rounds", str(rounds + 1)]
    script = [sys.executable, str(HERE / "echo_floor.py")]
    server = [*script, "server", "--folder", str(folder), "--clients", str(clients), *common]
    server += ["--state", str(secured[0])] if secured else []
    with processes([server], folder / "floor.log") as (serving,):
        assert serving.stdout is not None
        address = serving.stdout.readline().strip()
        client = [*script, "client", "--address", address, *common]
        identities = (
            [["--identity", str(one.folder)] for one in secured[1]] if secured else [[] for _ in range(clients)]
        )
        with processes([[*client, *options] for options in identities], folder / "floor-clients.log"):
            lengths: list[float] = finished(serving, folder / "floor.log")["rounds_s"]
            return lengths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--points",
        nargs="+",
        default=POINTS,
        metavar="CLIENTSxMB",
        help=f"Points to measure; MB is one of {', '.join(map(str, WIDTHS))}.",
    )
    parser.add_argument("--rounds", type=int, default=6, help="Rounds of each point; the first one does not count.")
    parser.add_argument("--tls", choices=("on", "off", "both"), default="both")
    arguments = parser.parse_args()
    points = [tuple(map(int, point.split("x"))) for point in arguments.points]
    if unknown := [size for _, size in points if size not in WIDTHS]:
        parser.error(f"no model of {unknown[0]} MB; there are: {', '.join(map(str, WIDTHS))}")
    print(
        f"{'clients x MB':<14}{'TLS':<5}{'round s':>16}{'floor s':>16}{'ratio':>7}{'MB moved':>10}"
        f"{'CPU s/GB':>10}{'grows MB':>10}{'client MB':>11}"
    )
    for clients, megabytes in points:
        for is_secure in {"on": [True], "off": [False], "both": [True, False]}[arguments.tls]:
            with tempfile.TemporaryDirectory() as name:
                measured, members = service(Path(name), clients, megabytes, arguments.rounds, is_secure=is_secure)
                secured = (Path(name) / "state" / "authority", members) if is_secure else None
                least = floor(Path(name), clients, megabytes, arguments.rounds, secured)
            print(line(f"{clients} x {megabytes}", measured, least, is_secure=is_secure), flush=True)
    return 0


def line(point: str, measured: Measured, least: list[float], *, is_secure: bool) -> str:
    round_s, floor_s = statistics.median(measured.rounds_s), statistics.median(least)
    return (
        f"{point:<14}{'on' if is_secure else 'off':<5}{spread(measured.rounds_s):>16}{spread(least):>16}{round_s / floor_s:>7.2f}"
        f"{measured.moved_bytes / 1e6:>10.0f}{measured.coordinator_cpu_s / (measured.moved_bytes / 1e9):>10.2f}"
        f"{measured.coordinator_grows_mb:>10.0f}{measured.client_peak_mb:>11.0f}"
    )


def spread(lengths_s: list[float]) -> str:
    return f"{statistics.median(lengths_s):.2f} ({min(lengths_s):.2f}-{max(lengths_s):.2f})"


if __name__ == "__main__":
    sys.exit(main())
