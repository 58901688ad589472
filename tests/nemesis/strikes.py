"""Carries out a schedule on a federation: starts each strike at its moment and ends it after its duration."""

import os
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import psycopg
from nemesis import disk
from nemesis.federation import RUN, Federation, Kept
from nemesis.link import Link
from nemesis.logs import facts_in
from nemesis.replay import Replays, replay
from nemesis.schedule import CLOCK_JUMPS_S, Kind, Schedule, Strike
from nemesis.side_effects import LOG, LOG_ERRORS, METRICS, DeafVisitors
from support.process_harness import Process, free_port

K = Kind
SLOW_PIECE_S = (0.01, 0.15)
FLAP_EVERY_S = 0.3
SOME_BYTES = 1_300_000  # a little more than one update
# A second coordinator may end for these reasons: the first one holds the state, or a strike made its disk fail just then.
REFUSALS = ("is in use by", "No space left", "disk failed", "storage failed")
SECOND_LIMIT_S = 20.0
LOCK_TRIES_S = 10.0


@dataclass
class Later:
    at_s: float
    do: Callable[[], object]


@dataclass
class Nemesis:
    """Carries out the strikes that are due each time `look` is called."""

    federation: Federation
    schedule: Schedule
    fired: Counter[Kind] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    replays: Replays = field(default_factory=Replays)
    problems: list[str] = field(default_factory=list)
    spoilt_updates: list[str] = field(default_factory=list)  # restored before `verify`, which would report them

    def __post_init__(self) -> None:
        self._start_s = time.monotonic()
        self._armed = list(self.schedule.strikes)
        self._later: list[Later] = []
        self._threads: list[threading.Thread] = []
        self._ending = threading.Event()

    def look(self) -> None:
        """Starts the strikes whose moment has come, and ends those whose duration is over."""
        for strike in [item for item in self._armed if self.federation.progress.has_passed(item.round, item.moment)]:
            self._armed.remove(strike)
            self._in(strike.delay_s, lambda strike=strike: self._strike(strike))  # type: ignore[misc]
        now_s = time.monotonic()
        for due in [item for item in self._later if item.at_s <= now_s]:
            self._later.remove(due)
            due.do()

    @property
    def is_striking(self) -> bool:
        """Whether a fault lasts, or a process of a fault works."""
        return bool(self._later) or any(thread.is_alive() for thread in self._threads)

    @property
    def is_done(self) -> bool:
        """Whether every strike has started and ended."""
        return not self._armed and not self.is_striking

    def heal(self) -> None:
        """Ends all faults now."""
        self._armed.clear()
        self._ending.set()
        while self._later:
            self._later.pop(0).do()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), thread

    # Timing

    def _in(self, length_s: float, do: Callable[[], object]) -> None:
        self._later.append(Later(time.monotonic() + length_s, do))

    def _note(self, strike: Strike, what: str = "") -> None:
        self.fired[strike.kind] += 1
        self._write(f"{strike}{': ' if what else ''}{what}")

    def _write(self, what: str) -> None:
        self.log.append(f"{time.monotonic() - self._start_s:7.3f} s {what}")

    def _aside(self, work: Callable[[], None]) -> None:
        """Runs work that waits in a thread of its own, so that the others go on."""
        thread = threading.Thread(target=work)
        self._threads.append(thread)
        thread.start()

    def _strike(self, strike: Strike) -> None:
        if self._ending.is_set() or self.federation.progress.is_over:
            return  # too late, and not counted
        federation, client = self.federation, self.federation.clients[strike.client]
        match strike.kind:
            case K.COORDINATOR_KILLED:
                self._signal(strike, federation.serving, signal.SIGKILL)
            case K.COORDINATOR_STOPPED:
                self._signal(strike, federation.serving, signal.SIGTERM)
            case K.CLIENT_KILLED:
                self._signal(strike, client, signal.SIGKILL)
            case K.COORDINATOR_PAUSED | K.COORDINATOR_OVERTAKEN:
                self._pause(strike, federation.serving)
            case K.CLIENT_PAUSED:
                self._pause(strike, client)
            case K.CLOCK_OF_COORDINATOR:
                self._set_clock(strike, federation.serving)
            case K.CLOCK_OF_CLIENT:
                self._set_clock(strike, client)
            case K.CALLS_REPLAYED:
                self._replay(strike)
            case K.DISK_FULL:
                self._fill_disk(strike)
            case K.DISK_ERROR:
                self._fail_disk(strike)
            case K.UPDATE_SPOILT | K.MODEL_SPOILT:
                self._spoil(strike)
            case K.DATABASE_LOCKED:
                self._lock(strike)
            case K.DATABASE_CUT:
                self._end_sessions(strike)
            case K.DATABASE_HELD:
                self._hold(strike, federation.database_link)
            case K.BUCKET_HELD:
                self._hold(strike, federation.bucket_link)
            case K.BUCKET_CUT:
                assert federation.bucket_link is not None
                federation.bucket_link.cut()
                self._note(strike)
            case K.SECOND_COORDINATOR:
                self._start_second(strike)
            case K.LOG_FAILS:
                self._fail_side_effect(strike, LOG)
            case K.METRICS_FAIL:
                self._fail_side_effect(strike, METRICS)
            case K.PAGE_UNREAD:
                self._visit_page(strike)
            case K.COLLECTOR_HANGS:
                self._hold(strike, federation.collector_link)
            case _:
                self._strike_links(strike, federation.client_links[strike.client])

    # Processes

    def _signal(self, strike: Strike, whom: Kept, number: signal.Signals) -> None:
        if whom.running:
            whom.signal(number)
            if whom.paused:  # the process handles SIGTERM only when it goes on
                whom.go_on()
            self._note(strike, whom.name)

    def _pause(self, strike: Strike, whom: Kept) -> None:
        if whom.running and not whom.paused:
            whom.pause()
            self._note(strike, whom.name)
            self._in(strike.lasts_s, whom.go_on)

    def _set_clock(self, strike: Strike, whom: Kept) -> None:
        jump_s = CLOCK_JUMPS_S[strike.number % len(CLOCK_JUMPS_S)] * (1 if strike.number // 8 % 2 else -1)
        whom.set_clock(jump_s)
        self._note(strike, f"{whom.name} by {jump_s:+.0f} s")
        self._in(strike.lasts_s, lambda: whom.set_clock(0.0))

    def _start_second(self, strike: Strike) -> None:
        """Starts a second coordinator, which must end by itself with one of the expected reasons."""
        federation = self.federation
        first = federation.coordinators[0]
        lines = [line for line in (federation.folder / "first.toml").read_text().splitlines() if "listen" not in line]
        ports = [f'{key} = "127.0.0.1:{free_port()}"' for key in ("listen", "enrolment_listen")]
        name = f"stray-{len(federation.strays)}"
        config = federation.folder / f"{name}.toml"
        config.write_text("\n".join([*lines, *ports]))
        stray = federation.program(
            name, "coordinator", "serve", "--config", str(config), clock=federation.folder / "no-clock"
        )
        federation.strays.append(stray.start())
        self._note(strike)

        def wait() -> None:
            end_s = time.monotonic() + SECOND_LIMIT_S
            while stray.running and time.monotonic() < end_s and not self._logged_that_it_serves(stray):
                time.sleep(0.05)
            served = self._logged_that_it_serves(stray)
            code = stray.stop()
            if served:  # the first one was down, so the state was free, and the first one has to wait
                self._write(f"{name} served while {first.name} did not, then ended with {code}")
            elif code == 0 or not any(reason in stray.log.read_text() for reason in REFUSALS):
                log_end = stray.log.read_text().strip()[-500:]
                self.problems.append(f"a second coordinator was not refused: it ended with {code}: {log_end}")

        self._aside(wait)

    def _logged_that_it_serves(self, process: Process) -> bool:
        return any(facts["event"] == "server.started" for facts in facts_in(process.log))

    def _replay(self, strike: Strike) -> None:
        federation = self.federation
        address = federation.addresses[federation.coordinators.index(federation.serving)]
        self._note(strike, strike.client)

        def work() -> None:
            try:
                replay(federation.folder / strike.client, address, strike.number, self.replays)
            except Exception as error:  # noqa: BLE001 - a thread has no caller to raise it to
                self.problems.append(f"the thief failed: {error!r}")

        self._aside(work)

    # Connections

    def _strike_links(self, strike: Strike, links: list[Link]) -> None:
        do: Callable[[Link], None]
        low, high = SLOW_PIECE_S
        match strike.kind:
            case K.LINK_CUT:
                do = Link.cut
            case K.LINK_CUT_IN_MID:
                do = lambda link: link.cut_after(1 + strike.number % SOME_BYTES)  # noqa: E731
            case K.LINK_SLOW:
                do = lambda link: link.slow(low + (high - low) * (strike.number % 100) / 100)  # noqa: E731
            case K.LINK_HELD:
                do = lambda link: link.hold(there=True, back=True)  # noqa: E731
            case K.LINK_ONE_WAY:
                do = lambda link: link.hold(there=bool(strike.number % 2), back=not strike.number % 2)  # noqa: E731
            case K.LINK_BLACK_HOLE:
                do = Link.lose
            case K.LINK_FLAPS:
                for number in range(1, round(strike.lasts_s / FLAP_EVERY_S)):
                    self._in(number * FLAP_EVERY_S, lambda: _each(links, Link.cut))
                do = Link.cut
            case _:
                raise AssertionError(strike)
        _each(links, do)
        self._note(strike)
        if strike.lasts_s and strike.kind is not K.LINK_FLAPS:
            self._in(strike.lasts_s, lambda: _each(links, Link.heal))

    def _hold(self, strike: Strike, link: Link | None) -> None:
        """Holds a store's connections; in half of the cases it cuts them at the end, like a machine that lost its state."""
        assert link is not None
        link.hold(there=True, back=True)
        self._note(strike)

        def end() -> None:
            if strike.number % 2:
                link.cut()
            link.heal()

        self._in(strike.lasts_s, end)

    # Side effects

    def _fail_side_effect(self, strike: Strike, name: str) -> None:
        error = LOG_ERRORS[strike.number % len(LOG_ERRORS)]
        whom = self.federation.serving
        failures = self.federation.failures[whom.name]
        failures.begin(name, error)
        self._note(strike, f"{whom.name}: {os.strerror(error)}")
        self._in(strike.lasts_s, lambda: failures.end(name))

    def _visit_page(self, strike: Strike) -> None:
        try:
            visitors = DeafVisitors((self.federation.serving_state / "page-address").read_text(), RUN)
        except OSError as error:  # the coordinator is down
            self._write(f"the page could not be visited: {error}")
            return
        self._note(strike)
        self._in(strike.lasts_s, visitors.leave)

    # Disk and stores

    def _fill_disk(self, strike: Strike) -> None:
        filler = disk.fill(self.federation.state)
        self._note(strike)
        self._in(strike.lasts_s, lambda: filler.unlink(missing_ok=True))

    def _fail_disk(self, strike: Strike) -> None:
        """Makes system calls of the serving coordinator fail until strace is stopped; strace then detaches."""
        whom = self.federation.serving
        if not whom.running:
            return
        name = f"strace-{len(self.federation.strays)}"
        striker = disk.fail(whom.pid, strike.number, self.federation.folder / f"{name}.log")
        self.federation.strays.append(striker)
        self._note(strike, whom.name)
        self._in(strike.lasts_s, striker.stop)

    def _spoil(self, strike: Strike) -> None:
        """Flips a bit of the round's newest blob of this kind; a second flip restores it."""
        digest = self._newest_update() if strike.kind is K.UPDATE_SPOILT else self._newest_model()
        if digest is None or not self._flip(digest):
            return
        self._note(strike, digest[:12])
        if strike.kind is K.MODEL_SPOILT:
            self._in(strike.lasts_s, lambda: self._flip(digest))
        else:
            self.spoilt_updates.append(digest)

    def restore_updates(self) -> None:
        for digest in self.spoilt_updates:
            self._flip(digest)

    def _flip(self, digest: str) -> bool:
        try:
            self.federation.pair.spoil(self.federation.folder, digest)
        except FileNotFoundError:
            return False
        return True

    def _newest_update(self) -> str | None:
        return self._newest("UpdateArrived")

    def _newest_model(self) -> str | None:
        return self._newest("ModelAveraged")

    def _newest(self, kind: str) -> str | None:
        """Returns the digest in the last event of a kind."""
        logs = chain.from_iterable(facts_in(kept.process.log) for kept in self.federation.coordinators)
        dated_facts = sorted((facts["timestamp"], facts) for facts in logs if facts.get("kind") == kind)
        if not dated_facts:
            return None
        facts = dated_facts[-1][1]
        return str(facts["receipt"]["digest"] if kind == "UpdateArrived" else facts["digest"])

    def _lock(self, strike: Strike) -> None:
        """Locks the database from another process: an exclusive transaction, or a lock on the events table."""
        url, path = self.federation.database_url, self.federation.state / "coordinator.sqlite3"
        self._note(strike)
        self._aside(lambda: self._hold_lock(strike.lasts_s, url, path))

    def _hold_lock(self, lasts_s: float, url: str | None, path: Path) -> None:
        if url is not None:
            with psycopg.connect(url) as connection:
                connection.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
                self._ending.wait(lasts_s)
                connection.rollback()
            return
        connection_ = sqlite3.connect(path, timeout=LOCK_TRIES_S, isolation_level=None)
        try:
            connection_.execute("BEGIN EXCLUSIVE")
            self._ending.wait(lasts_s)
            connection_.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            self._write(f"the database could not be locked: {error}")
        finally:
            connection_.close()

    def _end_sessions(self, strike: Strike) -> None:
        url = self.federation.database_url
        assert url is not None
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name = 'pluralllm-server'"
            )
        self._note(strike)


def _each(links: list[Link], do: Callable[[Link], None]) -> None:
    for link in links:
        do(link)
