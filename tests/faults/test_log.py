"""A log that cannot be written: the disk is full, or the pipe has no reader. Rounds go on, and the coordinator is healthy."""

import sys
from pathlib import Path

import pytest
from drill.client import Behaviour
from drill.fleet import Fleet, fleet
from drill.pairs import Embedded
from drill.scenarios import begin
from drill.trial import UNDISTURBED
from support.commands import SERVER, typed
from support.process_harness import process_spec

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("forked_workers")]
SPEC = process_spec(rounds=2, round={"evaluate_every": 2})
WAITING = {"ann": {2: Behaviour.WAIT}, "ben": {2: Behaviour.WAIT}}
# Programs that open a log and then run the command of their arguments.
FULL_DISK = "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), 2); os.execv(sys.argv[1], sys.argv[1:])"
NO_READER = (
    "import os, sys; ends = os.pipe(); os.dup2(ends[1], 2); os.close(ends[0]); os.execv(sys.argv[1], sys.argv[1:])"
)


def log_to(drilled: Fleet, program: str) -> None:
    """Makes the coordinator's next process start with the log that the program opens."""
    coordinator = drilled.processes[0]
    start = coordinator.command.index("-m") - 1  # without an earlier program
    coordinator.command = [sys.executable, "-c", program, *coordinator.command[start:]]


def healthy(drilled: Fleet) -> bool:
    return typed(SERVER, "healthy", "--config", drilled.config).returncode == 0


def test_a_coordinator_without_a_log_completes_its_rounds_and_is_healthy(tmp_path: Path) -> None:
    with fleet(tmp_path / "fleet", Embedded(), UNDISTURBED) as drilled:
        log_to(drilled, FULL_DISK)
        begin(drilled, SPEC, WAITING)
        drilled.insist("round 1 is published", lambda remote: remote.get_run("r")["version"] == 1)
        assert healthy(drilled)
        log_to(drilled, NO_READER)
        drilled.restart_coordinator()
        for name in WAITING:
            drilled.let_go(name, 2)
        assert drilled.insist("round 2 is published", lambda remote: remote.get_run("r")["version"] == 2)
        assert healthy(drilled)
        drilled.finish()
        assert "run.event" not in drilled.processes[0].log.read_text(), "the log did not go elsewhere"
