"""A coordinator that a fault strikes, its clients, and an operator who starts again whatever dies."""

import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from drill.coordinator import ADMIN, KILL_AT, TRACE
from drill.pairs import StorePair
from drill.points import APPLY, BEFORE
from drill.private_clients import UNMASKED
from drill.private_sums import revealed_twice, wrong_sums
from support.process_harness import LOOK_EVERY_S, Process, free_port

from pluralllm.client.joining.joining import join
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.trust.invite import Invite
from pluralllm.common.words.roles import MemberRole
from pluralllm.operator.remote import Remote
from pluralllm.server.commands import check_commands
from pluralllm.server.rounds.events import KeysArrived

TESTS = Path(__file__).parents[1]
LIMIT_S = 60.0
INVITED_FOR_S = 3600.0
FOUND = TypeVar("FOUND")


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that strikes the coordinator once, or a list of kills, one in each process; without a name nothing happens."""

    name: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    attach: Callable[[Path], list[str]] | None = None  # the command for a state directory; the pid is appended
    code: int = -signal.SIGKILL  # the exit code of the coordinator that the fault ends
    then: tuple[str, ...] = ()  # further points to kill at, as in `kill_at`, each in the process after the one before

    @classmethod
    def kill_at(cls, point: str, number: int) -> "Fault":
        return cls(f"{point}:{number}", {KILL_AT: f"{point}:{number}"})

    @classmethod
    def kills_at(cls, points: Sequence[str]) -> "Fault":
        """Returns the fault that kills the coordinator at each point in turn. points: each is "POINT:NUMBER"."""
        return cls(" ".join(points), {KILL_AT: points[0]}, then=tuple(points[1:]))

    @classmethod
    def signal_at(cls, point: str, number: int, name: str, code: int) -> "Fault":
        """Returns the fault of a signal, for example SIGTERM, after which the coordinator ends by itself with `code`."""
        return cls(f"{point}:{number}:{name}", {KILL_AT: f"{point}:{number}:{name}"}, code=code)


class Fleet:
    """One federation in a folder; all requests to the coordinator go through `insist`."""

    def __init__(self, folder: Path, pair: StorePair, fault: Fault, **settings: str) -> None:
        folder.mkdir(parents=True)
        self.folder, self.pair = folder, pair
        self.state, self.admin, self._trace = folder / "coordinator", folder / "admin", folder / "trace"
        self.address = f"127.0.0.1:{free_port()}"
        self.fault_fired = False
        self._fault: Fault = fault
        self._kills_left = list(fault.then)
        self._remote: Remote | None = None
        self.processes: list[Process] = []
        config = {
            "state_dir": str(self.state),
            "listen": self.address,
            "enrolment_listen": f"127.0.0.1:{free_port()}",
            "lease_s": "5",
            **pair.settings(folder),
            **settings,
        }
        self.config = folder / "server.toml"
        self.config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items()))
        self._coordinator = self._program("coordinator", "serve", "--config", str(self.config))
        self._clients = self._program("client")

    def _program(self, name: str, *arguments: str) -> Process:
        import_folders = [str(TESTS), *([os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else [])]
        environment = {"PYTHONPATH": os.pathsep.join(import_folders), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", f"drill.{name}", *arguments]
        process = Process(command, self.folder / f"{name}.log", environment)
        self.processes.append(process)
        return process

    # Processes

    def start_coordinator(self) -> None:
        environment = {ADMIN: str(self.admin), TRACE: str(self._trace)}
        if not self.fault_fired:
            environment |= self._fault.environment
        self._coordinator.environment = {**self._coordinator.environment, KILL_AT: "", **environment}
        self._coordinator.start()
        if self._fault.attach is not None and not self.fault_fired:
            self._attach(self._fault.attach(self.state))

    def _attach(self, command: list[str]) -> None:
        """Attaches the fault's command when the coordinator serves; points.py covers the steps before that."""
        assert self._coordinator.popen is not None
        self._until("the coordinator serves", (self.state / "address").exists)
        striker = Process([*command, str(self._coordinator.popen.pid)], self.folder / "striker.log", {}).start()
        self.processes.append(striker)
        self._until("the striker is attached", lambda: "attached" in striker.log.read_text())

    def _until(self, what: str, holds: Callable[[], bool]) -> None:
        end_s = time.monotonic() + LIMIT_S
        while not holds():
            assert time.monotonic() < end_s, f"not within {LIMIT_S} s: {what}\n{self.logs()}"
            time.sleep(LOOK_EVERY_S)

    def start_clients(self, plans: Mapping[str, Mapping[int, str]]) -> None:
        """Starts the clients at once; each waits until it has joined."""
        homes = []
        for name, plan in plans.items():
            home = self.folder / name
            home.mkdir()
            values = {
                "coordinator": self.address,
                "data": "none",
                "state_dir": str(home / "state"),
                "exit_when_run_over": True,
                "shared_seeds": True,
            }
            (home / "client.toml").write_text(
                "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
            )
            (home / "plan.json").write_text(json.dumps(plan))
            homes.append(str(home))
        self._clients.command += homes
        self._clients.start()

    def restart_coordinator(self) -> None:
        """Restarts the coordinator as an administrator would: SIGTERM, then a new process."""
        self.insist("the coordinator is up before it is restarted", lambda remote: bool(remote.members()))
        self._stop_coordinator()
        self.start_coordinator()
        self.insist("the coordinator is back", lambda remote: bool(remote.members()))

    def _stop_coordinator(self) -> None:
        code = self._coordinator.stop()
        if code != 0:
            self._note_death(code)

    def _note_death(self, code: int) -> None:
        """Fails unless the fault killed the coordinator, for the first time."""
        assert code == self._fault.code, f"the coordinator ended with {code}\n{self.logs()}"
        assert self._fault.name, f"it was killed by something else\n{self.logs()}"
        assert not self.fault_fired, f"it was killed again\n{self.logs()}"
        if self._kills_left:
            self._fault = replace(self._fault, environment={KILL_AT: self._kills_left.pop(0)})
        else:
            self.fault_fired = True

    def _keep_alive(self) -> None:
        popen = self._coordinator.popen
        assert popen is not None
        if (code := popen.poll()) is not None:
            self._note_death(code)
            self.start_coordinator()
            self._hang_up()

    # The operator

    def insist(self, what: str, ask: Callable[[Remote], FOUND | None], limit_s: float = LIMIT_S) -> FOUND:
        """Asks until there is an answer; restarts a coordinator that the fault has killed and asks again."""
        end_s, refused = time.monotonic() + limit_s, ""
        while time.monotonic() < end_s:
            self._keep_alive()
            try:
                if found := ask(self._connected()):
                    return found
            except PluralError as error:
                refused = str(error)
                self._hang_up()
            except FileNotFoundError:
                refused = "the coordinator has not made its administrator yet"
            time.sleep(LOOK_EVERY_S)
        raise AssertionError(f"not within {limit_s} s: {what} ({refused})\n{self.logs()}")

    def _connected(self) -> Remote:
        if self._remote is None:
            if not (self.admin / "credentials.pem").exists():
                raise FileNotFoundError
            self._remote = Remote.of_member(load_identity(self.admin, "pluralllm"))
        return self._remote

    def _hang_up(self) -> None:
        """Closes the connection: gRPC waits longer after each failed attempt, a new connection does not."""
        if self._remote is not None:
            self._remote.close()
            self._remote = None

    def join(self, name: str) -> None:
        """Invites a client and joins as it; joins again with the same invite if the answer was lost."""
        folder, invite = self.folder / name / "state" / "identity", self.invite(name)
        roles = frozenset({MemberRole.CLIENT})
        self.insist(f"{name} joins", lambda _: join(invite, folder, "pluralllm-client", roles))

    def invite(self, name: str) -> Invite:
        """Invites a client. Until it joins, rounds wait for it as long as the run spec says."""
        group = f"group of {name}"
        return self.insist(
            f"{name} is invited",
            lambda remote: remote.invite(name, MemberRole.CLIENT, group, None, INVITED_FOR_S, needs_approval=False),
        )

    def let_go(self, name: str, number: int) -> None:
        """Lets the client that waits in this round deliver."""
        (self.folder / name / f"go-{number}").touch()

    # The end

    def finish(self, revoked: str = "", limit_s: float = LIMIT_S) -> str:
        """Waits for the end of the run, for at most `limit_s`, and of the clients, stops everything, and verifies the state.

        Returns the digest of the newest version.
        """
        run = self.insist("the run ends", lambda remote: _if(remote.get_run("r"), "phase", "ended"), limit_s)
        self.insist("the clients hear that the run is over", lambda _: not self._clients.running)
        assert self._clients.popen is not None
        assert self._clients.popen.returncode == 0, self.logs()
        rounds = self.insist("the rounds are listed", lambda remote: remote.rounds("r", 10_000))
        self._hang_up()
        self._stop_coordinator()
        self._check_acknowledged(rounds, revoked)
        self.verify()
        self._check_sums(rounds)
        return str(run["version_digest"])

    def _check_acknowledged(self, rounds: list[dict[str, Any]], revoked: str) -> None:
        """Checks that each receipt that a client was given is on record, and that its update was never requested again.

        `verify` cannot see this: a client would make a lost update again, with the same bits.
        """
        client_log = [json.loads(line) for line in self._clients.log.read_text().splitlines()]
        tasks = [(fact["task"], fact["digest"]) for fact in client_log if fact["event"] == "update.committed"]
        kept = {
            (f"{row['name']}/tasks/{kind}-{receipt['client']}", receipt["update_digest"])
            for row in rounds
            for receipt in row["receipts"]
            for kind in ("train", "reward")
        }
        lost = [(task, digest) for task, digest in tasks if (task, digest) not in kept]
        assert [task for task, _ in lost if not task.endswith(f"-{revoked}")] == [], self.logs()
        assert len(tasks) == len(set(tasks)), f"an update was asked for again\n{self.logs()}"

    def _check_sums(self, rounds: list[dict[str, Any]]) -> None:
        """Checks private rounds: the sums are exact, no secret was revealed in both kinds, and who ended early says why."""
        homes = sorted(path.parent for path in self.folder.glob(f"*/{UNMASKED}"))
        if homes:
            assert wrong_sums(self.config, self.folder) == [], self.logs()
            assert list(revealed_twice(homes)) == [], self.logs()
            assert all(row["outcome"] == "closed" or row["reason"] for row in rounds), rounds

    def verify(self) -> None:
        """Runs `pluralllm-server verify` in this process."""
        check_commands.verify(self.config, None, as_json=False)

    def passes(self) -> Counter[str]:
        """Returns for each point how often one process has passed it, at most."""
        counts_by_pid: dict[str, Counter[str]] = {}
        for line in self._trace.read_text().splitlines():
            pid, point = line.split()
            counts_by_pid.setdefault(pid, Counter())[point] += 1
        most: Counter[str] = Counter()
        for counts in counts_by_pid.values():
            most |= counts
        return most

    def passes_before_rounds(self) -> Counter[str]:
        """Returns how often each point was passed before the first message of a private round; for a run without a fault."""
        points = [line.split()[1] for line in self._trace.read_text().splitlines()]
        first = f"{APPLY}.{KeysArrived.__name__}.{BEFORE}"
        return Counter(points[: points.index(first)] if first in points else points)

    def clear_away(self) -> None:
        """Stops all processes that run; then checks that no process group has a process left."""
        self._hang_up()
        started = [(process, process.popen.pid) for process in self.processes if process.popen is not None]
        for process, _ in started:
            process.stop()
        for process, group in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, 0)
                raise AssertionError(f"of {process.command} a process is left")

    def logs(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text()[-6000:]}" for log in sorted(self.folder.glob("*.log")))


def _if(run: dict[str, Any], key: str, value: object) -> dict[str, Any] | None:
    return run if run[key] == value else None


@contextlib.contextmanager
def fleet(folder: Path, pair: StorePair, fault: Fault, **settings: str) -> Iterator[Fleet]:
    """Runs a fleet and leaves no process behind."""
    started = Fleet(folder, pair, fault, **settings)
    try:
        yield started
    finally:
        started.clear_away()
