"""Half an hour of rounds with fifty clients: the coordinator's memory and files do not grow with the rounds that are done."""

import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from drill.fleet import Fleet, fleet
from drill.pairs import Embedded
from drill.scenarios import begin
from drill.trial import ALL, REPORT, UNDISTURBED
from support.process_harness import Process, process_spec

MINUTES = float(os.environ.get("PLURALLLM_SOAK_MINUTES", "30"))
CLIENTS, LOOK_EVERY_S = 50, 5.0
ROUND = {"min_clients": CLIENTS, "target_clients": CLIENTS, "gather_s": 60, "deadline_s": 120, "evaluate_every": 20}
MB = 1024**2
MEMORY_GROWTH = 0.05  # the allowed growth from the second sixth of the time to the last one

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(60 * MINUTES + 600),
    pytest.mark.skipif(not ALL, reason="takes half an hour; make faults"),
]


@dataclass(frozen=True, slots=True)
class Sample:
    """The resources of one process at one moment."""

    memory_mb: float  # memory that it shares with no other process
    files: int
    threads: int


def sample(process: Process) -> Sample:
    assert process.popen is not None
    found = psutil.Process(process.popen.pid)
    with found.oneshot():
        return Sample(found.memory_full_info().uss / MB, found.num_fds(), found.num_threads())


@pytest.fixture
def soaked(tmp_path: Path) -> Iterator[tuple[Fleet, Process]]:
    with fleet(tmp_path / "fleet", Embedded(), UNDISTURBED, joins_per_minute="10000") as started:
        names = [f"client-{number}" for number in range(CLIENTS)]
        begin(started, process_spec(rounds=100_000, round=ROUND), {name: {} for name in names})
        yield started, started.processes[0]


def middle(samples: list[Sample], first: float, last: float) -> Sample:
    """Returns the medians of the samples between two fractions of the time."""
    chosen = samples[round(first * len(samples)) : round(last * len(samples))]
    return Sample(
        statistics.median(sample.memory_mb for sample in chosen),
        round(statistics.median(sample.files for sample in chosen)),
        round(statistics.median(sample.threads for sample in chosen)),
    )


def test_memory_files_and_threads_stay_as_they_are(soaked: tuple[Fleet, Process]) -> None:
    soaked_fleet, coordinator = soaked
    end_s, samples = time.monotonic() + 60 * MINUTES, []
    while time.monotonic() < end_s:
        time.sleep(LOOK_EVERY_S)
        samples.append(sample(coordinator))
    rounds = soaked_fleet.insist("how far it is", lambda remote: int(remote.get_run("r")["round"]))
    soaked_fleet.insist("the run is cancelled", lambda remote: bool(remote.cancel_run("r", "the soak is over")))
    soaked_fleet.finish()  # and verify
    before, after = middle(samples, 1 / 6, 2 / 6), middle(samples, 5 / 6, 1)
    summary = (
        f"{CLIENTS} clients, {MINUTES:.0f} minutes, {rounds} rounds, {rounds * CLIENTS} updates: "
        f"memory {before.memory_mb:.1f} MB, then {after.memory_mb:.1f} MB; open files {before.files}, {after.files}; "
        f"threads {before.threads}, {after.threads}"
    )
    print(f"\n{summary}")
    if REPORT:
        with Path(REPORT).open("a") as file:
            file.write(f"\n## Soak\n\n{summary}\n")
    assert rounds > MINUTES
    assert after.memory_mb < (1 + MEMORY_GROWTH) * before.memory_mb, summary
    assert abs(after.files - before.files) <= 5, summary
    assert after.threads <= before.threads + 2, summary
