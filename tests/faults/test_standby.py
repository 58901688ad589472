"""Two coordinators on one database and one bucket: the second goes on when the first is gone, and nothing is decided twice."""

import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest
from drill.client import Behaviour
from drill.fleet import Fault, Fleet, fleet
from drill.pairs import Embedded, Served
from drill.private_clients import UNMASKED, Holding
from drill.private_sums import revealed_twice, wrong_sums
from drill.scenarios import PRIVATE, begin
from drill.trial import ALL, UNDISTURBED
from support.process_harness import LOOK_EVERY_S, Process, free_port, process_spec
from support.real_stores import S3, Postgres

from pluralllm.common.errors.tree import PluralError
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.words.spec import RunSpec
from pluralllm.operator.remote import Remote
from pluralllm.server.commands import check_commands

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("forked_workers")]
SPEC = process_spec(rounds=3, round={"evaluate_every": 3})
TAKE_OVER_LIMIT_S, LIMIT_S = 45.0, 90.0  # an idle machine needs less than 15 s
OVERTAKEN = Fault("it is overtaken")
WAITING = {"ann": {2: Behaviour.WAIT}, "ben": {2: Behaviour.WAIT}}


@dataclass
class Pair:
    """A fleet's coordinator, and a standby with a state directory of its own."""

    fleet: Fleet
    first: Process
    second: Process
    second_address: str
    second_config: Path

    def until(self, what: str, holds: Callable[[], bool], limit_s: float = LIMIT_S) -> float:
        """Waits until `holds` returns true; returns the seconds that it took."""
        start_s = time.monotonic()
        while not holds():
            assert self.second.running, (
                f"the second coordinator ended with {self.second.popen and self.second.popen.returncode}"
            )
            assert time.monotonic() < start_s + limit_s, f"not within {limit_s} s: {what}\n{self.fleet.logs()}"
            time.sleep(LOOK_EVERY_S)
        return time.monotonic() - start_s

    def has_logged(self, process: Process, event: str) -> bool:
        return f'"event": "{event}"' in process.log.read_text()

    def state(self) -> dict[str, object]:
        """Returns the run as the second coordinator reports it; nothing while it does not answer."""
        try:
            remote = Remote.of_member(load_identity(self.fleet.admin, "pluralllm").at(self.second_address))
            try:
                return remote.get_run("r")
            finally:
                remote.close()
        except PluralError:
            return {}


@pytest.fixture
def served(postgres: Postgres, s3: S3, monkeypatch: pytest.MonkeyPatch) -> Served:
    served = Served(postgres, s3)
    for name, value in served.environment.items():
        monkeypatch.setenv(name, value)
    return served


@contextlib.contextmanager
def two_coordinators(
    folder: Path, served: Served, spec: RunSpec, plans: Mapping[str, Mapping[int, StrEnum]], fault: Fault = OVERTAKEN
) -> Iterator[Pair]:
    """Runs a fleet whose coordinator has a standby."""
    with fleet(folder / "fleet", served, fault) as drilled:
        address = f"127.0.0.1:{free_port()}"
        drilled.processes[1].environment = {**drilled.processes[1].environment, "PLURALLLM_CLIENT_STANDBY": address}
        begin(drilled, spec, plans)
        state = folder / "second"
        state.mkdir()
        shutil.copytree(drilled.state / "authority", state / "authority")
        own = {"state_dir": str(state), "listen": address, "enrolment_listen": f"127.0.0.1:{free_port()}"}
        shared = [line for line in drilled.config.read_text().splitlines() if line.partition(" ")[0] not in own]
        config = folder / "second.toml"
        config.write_text("\n".join([*shared, *(f"{key} = {json.dumps(value)}" for key, value in own.items())]))
        command = [sys.executable, "-m", "pluralllm.server", "serve", "--config", str(config)]
        second = Process(command, drilled.folder / "second.log", {}).start()
        drilled.processes.append(second)
        yield Pair(drilled, drilled.processes[0], second, address, config)


@pytest.fixture(scope="module")
def undisturbed_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the last version of an undisturbed run."""
    with fleet(tmp_path_factory.mktemp("undisturbed") / "fleet", Embedded(), UNDISTURBED) as found:
        begin(found, SPEC, {"ann": {}, "ben": {}})
        return found.finish()


@pytest.mark.parametrize(
    "way",
    [
        signal.SIGKILL,
        *(
            pytest.param(
                way, marks=pytest.mark.skipif(not ALL, reason="a kill is tried with the tests; all: make faults")
            )
            for way in (signal.SIGTERM, signal.SIGSTOP)
        ),
    ],
    ids=lambda way: way.name,
)
def test_the_second_coordinator_goes_on_where_the_first_one_ended(
    tmp_path: Path, served: Served, undisturbed_digest: str, way: signal.Signals
) -> None:
    with two_coordinators(tmp_path, served, SPEC, WAITING) as two:
        take_over(two, undisturbed_digest, way)


def take_over(two: Pair, undisturbed_digest: str, way: signal.Signals) -> None:
    """Ends or stops the first coordinator in round 2, and checks that the second one ends the run."""
    two.until("the second stands by", lambda: two.has_logged(two.second, "server.standing_by"))
    two.fleet.insist("round 2 is open", lambda remote: remote.get_run("r")["round"] == 2)
    assert two.first.popen is not None
    two.first.popen.send_signal(way)
    took_s = two.until("the second serves", lambda: two.has_logged(two.second, "server.started"), TAKE_OVER_LIMIT_S)
    for name in WAITING:
        two.fleet.let_go(name, 2)
    finding_s = two.until("a client has found it", lambda: "client.turned" in two.fleet.logs())
    two.until("the run ends", lambda: two.state().get("phase") == "ended")
    two.until("the clients hear of it", lambda: not two.fleet.processes[1].running)
    print(f"\n{way.name}: taken over in {took_s:.1f} s, found by a client {finding_s:.1f} s later")
    assert two.state()["version_digest"] == undisturbed_digest
    if way is signal.SIGSTOP:
        two.first.popen.send_signal(signal.SIGCONT)
        two.until("the first one ends", lambda: not two.first.running)
        assert "Another coordinator serves from this database now" in two.first.log.read_text()
    two.first.popen.wait(20)
    assert two.second.stop() == 0
    check_commands.verify(two.second_config, None, as_json=False)  # raises an error if something is wrong


# Private rounds: the first coordinator dies in each phase of the second round

MEMBERS = ("ann", "ben", "cat", "dan")
# The phase, and what members hold back so that the round stays in it. Three of the four must confirm and reveal.
HELD: Mapping[str, Mapping[str, StrEnum]] = {
    "keying": {"ann": Holding.KEYS},
    "sharing": {"ann": Holding.SHARES},
    "collecting": {"ann": Behaviour.WAIT},
    "confirming": {"ann": Holding.CONFIRMATION, "ben": Holding.CONFIRMATION},
    "unmasking": {"ann": Holding.REVEAL, "ben": Holding.REVEAL},
    "aggregating": {},
}
IN_AGGREGATING = Fault.kill_at("averaging.write_private.before", 2)


@pytest.mark.skipif(
    not ALL, reason="a plain round is tried with the tests, and a private one in test_failpoints; all: make faults"
)
@pytest.mark.parametrize("phase", HELD)
def test_the_second_coordinator_goes_on_in_each_phase_of_a_private_round(
    tmp_path: Path, served: Served, phase: str
) -> None:
    held = HELD[phase]
    plans = {name: {2: held[name]} if name in held else {} for name in MEMBERS}
    with two_coordinators(tmp_path, served, PRIVATE, plans, OVERTAKEN if held else IN_AGGREGATING) as two:
        assert two.first.popen is not None
        if held:
            two.until("the second stands by", lambda: two.has_logged(two.second, "server.standing_by"))
            two.fleet.insist("round 2 is in the phase", lambda remote: at(remote.get_run("r")) == (2, phase))
            two.first.popen.send_signal(signal.SIGKILL)
        two.until("the first one ends", lambda: not two.first.running)
        two.until("the second serves", lambda: two.has_logged(two.second, "server.started"), TAKE_OVER_LIMIT_S)
        for name in held:
            two.fleet.let_go(name, 2)
        two.until("the run ends", lambda: two.state().get("phase") == "ended")
        two.until("the clients hear of it", lambda: not two.fleet.processes[1].running)
        run = two.state()
        assert (run["outcome"], run["version"]) == ("completed", 2), two.fleet.logs()
        assert two.second.stop() == 0
        check_commands.verify(two.second_config, None, as_json=False)  # raises an error if something is wrong
        assert wrong_sums(two.second_config, two.fleet.folder) == []
        assert list(revealed_twice([two.fleet.folder / name for name in MEMBERS])) == []
        assert all(len(list((two.fleet.folder / name / UNMASKED).iterdir())) == 2 for name in MEMBERS)


def at(run: Mapping[str, object]) -> tuple[object, object]:
    return run["round"], run["phase"]
