"""Rounds of the real service with real daemons that do not train: seconds of a private round beside those of a plain one.

Coordinator and daemons are processes; mutual TLS is on, and all state is durable. Plain and private federations differ in the
run spec's table [private_rounds] only. The first round of each federation does not count.
"""

import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from echo import Watch, finished, processes, round_lengths, spec_of, spread
from processes import administrator, coordinator, member

from pluralllm.client.private_rounds.pins import FILE, save_pins
from pluralllm.common.private_rounds.peer_keys import fingerprint, public_der
from pluralllm.common.trust.identity import Identity, peer_key
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import RunSpec

DAEMON = Path(__file__).parents[1] / "untrained_daemon.py"
CLIP_NORM = 4.0


@dataclass(frozen=True, slots=True)
class Walls:
    """Measurements of one federation of daemons."""

    rounds_s: list[float]  # without the first
    coordinator_cpu_s: float
    clients_cpu_s: float  # of all of them, with the start of their processes
    coordinator_grows_mb: float  # peak resident set minus the idle one
    client_peak_mb: float
    moved_bytes: int


def of_private_rounds(spec: RunSpec, clip_norm: float = CLIP_NORM) -> RunSpec:
    """Returns the same spec with private rounds."""
    values = spec.model_dump(mode="json", exclude_unset=True)
    values["private_rounds"] = {"clip_norm": clip_norm, "closing_scores": False}
    values.setdefault("aggregation", {})["max_examples"] = 1024
    return RunSpec.model_validate(values)


def measured(folder: Path, spec: RunSpec, deltas: Path | None = None, checking: int | None = None) -> Walls:
    """Runs one federation of daemons, as many as the spec's target_clients, to its end. folder: for all state; it is kept.

    deltas: folder of the updates to hand in; None: they are made up. checking: number of clients that compute each version again;
    None: all, as it is with versions of at most 64 MiB of updates.
    """
    clients = spec.round.target_clients
    names = [f"member-{number:03}" for number in range(1, clients + 1)]
    with coordinator(folder, joins_per_minute="10000", calls_per_second="1000000") as process:
        remote = administrator(folder)
        identities = {name: member(remote, folder, name, MemberRole.CLIENT) for name in names}
        remote.create_run("walls", spec.canonical_json())
        remote.start_run("walls")
        commands = [_command(folder, name, identities, deltas) for name in names]
        if checking is not None:
            for number, command in enumerate(commands):
                command += ["--verify-share", str(int(number < checking))]
        watch = Watch(process)
        cpu_s = sum(process.cpu_times()[:2])
        with processes(commands, folder / "clients.log") as running:
            reports = [finished(client, folder / "clients.log") for client in running]
        watch.end()
        cpu_s = sum(process.cpu_times()[:2]) - cpu_s
        lengths = round_lengths(remote, "walls")
        remote.close()
    return Walls(
        rounds_s=lengths,
        coordinator_cpu_s=cpu_s,
        clients_cpu_s=sum(report["cpu_s"] for report in reports),
        coordinator_grows_mb=watch.peak_mb - watch.idle_mb,
        client_peak_mb=max(report["peak_mb"] for report in reports),
        moved_bytes=int(sum(report["sent"] + report["received"] for report in reports)),
    )


def _command(folder: Path, name: str, identities: dict[str, Identity], deltas: Path | None) -> list[str]:
    """Returns the command of a daemon that has pinned all members. Makes the folder of its state."""
    home = folder / f"{name}-daemon"
    (home / "state").mkdir(parents=True)
    save_pins(
        home / "state" / FILE, {one: fingerprint(public_der(peer_key(i.folder))) for one, i in identities.items()}
    )
    command = [sys.executable, str(DAEMON), "--identity", str(identities[name].folder), "--folder", str(home)]
    return [*command, *([] if deltas is None else ["--deltas", str(deltas)])]


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def show(points: Sequence[tuple[int, int]], rounds: int, checking: int | None) -> None:
    """Measures plain and private federations in turn, and prints one line for each point. checking: as for `measured`."""
    print(
        f"{'clients x MB':<14}{'plain s':>18}{'private s':>18}{'ratio':>7}{'MB moved':>16}{'coordinator CPU s':>20}"
        f"{'clients CPU s':>16}{'coordinator grows MB':>23}{'client MB':>13}"
    )
    for clients, megabytes in points:
        spec = spec_of(clients, megabytes, rounds)
        with _folder() as plain_folder, _folder() as private_folder:
            plain = measured(plain_folder, spec)
            private = measured(private_folder, of_private_rounds(spec), checking=checking)
        ratio = statistics.median(private.rounds_s) / statistics.median(plain.rounds_s)
        both = (
            (f"{one.moved_bytes / 1e6:.0f}" for one in (plain, private)),
            (f"{one.coordinator_cpu_s:.1f}" for one in (plain, private)),
            (f"{one.clients_cpu_s:.1f}" for one in (plain, private)),
            (f"{one.coordinator_grows_mb:.0f}" for one in (plain, private)),
            (f"{one.client_peak_mb:.0f}" for one in (plain, private)),
        )
        cells = [" / ".join(pair) for pair in both]
        print(
            f"{f'{clients} x {megabytes}':<14}{spread(plain.rounds_s):>18}{spread(private.rounds_s):>18}{ratio:>7.2f}"
            f"{cells[0]:>16}{cells[1]:>20}{cells[2]:>16}{cells[3]:>23}{cells[4]:>13}",
            flush=True,
        )
