"""strace kills the coordinator at system calls on its files, one after another; all else is as in test_failpoints.py."""

import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from drill.coordinator import ONE_THREAD
from drill.fleet import Fault
from drill.pairs import Embedded, StorePair
from drill.scenarios import SCENARIOS
from drill.trial import ALL, SAMPLE_ONLY, Undisturbed, drill

ORDINARY = SCENARIOS[0]
SEED = 20250312


def why_not() -> str:
    """Returns the reason why strace cannot be used here; "" if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, timeout=30, check=False
    )
    return f"strace may not trace: {tried.stderr.strip()[:200]}" if tried.returncode else ""


WHY_NOT = why_not()
pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(3600 if ALL else 300),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.usefixtures("forked_workers"),
]

DATABASE = ("coordinator.sqlite3", "coordinator.sqlite3-journal")
UPLOADS = tuple(f"uploads/r.{number}.{client}.part" for number in (1, 2, 3) for client in ("ann", "ben"))
DRAFTS = tuple(
    f"scratch/r-{number}.safetensors{part}" for number in (1, 2, 3) for part in ("", ".moment-1", ".moment-2")
)


@dataclass(frozen=True, slots=True)
class Strike:
    """The system calls of one kind; strace counts them for each thread separately."""

    name: str
    call: str
    files: Sequence[str]  # in the state directory; if there is none, any file
    sure: int  # the number of these calls that every ordinary run makes

    def at(self, number: int) -> Fault:
        """Kills the coordinator when the call begins: the call has not happened, all earlier ones have."""

        def attach(state: Path) -> list[str]:
            inject = f"inject={self.call}:signal=SIGKILL:when={number}"
            paths = [word for file in self.files for word in ("-P", str(state / file))]
            return ["strace", "-f", "-o", "/dev/null", "-e", f"trace={self.call}", "-e", inject, *paths, "-p"]

        return Fault(f"{self.name} {number}", {ONE_THREAD: "1"}, attach)


STRIKES = (
    Strike("fsync of a blob or folder", "fsync", (), 30),
    Strike("rename of a blob", "rename", (), 12),
    Strike("write to a draft of a version", "write", DRAFTS, 10),
    Strike("write to an upload", "pwrite64", UPLOADS, 6),
    Strike("sync of the database", "fdatasync", DATABASE, 40),
    Strike("write to the database", "pwrite64", DATABASE, 100),
    Strike("end of the database's journal", "unlink", DATABASE, 15),
)
SAMPLE = ("fsync of a blob or folder", "write to an upload", "sync of the database")


@pytest.mark.parametrize("pair", [Embedded.name], indirect=True, scope="session")  # the other pair has no local files
@pytest.mark.parametrize(
    "strike",
    [
        pytest.param(s, id=s.name, marks=() if ALL or s.name in SAMPLE else pytest.mark.skip(reason=SAMPLE_ONLY))
        for s in STRIKES
    ],
)
def test_a_coordinator_killed_at_a_system_call_goes_on_as_if_nothing_had_been(
    tmp_path: Path, pair: StorePair, undisturbed: Undisturbed, strike: Strike
) -> None:
    expected_digest = undisturbed.of(ORDINARY).digest
    numbers = count(1) if ALL else [random.Random(f"{SEED} {strike.name}").randint(1, strike.sure)]
    for number in numbers:
        ending = drill(tmp_path / str(number), pair, ORDINARY, strike.at(number), expected_digest)
        if not ending.fired:
            assert number > strike.sure, f"there were fewer than {number} of them"
            return
