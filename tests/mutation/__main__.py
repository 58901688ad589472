"""Tries every mutant of the core modules with their quick tests, and says which mutants no test notices.

A mutant is a module with one small change. survivors.toml lists the mutants that may survive, with the reason. The command fails
if another mutant survives. The verdicts are appended to a file, so that an interrupted run goes on where it stopped.
"""

import argparse
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mutation.mutants import mutants_of
from mutation.trials import Verdict, try_all

REPOSITORY = Path(__file__).parents[2]
SURVIVORS = Path(__file__).with_name("survivors.toml")
LARGEST_SHARE = 0.05  # of the mutants that change behaviour may survive
SOURCES = {name: REPOSITORY / name / "src" / "pluralllm" / name for name in ("common", "server", "client")}
UNIT = "tests/unit"
OF_ROUNDS = tuple(
    f"{UNIT}/server/rounds/test_{name}.py" for name in ("machine", "machine_limits", "private", "closing")
)
# The module of each mutant, and the tests that must notice it.
MODULES: dict[str, tuple[str, ...]] = {
    "server/rounds/weighting": (f"{UNIT}/server/rounds/test_weighting.py",),
    "server/rounds/clipping": (f"{UNIT}/server/rounds/test_clipping.py",),
    "server/rounds/looking": (f"{UNIT}/server/rounds/test_looking.py", *OF_ROUNDS),
    "server/rounds/cohort": (f"{UNIT}/server/rounds/test_cohort.py",),
    "server/rounds/state": (f"{UNIT}/server/rounds/test_state.py", *OF_ROUNDS),
    "server/runs/leases": (f"{UNIT}/server/runs/test_leases.py",),
    "server/runs/sessions": (f"{UNIT}/server/runs/test_sessions.py", f"{UNIT}/server/runs/test_live_sessions.py"),
    "server/runs/refusals": (f"{UNIT}/server/runs/test_refusals.py",),
    "server/runs/live_run": (
        f"{UNIT}/server/runs/test_live_run.py",
        f"{UNIT}/server/runs/test_checkpoints.py",
        f"{UNIT}/server/runs/test_recovery.py",
        f"{UNIT}/server/runs/test_private_rounds.py",
        f"{UNIT}/server/runs/test_runs_of_sums.py",
        f"{UNIT}/server/runs/test_growth.py",
        f"{UNIT}/server/runs/test_inbox.py",
        f"{UNIT}/server/runs/test_side_effects.py",
        f"{UNIT}/server/runs/test_coordinator.py",
        f"{UNIT}/server/runs/test_intake.py",
    ),
    "server/runs/recovery": (
        f"{UNIT}/server/runs/test_recovery.py",
        f"{UNIT}/server/runs/test_checkpoints.py",
        f"{UNIT}/server/runs/test_live_run.py",
    ),
    "server/runs/ended_evaluations": (
        *(f"{UNIT}/server/runs/test_ended_evaluations.py", f"{UNIT}/server/rpc/test_operations.py"),
    ),
    "server/process/last_used": (f"{UNIT}/server/process/test_last_used.py",),
    "server/runs/intake": (*(f"{UNIT}/server/runs/test_intake.py", f"{UNIT}/server/runs/test_private_intake.py"),),
    "server/runs/coordinator": tuple(
        f"{UNIT}/server/runs/test_{name}.py"
        for name in ("coordinator", "private_rounds", "plugin_runs", "recovery", "assignments", "expected", "growth")
    ),
    "server/rpc/polling": (f"{UNIT}/server/rpc/test_federation.py",),
    "server/rpc/federation": (f"{UNIT}/server/rpc/test_federation.py",),
    "server/members/access": (f"{UNIT}/server/members/test_access.py",),
    "server/members/door": (f"{UNIT}/server/members/test_door.py",),
    "server/aggregation/arithmetic": (f"{UNIT}/server/aggregation/test_arithmetic.py",),
    "server/aggregation/update_files": tuple(
        f"{UNIT}/server/aggregation/test_{name}.py" for name in ("update_files", "rules", "plugin_rules")
    ),
    "common/weights/chunks": (f"{UNIT}/common/weights/test_chunks.py", f"{UNIT}/common/weights/test_layout.py"),
    "common/weights/layout": (f"{UNIT}/common/weights/test_layout.py",),
    "common/weights/update_format": (f"{UNIT}/common/weights/test_update_format.py",),
    "common/wire/chunk_messages": (f"{UNIT}/common/wire/test_chunk_messages.py",),
    "client/disclosure/policy": (
        f"{UNIT}/client/disclosure/test_policy.py",
        f"{UNIT}/client/disclosure/test_missing_keys.py",
        f"{UNIT}/client/privacy/test_release.py",
        f"{UNIT}/client/test_privacy_commands.py",
    ),
    "client/disclosure/limits": (f"{UNIT}/client/disclosure/test_limits.py",),
    "client/disclosure/outgoing": (f"{UNIT}/client/disclosure/test_outgoing.py",),
    "client/disclosure/budgets": (f"{UNIT}/client/disclosure/test_budgets.py",),
    "client/daemon/pace": (f"{UNIT}/client/daemon/test_pace.py",),
    "client/keeping/outbox": (f"{UNIT}/client/keeping/test_outbox.py",),
    "client/data/private_texts": (f"{UNIT}/client/data/test_private_texts.py",),
    "client/work/train": (f"{UNIT}/client/work/test_train.py",),
    "client/work/worker": (f"{UNIT}/client/work/test_worker.py",),
    "server/members/registry": (
        *(f"{UNIT}/server/members/test_registry_limits.py", f"{UNIT}/server/members/test_registry.py"),
    ),
    "server/rounds/private": (*OF_ROUNDS, f"{UNIT}/server/runs/test_private_rounds.py"),
    "server/rounds/endings": OF_ROUNDS,
    "server/runs/held_runs": (f"{UNIT}/server/runs/test_plugin_runs.py",),
    "server/rounds/machine": OF_ROUNDS,
    "server/runs/open_rounds": (
        *(f"{UNIT}/server/runs/test_open_rounds.py", f"{UNIT}/server/runs/test_private_rounds.py"),
    ),
}
# Imported before processes are forked, so that no process imports them again.
LIBRARIES = ("torch", "grpc", "grpc.aio", "pydantic", "sqlalchemy", "cryptography.x509", "hypothesis", "pytest_asyncio")
LIBRARIES_OF_TESTS = (
    "structlog.testing",
    "safetensors.torch",
    "google.protobuf.message",
    "prometheus_client",
    "psutil",
)


@dataclass(frozen=True, slots=True)
class Listed:
    """A mutant that may survive."""

    reason: str
    is_equivalent: bool  # it behaves like the module without the change


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", help="Modules such as server/runs/intake; by default all.")
    parser.add_argument(
        "--verdicts", type=Path, default=REPOSITORY / ".stamps" / "mutants.jsonl", help="File of verdicts."
    )
    parser.add_argument("--list", action="store_true", help="Print the mutants and try none.")
    options = parser.parse_args()
    modules = options.modules or list(MODULES)
    os.chdir(REPOSITORY)
    os.environ["OMP_NUM_THREADS"] = "1"  # a forked process has no other threads
    options.verdicts.parent.mkdir(exist_ok=True)
    listed, total, unexpected = _listed(), Counter[str](), 0
    for module in modules:
        if options.list:
            print(*(f"{m.lines.start}: {m.name}" for m in mutants_of(path_of(module).read_text())), sep="\n")
            continue
        survivors, count = _tried(module, options.verdicts)
        for name, line in survivors.items():
            entry = listed.get((module, name))
            total["equivalent" if entry is not None and entry.is_equivalent else "survived"] += 1
            if entry is None:
                unexpected += 1
                print(f"{module}:{line}: {name}")
        for name in (name for at, name in listed if at == module and name not in survivors):
            print(f"{module}: survivors.toml lists a mutant that does not survive: {name}")
        total["all"] += count
        print(f"{module}: {count} mutants, {len(survivors)} survive", flush=True)
    changing = total["all"] - total["equivalent"]
    share = total["survived"] / max(1, changing)
    print(f"{total['all']} mutants, {total['equivalent']} equivalent; {total['survived']} others survive ({share:.1%})")
    return 1 if unexpected or share > LARGEST_SHARE else 0


def path_of(module: str) -> Path:
    """Returns the file of a module such as server/runs/intake."""
    room, _, rest = module.partition("/")
    return SOURCES[room] / f"{rest}.py"


def _listed() -> dict[tuple[str, str], Listed]:
    entries = tomllib.loads(SURVIVORS.read_text(encoding="utf-8")).get("survivors", [])
    return {
        (entry["module"], name): Listed(entry["reason"], entry["equivalent"])
        for entry in entries
        for name in entry["mutants"]
    }


def _tried(module: str, verdicts: Path) -> tuple[dict[str, int], int]:
    """Tries the mutants of a module that have no verdict yet.

    Returns the names of the survivors with their lines, and the number of mutants.
    """
    for library in (*LIBRARIES, *LIBRARIES_OF_TESTS):
        importlib.import_module(library)
    path, tests = path_of(module), list(MODULES[module])
    mutants = list(mutants_of(path.read_text(encoding="utf-8")))
    source, of_tests = _sha256([path]), _sha256(_files(tests))
    survived = {Verdict.SURVIVED, Verdict.NOT_RUN}
    verdict_of: dict[str, str] = {}
    for row in _rows(verdicts):
        # A mutant that was killed stays dead while its module is the same. A survivor is tried again when a test changes.
        if row["module"] == module and row["source"] == source:
            if row["verdict"] not in survived or row["tests"] == of_tests:
                verdict_of[row["mutant"]] = row["verdict"]
            else:
                verdict_of.pop(row["mutant"], None)
    untried = [mutant for mutant in mutants if mutant.name not in verdict_of]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as folder, verdicts.open("a", encoding="utf-8") as file:
        for trial in try_all(path, untried, tests, Path(folder)) if untried else ():
            made = {"commit": commit, "module": module, "mutant": trial.mutant.name, "verdict": trial.verdict}
            file.write(json.dumps(made | {"source": source, "tests": of_tests, "at": time.strftime("%FT%T")}) + "\n")
            file.flush()
            verdict_of[trial.mutant.name] = trial.verdict
    return {mutant.name: mutant.lines.start for mutant in mutants if verdict_of[mutant.name] in survived}, len(mutants)


def _rows(verdicts: Path) -> Iterator[dict[str, str]]:
    if verdicts.is_file():
        for line in verdicts.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):  # an interrupted run may leave half a line
                yield json.loads(line)


def _files(tests: list[str]) -> list[Path]:
    paths = [REPOSITORY / name for name in tests]
    return sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py")))


def _sha256(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
