"""Measures what private rounds cost: CPU time beside Flower's SecAgg+, seconds of a round beside a plain one, and alignment.

    .venv/bin/python benchmarks/private_rounds.py --cost [--points 8x4x1 8x64x1 32x4x3 100x4x10] [--venv FOLDER]
    .venv/bin/python benchmarks/private_rounds.py --walls [--points 8x4] [--rounds 6]
    .venv/bin/python benchmarks/private_rounds.py --alignment DATA --out FILE [--seeds 0 1 2] [--clip-norm 16]

--cost: points are CLIENTSxMBxDROPS. Each party's CPU time is counted in one process, without any network: the clients' steps with
their notebooks, the coordinator's desk, and the next version. Flower's side is its own code (benchmarks/flower/secagg.py), with
the same vectors, drop-outs and thresholds, in a virtual environment of its own; its messages are not even serialised. What trains
is made up on both sides and does not count. Flower shares each key among all clients, as we do; --shares sets fewer. A plain
round of the same updates is counted beside each: the files with their hashes and the mean, or Flower's mean. Flower keeps all in
memory; --folder /dev/shm does the same with our files. Each party checks each signature itself, in each step anew.

--walls: real daemons and a real coordinator as processes, with mutual TLS, durable, without training. --alignment: the preset
`default` on GlobalOpinionQA, in one process; one line for each seed is appended to FILE, and a seed that has one is skipped.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from against_flower import FLOWER, installed
from round_costs import alignment, walls
from round_costs.parties import PrivateRound, Spent, colluders_of

from pluralllm.common.words.private_rounds import threshold

POINTS = ("8x4x1", "8x64x1", "32x4x3", "100x4x10")
SCRIPT = Path(__file__).parent / "flower" / "secagg.py"


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds of one side's parties in a private round and in a plain one, and the largest error of the private mean."""

    private: Spent
    plain: Spent
    error: float

    @property
    def beyond(self) -> Spent:
        return self.private.beyond(self.plain)


def ours(clients: int, megabytes: int, drops: int, repetitions: int, folder: Path | None) -> tuple[Cost, int]:
    """Returns the cost of the repetition with the median total, and the number of values of an update.

    folder: for the parties' files; None for the system's folder of temporary files.
    """
    made, values = [], 0
    for seed in range(repetitions):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            played = PrivateRound(Path(name) / "round", clients, megabytes, drops, seed)
            plain = asyncio.run(played.play_plain())
            asyncio.run(played.play())
            made.append(Cost(played.spent, plain, played.error()))
            values = played.layout.values
    return middle(made), values


def flower(
    commands: Path, clients: int, values: int, drops: int, shares: int, repetitions: int, limit_s: float
) -> Cost | None:
    """Returns the same of Flower's parties; None if one round takes longer than `limit_s`.

    shares: number of clients among which each key is shared.
    """
    bound = threshold(clients, colluders_of(clients)) if shares == clients else threshold(shares, 0)
    made = []
    for seed in range(repetitions):
        facts = {
            "clients": clients,
            "values": values,
            "drops": drops,
            "shares": shares,
            "threshold": bound,
            "seed": seed,
        }
        options = [part for key, fact in facts.items() for part in (f"--{key}", str(fact))]
        command = [str(commands / "python"), str(SCRIPT), *options]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
        except subprocess.TimeoutExpired:
            return None
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        facts = json.loads(done.stdout.splitlines()[-1])
        private, plain = Spent(facts["clients_s"], facts["coordinator_s"]), Spent(0.0, facts["plain_s"])
        made.append(Cost(private, plain, facts["error"]))
    return middle(made)


def middle(made: Sequence[Cost]) -> Cost:
    """Returns the one with the median total."""
    return sorted(made, key=lambda one: one.private.total_s)[len(made) // 2]


def cost(points: Sequence[str], commands: Path, folder: Path | None, shares: int | None, limit_s: float) -> None:
    """Prints one line for each point: what each side's parties spend, and how many times ours Flower's spend."""
    print(f"{FLOWER}. CPU seconds of a private round, clients + coordinator; in brackets: beyond a plain round.")
    print(f"{'clients x MB (drops)':<22}{'ours':>30}{'Flower':>30}{'ratio':>18}{'largest error':>22}")
    for point in points:
        clients, megabytes, drops = map(int, point.split("x"))
        repetitions = 5 if clients * megabytes <= 128 else 1
        own, values = ours(clients, megabytes, drops, repetitions, folder)
        other = flower(commands, clients, values, drops, shares or clients, repetitions, limit_s)
        label = f"{clients} x {megabytes} ({drops})"
        if other is None:
            print(f"{label:<22}{cell(own):>30}{f'more than {limit_s:.0f} s':>30}{own.error:>40.1e}", flush=True)
            continue
        whole, beyond = other.private.total_s / own.private.total_s, other.beyond.total_s / own.beyond.total_s
        errors = f"{own.error:.1e} / {other.error:.1e}"
        print(f"{label:<22}{cell(own):>30}{cell(other):>30}{f'{whole:.1f} ({beyond:.1f})':>18}{errors:>22}", flush=True)


def cell(one: Cost) -> str:
    """Returns the text of one side's cost."""
    return f"{one.private.clients_s:.3f} + {one.private.coordinator_s:.3f} ({one.beyond.total_s:.3f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", action="store_true", help="CPU time of all parties, beside Flower's SecAgg+.")
    parser.add_argument("--walls", action="store_true", help="Seconds of a round, beside a plain one.")
    parser.add_argument("--alignment", type=Path, metavar="DATA", help="GlobalOpinionQA, a CSV file.")
    parser.add_argument("--points", nargs="+", help="CLIENTSxMBxDROPS for --cost, CLIENTSxMB for --walls.")
    parser.add_argument("--rounds", type=int, default=6, help="Rounds of --walls; the first one does not count.")
    parser.add_argument(
        "--checking",
        type=int,
        help="Clients that compute each version again, for --walls; default: all, as always up to 64 MiB.",
    )
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "pluralllm-flower")
    parser.add_argument("--folder", type=Path, help="For the files of --cost; default: that of temporary files.")
    parser.add_argument("--shares", type=int, help="Clients among which Flower shares a key; default: all.")
    parser.add_argument("--limit-s", type=float, default=1800.0, help="Longest time of one round of Flower's.")
    parser.add_argument("--out", type=Path, default=Path("private-alignment.jsonl"), help="File of --alignment.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="default")
    parser.add_argument("--clip-norm", type=float, default=16.0, help="private_rounds.clip_norm for --alignment.")
    parser.add_argument("--cache", type=Path, default=Path("preset-trials-cache"), help="Folder of embedded texts.")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.cost:
        cost(chosen.points or POINTS, installed(chosen.venv), chosen.folder, chosen.shares, chosen.limit_s)
    if chosen.walls:
        points = [
            (int(clients), int(size)) for clients, size in (one.split("x")[:2] for one in chosen.points or ["8x4"])
        ]
        walls.show(points, chosen.rounds, chosen.checking)
    if chosen.alignment is not None:
        facts = (chosen.preset, chosen.clip_norm, chosen.seeds, chosen.cache)
        alignment.measure(chosen.alignment, chosen.out, *facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
