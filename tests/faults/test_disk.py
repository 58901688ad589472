"""A full disk and a failing disk: every promise is kept. A full disk heals; a failing one ends the coordinator."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drill.client import Behaviour
from drill.fleet import Fleet, fleet
from drill.pairs import Embedded
from drill.scenarios import begin
from drill.trial import UNDISTURBED
from faults.test_system_calls import WHY_NOT
from support.process_harness import LOOK_EVERY_S, Process, process_spec

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("forked_workers")]
SPEC = process_spec(rounds=3, round={"evaluate_every": 3})
WAITING = {"ann": {2: Behaviour.WAIT}, "ben": {2: Behaviour.WAIT}}
LIMIT_S = 60.0
DISK_BYTES = 48 * 1024**2


def until(what: str, holds: Callable[[], bool], fleet_to_watch: Fleet) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end_s, f"not within {LIMIT_S} s: {what}\n{fleet_to_watch.logs()}"
        time.sleep(LOOK_EVERY_S)


@pytest.fixture(scope="module")
def undisturbed_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the last version of an undisturbed run."""
    with fleet(tmp_path_factory.mktemp("undisturbed") / "fleet", Embedded(), UNDISTURBED) as found:
        begin(found, SPEC, {"ann": {}, "ben": {}})
        return found.finish()


@pytest.fixture
def in_round_two(tmp_path: Path) -> Iterator[Fleet]:
    """A run whose clients wait for a signal to deliver."""
    with fleet(tmp_path / "fleet", Embedded(), UNDISTURBED) as found:
        yield found


def go_to_round_two(found: Fleet) -> None:
    begin(found, SPEC, WAITING)
    found.insist("round 2 is open", lambda remote: remote.get_run("r")["round"] == 2)


def test_a_full_disk_takes_no_update_but_tells_how_things_are_and_heals(
    in_round_two: Fleet, undisturbed_digest: str
) -> None:
    drilled, state = in_round_two, in_round_two.state
    state.mkdir()
    tmpfs = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(state)]
    if subprocess.run(tmpfs, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        go_to_round_two(drilled)
        filler = state / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(state).free))
        for name in WAITING:
            drilled.let_go(name, 2)
        until("an update is refused", lambda: "StorageFull" in drilled.processes[1].log.read_text(), drilled)
        for _ in range(3):
            assert drilled.insist("the status answers", lambda remote: remote.get_run("r"))["round"] == 2
            assert drilled.insist("rounds are listed", lambda remote: remote.rounds("r", 10))[0]["receipts"] == []
            time.sleep(0.5)
        filler.unlink()
        assert drilled.finish() == undisturbed_digest
    finally:
        drilled.clear_away()
        subprocess.run(["umount", str(state)], check=True, timeout=30)


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_a_failing_disk_ends_the_coordinator_before_it_acknowledges(
    in_round_two: Fleet, undisturbed_digest: str
) -> None:
    drilled = in_round_two
    coordinator, clients = drilled.processes
    go_to_round_two(drilled)
    assert coordinator.popen is not None
    pid = str(coordinator.popen.pid)
    strace = ["strace", "-f", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO", "-p", pid]
    striker = Process(strace, drilled.folder / "striker.log", {}).start()
    drilled.processes.append(striker)
    until("the striker is attached", lambda: "attached" in striker.log.read_text(), drilled)
    for name in WAITING:
        drilled.let_go(name, 2)
    until("the coordinator ends", lambda: not coordinator.running, drilled)
    last = coordinator.log.read_text()
    assert "error: The coordinator's disk failed: [Errno 5] Input/output error" in last
    assert "Traceback" not in last.rpartition("server.stopp")[2]
    assert "Traceback" not in last
    assert clients.log.read_text().count('"update.committed"') == 2, "of round 1"
    drilled.start_coordinator()
    assert drilled.finish() == undisturbed_digest
