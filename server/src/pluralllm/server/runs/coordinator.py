"""The loop that joins the round machine, the store, the blobs and the connected clients.

Whatever decides is in rounds.py; whatever is remembered is in the store; this file carries events there and effects back.
"""

import asyncio
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path

import structlog

from pluralllm.common.errors.tree import (
    BaseLost,
    Broken,
    InvalidArgument,
    NotFound,
    PluralError,
    RoundClosed,
    SpecMismatch,
    StorageFull,
    UpdateLost,
)
from pluralllm.common.process.clock import Clock
from pluralllm.common.process.tracing import round_context, span
from pluralllm.common.words.ids import ID_HELP, ClientId, RunId, is_id
from pluralllm.common.words.names import TaskName
from pluralllm.common.words.spec import GroupRole, parse_spec
from pluralllm.server.aggregation.next_version import write_next
from pluralllm.server.process.cancellation import unbroken
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.process.instruments import AGGREGATION_SECONDS
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.bell import Bell, ClientBells
from pluralllm.server.runs.leases import Leases
from pluralllm.server.runs.live_run import LiveRun, recover
from pluralllm.server.runs.new_run import make_run
from pluralllm.server.runs.round_traces import trace_key
from pluralllm.server.runs.sessions import Session, Sessions
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.manifests import Manifests
from pluralllm.server.storage.retention import Retention
from pluralllm.server.storage.store import ClientRecord, Store

log = structlog.get_logger()

MAX_STEPS_AT_ONCE = 100  # of one run before others get their turn
RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class Timing:
    """What the configuration says about time and keeping."""

    lease_s: float = 60.0
    silence_s: float = 5.0
    tick_s: float = 0.25
    keep_updates: int = 3


class Coordinator:
    """All runs of one state directory. One for each process; every method runs on its event loop."""

    def __init__(
        self, store: Store, blobs: Blobs, scratch: Path, clock: Clock, timing: Timing, fail_stop: FailStop
    ) -> None:
        self.store = store
        self.blobs = blobs
        self.clock = clock
        self.fail_stop = fail_stop
        self.generation = secrets.token_hex(8)
        self.manifests = Manifests(store, blobs)
        self.retention = Retention(store, blobs, timing.keep_updates)
        self.sessions = Sessions(timing.silence_s)
        self.leases = Leases(timing.lease_s)
        self.bell = Bell()  # a run has changed
        self.client_bells = ClientBells()  # what a client holds or may do has changed
        self.draining = False
        self._scratch = scratch
        self._timing = timing
        self._runs: dict[RunId, LiveRun] = {}
        self._wake = Bell()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started_s = clock.now_s()
        self._creating = asyncio.Lock()

    # Life

    async def start(self) -> None:
        """Recovers every run from its log and goes on where it stopped."""
        self._started_s = self.clock.now_s()
        for record in await self.store.runs():
            run, pending = await recover(self.store, record)
            self._runs[run.id] = run
            if run.is_over:
                continue
            await self.dispatch(run, ev.CoordinatorStarted(self.clock.now_s()))
            self._reconcile(run)
            if pending is not None:
                self._average(run, pending)
            log.info("run.recovered", run=run.id, phase=run.state.phase, round=run.state.round, events=run.sequence)
        self._spawn(self._drive())
        self._spawn(self._collect())  # what was left by a stop between a round's end and its collection

    def drain(self) -> None:
        """Lets every held call answer now: the process is about to stop."""
        self.draining = True
        self.bell.ring()
        self.client_bells.ring_all()

    async def stop(self) -> None:
        """Stops the loop; what is durable stays as it is."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _drive(self) -> None:
        """Time and presence become events; once a tick, and at once when something changed."""
        while True:
            heard = self._wake.rings
            for run in self.runs():
                try:
                    await self.advance(run)
                except PluralError as error:
                    self._trouble(run, error)
                except Exception as error:
                    log.exception("run.broken", run=run.id)
                    self._trouble(run, error)
            sleep = asyncio.ensure_future(self.clock.sleep(self._timing.tick_s))
            ring = asyncio.ensure_future(self._wake.wait(heard, 3600))
            try:
                await asyncio.wait([sleep, ring], return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleep.cancel()
                ring.cancel()

    def wake(self) -> None:
        """Someone came, went or delivered: look at once."""
        self._wake.ring()

    # Runs

    def runs(self) -> tuple[LiveRun, ...]:
        """Oldest first."""
        return tuple(self._runs.values())

    def run(self, name: str) -> LiveRun:
        """Raises NotFound."""
        if (run := self._runs.get(RunId(name))) is None:
            raise NotFound(what="run", name=name)
        return run

    @unbroken
    async def create_run(self, run_id: str, spec_json: bytes) -> LiveRun:
        """Makes version 0 and the run. Repeatable. Raises InvalidArgument, InvalidSpec, SpecMismatch, NotFound, StorageFull."""
        if not is_id(run_id):
            raise InvalidArgument(field="run_id", problem=f"is {run_id!r}, allowed: {ID_HELP}")
        spec = parse_spec(spec_json, f"of run {run_id}")
        async with self._creating:
            if (known := self._runs.get(RunId(run_id))) is not None:
                if known.record.spec_sha256 != spec.sha256():
                    raise SpecMismatch(run=run_id, asked=spec.sha256()[:12], stored=known.record.spec_sha256[:12])
                return known
            sources = {run.id: run for run in self.runs()}
            async with self.retention.storing():
                run = await make_run(
                    self.store, self.blobs, self._scratch, sources, RunId(run_id), spec, self.clock.now_s()
                )
            self._runs[run.id] = run
        log.info(
            "run.created",
            run=run.id,
            spec_sha256=run.record.spec_sha256,
            model=run.first.digest,
            parameters=run.layout.values,
        )
        self.bell.ring()
        return run

    @unbroken
    async def dispatch(self, run: LiveRun, event: ev.Event) -> None:
        """One event: decided, durable, then its effects begin. Raises what the machine refuses."""
        was_over = run.is_over
        effects = await run.dispatch(self.store, event)
        if effects is None:
            return
        run.trouble = ""
        self._log_change(run, event, effects)
        self._reconcile(run)
        for effect in effects:
            if isinstance(effect, ev.Average):
                self._average(run, effect)
        has_ended = run.is_over and not was_over
        if has_ended or any(isinstance(effect, ev.Publish | ev.Abandon) for effect in effects):
            self._spawn(self._collect())
        if has_ended:
            for session in self.sessions.live(self.clock.now_s()):
                if run.spec.groups.role_of(session.group, session.role) is not None:
                    self.client_bells.ring(session.client)
        self.bell.ring()
        self.wake()

    async def advance(self, run: LiveRun) -> None:
        """Feeds the machine what time and presence say, until nothing changes."""
        for _ in range(MAX_STEPS_AT_ONCE):
            before = run.sequence
            for event in self._observations(run):
                await self.dispatch(run, event)
            if run.sequence == before:
                return

    def _observations(self, run: LiveRun) -> tuple[ev.Event, ...]:
        if run.state.phase in (Phase.CREATED, Phase.ENDED):
            return ()
        now_s = self.clock.now_s()
        found: list[ev.Event] = []
        for client in self.leases.expired(run.id, now_s):
            self.release(client)
            found.append(
                ev.PlaceLost(
                    now_s, client, f"lease expired after {self.leases.duration_s:g} s of silence", permanent=False
                )
            )
        live = {session.client: session for session in self.sessions.live(now_s)}
        if now_s >= self._started_s + self.leases.duration_s:  # after a restart clients get the time to come back
            for client in run.state.roster:
                if client not in live and self.leases.of(client) is None:
                    found.append(ev.PlaceLost(now_s, client, "disconnected", permanent=False))
        idle = [session for session in live.values() if self.leases.of(session.client) is None]
        trainers = tuple(s.client for s in idle if run.spec.groups.role_of(s.group, s.role) is GroupRole.TRAIN)
        held_out = tuple(s.client for s in idle if run.spec.groups.role_of(s.group, s.role) is GroupRole.HELD_OUT)
        return (*found, ev.ClientsSeen(now_s, trainers, held_out), ev.ClockTicked(now_s))

    def _reconcile(self, run: LiveRun) -> None:
        """Leases follow the machine: whoever has a place has one, whoever lost it has none."""
        active = set(run.state.active) if run.state.phase in (Phase.COLLECTING, Phase.EVALUATING) else set()
        for client, lease in self.leases.held_in(run.id).items():
            if client not in active or lease.task != run.task_name(client):
                self.release(client)
        for client in active:
            if self.leases.of(client) is None:
                self.leases.grant(client, run.id, run.task_name(client), self.clock.now_s())
                self.client_bells.ring(client)

    def release(self, client: ClientId) -> None:
        """Takes a client's lease back; its held poll hears of it."""
        self.leases.release(client)
        self.client_bells.ring(client)

    # Averaging

    def _average(self, run: LiveRun, effect: ev.Average) -> None:
        if run.averaging is None or run.averaging.done():
            run.averaging = self._spawn(self._average_until_done(run, effect))

    async def _average_until_done(self, run: LiveRun, effect: ev.Average) -> None:
        while run.state.phase is Phase.AGGREGATING and run.state.round == effect.round:
            try:
                try:
                    await self._make_next_version(run, effect)
                except (BaseLost, UpdateLost) as error:
                    await self._abandon_averaging(run, effect, error)
            except RoundClosed:  # the run was ended meanwhile: nothing names what was stored
                await self._collect()
            except (Broken, NotFound, StorageFull, OSError) as error:
                self._trouble(run, error)
                await self.clock.sleep(RETRY_S)

    async def _make_next_version(self, run: LiveRun, effect: ev.Average) -> None:
        """Writes and stores the next version with the optimizer's moments, then records it.

        Raises BaseLost, UpdateLost, RoundClosed; any other error may pass.
        """
        draft = self._scratch / f"{run.id}-{effect.round}.safetensors"
        trace = round_context(trace_key(run.record, effect.round))
        with AGGREGATION_SECONDS.time(), span("average", trace, updates=len(effect.receipts)):
            drafts = await write_next(self.blobs, run.spec, run.newest, effect.receipts, effect.weights, draft)
        self.manifests.keep(drafts[0].manifest)
        with span("publish", trace):
            async with self.retention.storing():
                for found in drafts:
                    await self.blobs.put(found.manifest.digest, found.path)
                digest, *moments = [found.manifest.digest for found in drafts]
                averaged = ev.ModelAveraged(self.clock.now_s(), effect.round, digest, tuple(moments))
                await self.dispatch(run, averaged)

    async def _abandon_averaging(self, run: LiveRun, effect: ev.Average, error: BaseLost | UpdateLost) -> None:
        log.error("round.averaging_failed", run=run.id, round=effect.round, problem=str(error))
        failed = ev.AveragingFailed(self.clock.now_s(), effect.round, str(error), isinstance(error, BaseLost))
        await self.dispatch(run, failed)

    async def _collect(self) -> None:
        """What is not collected now is with the next round."""
        try:
            await self.retention.collect({run.id for run in self.runs() if run.is_over})
        except (PluralError, OSError) as error:
            found = self.fail_stop.disk_failure(error) or error
            log.warning("blobs.not_collected", problem=str(found))

    # Clients

    async def say_hello(self, session: Session) -> None:
        """Opens a session; the member's row is durable when this returns."""
        member = ClientRecord(
            client=session.client,
            group=session.group,
            role=session.role,
            training_questions=session.training_questions,
            software_version=session.software_version,
            created_s=session.last_seen_s,
            last_seen_s=session.last_seen_s,
        )
        await self.store.save_client(member)
        self.sessions.open(session)
        self.client_bells.ring(session.client)  # an older instance hears that it was replaced
        log.info("client.connected", client=session.client, group=session.group, role=session.role)
        for run in self.runs():
            if not run.is_over and run.state.is_excluded(session.client):
                await self.dispatch(run, ev.ClientReturned(self.clock.now_s(), session.client))
        self.wake()

    async def remove_client(self, client: ClientId) -> None:
        """A revoked member: out of every run at once, and what it has delivered does not count unless averaging has begun."""
        self.sessions.close(client)
        self.client_bells.ring(client)  # its held poll is answered
        for run in self.runs():
            if not run.is_over:
                await self.dispatch(run, ev.MemberRevoked(self.clock.now_s(), client))

    def held_run(self, task: TaskName) -> LiveRun | None:
        """The run of a task that its client holds under a lease; None if the client does not hold it."""
        lease = self.leases.of(task.client)
        return self._runs.get(lease.run) if lease is not None and lease.task == task else None

    def _trouble(self, run: LiveRun, error: Exception) -> None:
        error = self.fail_stop.disk_failure(error) or error
        if run.trouble != str(error):
            log.error("run.in_trouble", run=run.id, problem=str(error))
        run.trouble = str(error)

    def _log_change(self, run: LiveRun, event: ev.Event, effects: tuple[ev.Effect, ...]) -> None:
        facts = ev.event_to_facts(event)
        facts.pop("at_s")
        names = [type(effect).__name__ for effect in effects]
        log.info("run.event", run=run.id, sequence=run.sequence, kind=ev.event_kind(event), effects=names, **facts)
