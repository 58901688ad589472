"""One or two coordinators, three clients, a link before each, and a supervisor that restarts whatever has ended.

In private rounds there are four clients.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from drill.coordinator import ADMIN
from drill.pairs import StorePair
from nemesis.link import Link, Links
from nemesis.logs import Progress, Tail, facts_in
from nemesis.pace import CLOCK
from nemesis.schedule import CLIENTS, MEMBERS, PRIVATE, ROUNDS
from nemesis.side_effects import FAILURES, Failures
from support.process_harness import LOOK_EVERY_S, Process, free_port, process_spec
from support.span_collector import span_collector

from pluralllm.client.joining.joining import join
from pluralllm.common.process.supervisor import SIGN
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import RunSpec
from pluralllm.operator.remote import Remote

TESTS = Path(__file__).parents[1]
RUN = "r"
COORDINATORS = ("first", "second")
SETUP_LIMIT_S = 60.0
START_AGAIN_S = 0.2
PATIENCE = {"on_missed_quorum": "extend", "max_extensions": 1000, "evaluate_every": 3, "evaluation_deadline_s": 8}
# A model of two chunks.
MODEL = {"d_model": 160, "layers": 1, "heads": 1, "feedforward": 320, "embedder_layers": 2}
# A private round whose members are away for too long is abandoned, and the run goes on.
IMPATIENCE = {"on_missed_quorum": "skip", "max_extensions": 2, "evaluate_every": 3, "evaluation_deadline_s": 8}
SPECS: Mapping[str, RunSpec] = {
    # Every client delivers in every round, whatever happens, so the same updates count.
    "everybody": process_spec(
        rounds=ROUNDS,
        round={"min_clients": 3, "target_clients": 3, "gather_s": 60, "deadline_s": 60, **PATIENCE},
        predictor=MODEL,
        aggregation={"optimizer": "fedyogi", "server_learning_rate": 0.003},
    ),
    # Rounds go on without a client that is late.
    "quorum": process_spec(
        rounds=ROUNDS,
        round={
            **{"min_clients": 2, "target_clients": 3, "gather_s": 1.0, "grace_after_quorum_s": 0.5, "deadline_s": 6},
            **PATIENCE,
        },
        predictor=MODEL,
    ),
    # Every member is in every sum, or the round is abandoned.
    f"{PRIVATE}everybody": process_spec(
        rounds=ROUNDS,
        round={"min_clients": 4, "target_clients": 4, "gather_s": 60, "deadline_s": 25, **IMPATIENCE},
        predictor=MODEL,
        private_rounds={"colluders": 1, "step_s": 20.0, "closing_scores": False},
        aggregation={"max_examples": 100, "optimizer": "fedyogi", "server_learning_rate": 0.003},
    ),
    # One of the four may drop out at any step.
    f"{PRIVATE}quorum": process_spec(
        rounds=ROUNDS,
        round={
            **{"min_clients": 3, "target_clients": 4, "gather_s": 1.0, "grace_after_quorum_s": 0.5, "deadline_s": 6},
            **IMPATIENCE,
        },
        predictor=MODEL,
        private_rounds={"colluders": 1, "step_s": 4.0, "closing_scores": False},
        aggregation={"max_examples": 100},
    ),
}
TIMING = {"lease_s": 2.0, "silence_s": 1.0, "poll_hold_s": 1.5, "chunk_idle_s": 3.0, "joins_per_minute": 10_000}
TIMING |= {"keep_updates": 100}  # keeps all updates, so that `verify` repeats every aggregate


@dataclass(eq=False)
class Kept:
    """A process that is started again when it ends."""

    name: str
    process: Process
    clock: Path
    start_at_s: float = 0.0  # the next start on the monotonic clock; infinity: never again
    paused: bool = False
    exits: list[int] = field(default_factory=list)
    start_s: float = 0.0  # the last start on the monotonic clock

    @property
    def pid(self) -> int:
        assert self.process.popen is not None
        return self.process.popen.pid

    @property
    def running(self) -> bool:
        return self.process.running

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, unless the process has ended."""
        if self.running:
            os.kill(self.pid, number)

    def pause(self) -> None:
        self.paused = True
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.paused = False
        self.signal(signal.SIGCONT)

    def set_clock(self, wrong_by_s: float) -> None:
        draft = self.clock.with_suffix(".draft")
        draft.write_text(str(wrong_by_s))
        draft.rename(self.clock)


OVERTAKEN = "error: Another coordinator serves from this database now"


class Federation:
    """A federation in a folder. Its processes are supervised only when `look` is called, so every wait must call it."""

    def __init__(self, folder: Path, pair: StorePair, scenario: str, *, standby: bool) -> None:
        folder.mkdir(parents=True)
        self.folder, self.pair, self.scenario = folder, pair, scenario
        self.state, self.admin = folder / "coordinator", folder / "admin"
        self.links = Links()
        self.progress = Progress()
        self._stores = dict(pair.settings(folder))
        self.database_url = self._stores.get("database_url")
        self.database_link, self.bucket_link = self._link_stores()
        self._collecting = contextlib.ExitStack()
        collector = self._collecting.enter_context(span_collector(folder / "spans.jsonl"))
        self.collector_link = self.links.to(urlsplit(collector).netloc)
        self.failures = {name: Failures(folder / f"{name}.failures") for name in COORDINATORS}
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(2 if standby else 1)]
        # `verify` connects to the stores directly, not through links.
        self.verify_config = self._write_config("verify", self.state, self.addresses[0], self._stores)
        self.coordinators = [self._coordinator(index, address) for index, address in enumerate(self.addresses)]
        self.client_links: dict[str, list[Link]] = {}
        self.is_private = scenario.startswith(PRIVATE)
        self.clients = {name: self._client(name) for name in (MEMBERS if self.is_private else CLIENTS)}
        self.strays: list[Process] = []  # further processes of the strikes
        self.left: list[str] = []  # messages about processes that nobody has ended
        self._tails = [Tail(kept.process.log) for kept in self.coordinators]

    # Construction

    def _link_stores(self) -> tuple[Link | None, Link | None]:
        """Makes the links to the database and the object store, if these are processes of their own."""
        if "database_url" not in self._stores:
            return None, None
        database = self.links.to(urlsplit(self._stores["database_url"]).netloc.rpartition("@")[2])
        return database, self.links.to(urlsplit(self._stores["blob_endpoint"]).netloc)

    def _linked_stores(self) -> dict[str, str]:
        if self.database_link is None or self.bucket_link is None:
            return self._stores
        url, endpoint = urlsplit(self._stores["database_url"]), urlsplit(self._stores["blob_endpoint"])
        user = url.netloc.rpartition("@")[0]
        return {
            **self._stores,
            "database_url": url._replace(netloc=f"{user}@{self.database_link.address}").geturl(),
            "blob_endpoint": endpoint._replace(netloc=self.bucket_link.address).geturl(),
        }

    def _write_config(self, name: str, state: Path, address: str, stores: Mapping[str, str]) -> Path:
        own = {"state_dir": str(state), "listen": address, "enrolment_listen": f"127.0.0.1:{free_port()}"}
        path = self.folder / f"{name}.toml"
        _write_toml(path, {**own, **TIMING, **stores})
        return path

    def _coordinator(self, index: int, address: str) -> Kept:
        name, state = COORDINATORS[index], self.state_of(index)
        side_effects = {"metrics_listen": "127.0.0.1:0", "page_listen": "127.0.0.1:0"}
        side_effects["traces_endpoint"] = f"http://{self.collector_link.address}"
        config = self._write_config(name, state, address, {**self._linked_stores(), **side_effects})
        return self._kept(name, "coordinator", "serve", "--config", str(config))

    def state_of(self, index: int) -> Path:
        return self.state if index == 0 else self.folder / "second-state"

    @property
    def serving_state(self) -> Path:
        return self.state_of(self.coordinators.index(self.serving))

    def signs_s(self) -> dict[str, float]:
        """Returns the time on the monotonic clock when each running coordinator last gave a sign of life or started."""
        offset_s, signs = time.monotonic() - time.time(), {}
        for index, kept in enumerate(self.coordinators):
            if kept.running and not kept.paused:
                sign = self.state_of(index) / SIGN
                sign_s = sign.stat().st_mtime + offset_s if sign.exists() else 0.0
                signs[kept.name] = max(kept.start_s, sign_s)
        return signs

    def _client(self, name: str) -> Kept:
        home = self.folder / name
        home.mkdir()
        self.client_links[name] = [self.links.to(address) for address in self.addresses]
        first, *others = [link.address for link in self.client_links[name]]
        values = {"coordinator": first, "data": "none", "state_dir": str(home / "state"), "exit_when_run_over": True}
        values |= {"shared_seeds": True}  # the verdict compares whole runs
        if others:
            values["standby"] = others[0]
        _write_toml(home / "client.toml", values)
        return self._kept(name, "client", str(home))

    def _kept(self, name: str, program: str, *arguments: str) -> Kept:
        clock = self.folder / f"{name}.clock"
        return Kept(name, self.program(name, program, *arguments, clock=clock), clock)

    def program(self, name: str, program: str, *arguments: str, clock: Path) -> Process:
        """Returns one of the nemesis's programs as a process that is not started yet."""
        import_folders = [str(TESTS), *([os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else [])]
        environment = {"PYTHONPATH": os.pathsep.join(import_folders), "OMP_NUM_THREADS": "1", CLOCK: str(clock)}
        environment[FAILURES] = str(self.folder / f"{name}.failures")
        command = [sys.executable, "-m", f"nemesis.{program}", *arguments]
        return Process(command, self.folder / f"{name}.log", environment)

    @property
    def kept(self) -> list[Kept]:
        return [*self.coordinators, *self.clients.values()]

    @property
    def serving(self) -> Kept:
        """The coordinator that serves according to its log; otherwise one that runs."""
        if len(self.coordinators) == 1:
            return self.coordinators[0]

        def since(kept: Kept) -> str:
            serving = [facts["timestamp"] for facts in facts_in(kept.process.log) if facts["event"] == "server.started"]
            return serving[-1] if serving else ""

        return max(self.coordinators, key=lambda kept: (kept.running, since(kept)))

    # The start

    def begin(self) -> None:
        """Lets all clients join, creates and starts the run, and starts the clients."""
        first, *others = self.coordinators
        first.process.environment = {**first.process.environment, ADMIN: str(self.admin)}
        first.process.start()
        self._until("the first coordinator serves", (self.state / "address").exists)
        remote = Remote.of_member(load_identity(self.admin, "pluralllm"))
        try:
            for name in self.clients:
                group, folder = f"group of {name}", self.folder / name / "state" / "identity"
                invite = remote.invite(name, MemberRole.CLIENT, group, None, 3600.0, needs_approval=False)
                join(invite, folder, "pluralllm-client", frozenset({MemberRole.CLIENT}))
            remote.create_run(RUN, SPECS[self.scenario].canonical_json())
            remote.start_run(RUN)
        finally:
            remote.close()
        for other in others:
            shutil.copytree(self.state / "authority", self.folder / "second-state" / "authority")
            other.process.start()
        for client in self.clients.values():
            client.process.start()

    def _until(self, what: str, holds: Callable[[], bool]) -> None:
        end_s = time.monotonic() + SETUP_LIMIT_S
        while not holds():
            assert self.coordinators[0].running, self.coordinators[0].process.log.read_text()[-3000:]
            assert time.monotonic() < end_s, f"not within {SETUP_LIMIT_S} s: {what}"
            time.sleep(LOOK_EVERY_S)

    # Supervision

    def look(self) -> None:
        """Reads the coordinators' new log lines and starts again the processes that have ended."""
        for tail in self._tails:
            for facts in tail.new():
                self.progress.take(facts)
        now_s = time.monotonic()
        for kept in self.kept:
            if kept.running:
                continue
            if kept.start_at_s == 0.0 and kept.process.popen is not None:
                kept.exits.append(kept.process.popen.returncode)
                kept.start_at_s = float("inf") if self.knows_the_end(kept) else now_s + START_AGAIN_S
            elif kept.start_at_s <= now_s:
                kept.start_at_s, kept.paused, kept.start_s = 0.0, False, now_s
                kept.process.start()

    def knows_the_end(self, kept: Kept) -> bool:
        """Whether this is a client that knows the end of its run; it ended for good."""
        return kept.name in self.clients and any(facts["event"] == "run.over" for facts in facts_in(kept.process.log))

    @property
    def is_over(self) -> bool:
        """Whether every client knows that the run is over."""
        return all(not client.running and self.knows_the_end(client) for client in self.clients.values())

    def stop_coordinators(self) -> list[int]:
        """Stops the coordinators in order; returns the exit codes of those that had begun to log.

        One that another has just taken over from, because the database ended its session, ends by itself and says so.
        """
        for kept in self.coordinators:
            kept.start_at_s = float("inf")
        codes = [(kept, kept.process.stop()) for kept in reversed(self.coordinators) if kept.process.popen is not None]
        return [code for kept, code in codes if kept.process.has_logged and not kept.process.says(OVERTAKEN)]

    def close(self) -> None:
        """Closes the links and the collector of traces."""
        self.links.close()
        self._collecting.close()

    def end_all(self) -> None:
        """Kills each process that still runs, by its id, and records processes that remain in the process groups."""
        started = [kept.process for kept in self.kept] + self.strays
        popens = [process.popen for process in started if process.popen is not None]
        for popen in popens:
            if popen.poll() is None:
                popen.send_signal(signal.SIGCONT)
                popen.kill()
                popen.wait(10)
        for popen in popens:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(popen.pid, 0)
                self.left.append(f"of {popen.args!r} a process is left")
                os.killpg(popen.pid, signal.SIGKILL)


def _write_toml(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))


@contextlib.contextmanager
def federation(folder: Path, pair: StorePair, scenario: str, *, standby: bool) -> Iterator[Federation]:
    """Runs a federation and leaves no process behind."""
    started = Federation(folder, pair, scenario, standby=standby)
    try:
        yield started
    finally:
        started.end_all()
        started.close()
    assert not started.left, started.left
