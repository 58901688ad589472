"""The loop that joins the round machine, the store, the blobs and the connected clients.

The round machine (rounds/machine.py) makes the decisions, and the store keeps the state. The coordinator passes events to the
round machine and carries out the effects that the round machine returns.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from pluralllm.common.errors.private_rounds import DealtWrongly, SumImplausible
from pluralllm.common.errors.tree import (
    BaseLost,
    InvalidArgument,
    InvalidSpec,
    PluginBroken,
    PluralError,
    RoundClosed,
    SpecMismatch,
    StaleSession,
    UpdateLost,
)
from pluralllm.common.process.clock import Clock
from pluralllm.common.process.pulse import Pulse
from pluralllm.common.process.tracing import round_context, span
from pluralllm.common.process.watched_tasks import WatchedTasks
from pluralllm.common.words.ids import ID_HELP, ClientId, Digest, RunId, is_id
from pluralllm.common.words.spec import GroupRole, parse_spec
from pluralllm.server.aggregation.next_version import write_next
from pluralllm.server.aggregation.private_version import write_private
from pluralllm.server.process.cancellation import unbroken
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.process.instruments import AGGREGATION_SECONDS
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.looking import needs_look, sightings
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.assignments import Assignments, change_slots
from pluralllm.server.runs.bell import Bell, ClientBells
from pluralllm.server.runs.client_rows import ClientRows, row_of
from pluralllm.server.runs.expected import Expected
from pluralllm.server.runs.held_runs import HeldRuns
from pluralllm.server.runs.implausible_sums import ImplausibleSums
from pluralllm.server.runs.inbox import Inbox
from pluralllm.server.runs.leases import Leases
from pluralllm.server.runs.live_run import LiveRun, Step
from pluralllm.server.runs.live_runs import Runs
from pluralllm.server.runs.new_run import make_run
from pluralllm.server.runs.open_rounds import OpenRounds, PeerKeys
from pluralllm.server.runs.presence import Presence
from pluralllm.server.runs.recovery import recover_all
from pluralllm.server.runs.round_traces import trace_key
from pluralllm.server.runs.sessions import Session, Sessions
from pluralllm.server.runs.step_reports import report_step
from pluralllm.server.runs.troubles import Troubles, problem_of
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.manifests import Manifests
from pluralllm.server.storage.retention import Retention
from pluralllm.server.storage.store import Store

log = structlog.get_logger()

MAX_STEPS_AT_ONCE = 100  # repetitions for one run before the other runs get their turn
RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class Timing:
    """The configured durations of the loop, and the number of rounds for which a run keeps its updates."""

    lease_s: float = 60.0
    silence_s: float = 5.0
    tick_s: float = 0.25
    keep_updates: int = 3
    look_s: float = 0.05  # least time between two looks at all clients, unless slots have changed


class Coordinator:
    """The loop over all runs of one state directory. A process has one coordinator, and all its methods run on one event loop.

    The coordinator offers actions only. A package that needs the store or the clock gets it as an argument, not from the
    coordinator.
    """

    def __init__(
        self,
        *,
        inbox: Inbox,
        store: Store,
        blobs: Blobs,
        scratch: Path,
        clock: Clock,
        timing: Timing,
        fail_stop: FailStop,
        tasks: WatchedTasks,
        pulse: Pulse,
        runs: Runs,
        sessions: Sessions,
        leases: Leases,
        presence: Presence,
        clients: ClientRows,
        open_rounds: OpenRounds,
        peer_keys: PeerKeys,
        expected: Expected,
        manifests: Manifests,
        retention: Retention,
        troubles: Troubles,
        run_bell: Bell,
        client_bells: ClientBells,
    ) -> None:
        """Stores the arguments. The coordinator does nothing before `start`.

        The coordinator rings the notifier `run_bell` when a run has changed. In `client_bells` it rings a client's notifier when
        the client's task or session has changed. Each turn of its loop beats `pulse`. `scratch` is the folder for files that are
        not finished.
        """
        self._inbox, self._store, self._blobs, self._scratch = inbox, store, blobs, scratch
        self._clock, self._timing, self._fail_stop = clock, timing, fail_stop
        self._tasks, self._pulse = tasks, pulse
        self._runs, self._sessions, self._leases, self._presence = runs, sessions, leases, presence
        self._clients, self._open_rounds, self._peer_keys = clients, open_rounds, peer_keys
        self._expected = expected
        self._manifests, self._retention, self._troubles = manifests, retention, troubles
        self._run_bell, self._client_bells = run_bell, client_bells
        self._assignments = Assignments(leases, client_bells, clock)
        self._wake, self._hurry = Bell(), Bell()
        self._averaging: dict[RunId, asyncio.Task[None]] = {}
        self._implausible, self._held = ImplausibleSums(), HeldRuns(clock, RETRY_S)
        self._started_s = clock.now_s()
        self._creating = asyncio.Lock()
        self._unreadable: dict[RunId, Digest] = {}  # stored runs that are left out, with the hashes of their specs

    # Life

    async def start(self) -> None:
        """Rebuilds every run from its event log, continues the runs that have not ended, and starts the loop.

        A run whose stored spec this release does not allow is logged and left out. A run with a plug-in is held at first.
        """
        self._started_s = self._clock.now_s()
        await self._clients.start()
        async for record, run in recover_all(self._store, writes=True):
            if isinstance(run, InvalidSpec):  # of an earlier release, which allowed more; the others need not stop
                log.error("run.unreadable", run=record.id, problem=str(run))
                self._unreadable[record.id] = record.spec_sha256
                continue
            self._runs.add(run)
            if run.is_over:
                continue
            if self._held.take(run.id, run.spec):
                self._assignments.settle(run)  # its clients keep their tasks
            else:
                await self._go_on(run)
        self._tasks.keep("the coordinator's loop", self._drive)
        self._tasks.keep("the times of clients", self._clients.keep_times)
        self._collect_soon()  # a stop between a round's end and its collection leaves blobs

    async def _go_on(self, run: LiveRun) -> None:
        await self.dispatch(run, ev.CoordinatorStarted(self._clock.now_s()))
        self._held.release(run.id)  # if the event is not durable, it stays held: its deadlines have not begun anew
        self._troubles.clear(run.id)
        self._reconcile(run)
        log.info("run.recovered", run=run.id, phase=run.state.phase, round=run.state.round, events=run.sequence)

    def drain(self) -> None:
        """Makes the server answer every waiting call now, because the process is about to stop."""
        self._run_bell.close()
        self._client_bells.close()

    async def _drive(self) -> None:
        """Runs `advance` for every run again and again, until its task is cancelled. A run that fails does not stop the others.

        The loop runs at regular intervals (`tick_s` in Timing), and when something has happened: see `_rest`.
        """
        loop = asyncio.get_running_loop()
        while True:
            began_s, heard, hurried = loop.time(), self._wake.rings, self._hurry.rings
            next_s = self._clock.now_s() + self._timing.tick_s
            self._pulse.beat()
            for run in self._runs.all():
                await self._look_at(run)
                self._pulse.beat()
            await self._rest(heard, next_s)
            await self._hurry.wait(hurried, began_s + self._timing.look_s - loop.time())

    async def _rest(self, heard: int, until_s: float) -> None:
        """Waits until a run has changed or a client has come or gone, at most until the time `until_s` of the clock.

        heard: the number of rings of `wake` before the loop's turn. until_s: one interval after the beginning of the turn, so
        that the next turn sees a deadline that passes during a turn. A turn looks at all clients. So a thousand clients that come
        or deliver at the same time cause one turn in `look_s`, and not a thousand turns; but a step that changes slots rings
        `hurry`, and the clients that it concerns do not wait.
        """
        sleep = asyncio.ensure_future(self._clock.sleep(until_s - self._clock.now_s()))
        ring = asyncio.ensure_future(self._wake.wait(heard, 3600))
        try:
            await asyncio.wait([sleep, ring], return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            ring.cancel()

    def wake(self) -> None:
        """Makes the loop run soon, because a client has connected, disconnected or sent a result."""
        self._wake.ring()

    # Runs

    @unbroken
    async def create_run(self, run_id: str, spec_json: bytes) -> LiveRun:
        """Creates a run with model version 0 and returns the run. An existing run with an equal spec is returned.

        Raises InvalidArgument for a bad run id; InvalidSpec for a bad spec; SpecMismatch if the run exists with another spec;
        NotFound if the spec names a model version that does not exist; PluginMissing or PluginBroken if its aggregator is another
        package's and cannot be used here; StorageFull if no space is left.
        """
        if not is_id(run_id):
            raise InvalidArgument(field="run_id", problem=f"is {run_id!r}, allowed: {ID_HELP}")
        spec = await asyncio.to_thread(parse_spec, spec_json, f"of run {run_id}")
        if self._runs.find(run_id) is None:
            await self._held.check_plugin(spec)  # it may take long, and nobody else waits for it
        async with self._creating:
            if (stored := self._unreadable.get(RunId(run_id))) is not None:
                raise SpecMismatch(run=run_id, asked=spec.sha256()[:12], stored=stored[:12])
            if (existing := self._runs.find(run_id)) is not None:
                if existing.record.spec_sha256 != spec.sha256():
                    raise SpecMismatch(run=run_id, asked=spec.sha256()[:12], stored=existing.record.spec_sha256[:12])
                return existing
            sources, now_s = {run.id: run for run in self._runs.all()}, self._clock.now_s()
            async with self._retention.storing():
                run = await make_run(self._store, self._blobs, self._scratch, sources, RunId(run_id), spec, now_s)
            self._runs.add(run)
        made = {"model": run.first.digest, "parameters": run.layout.values}
        log.info("run.created", run=run.id, spec_sha256=run.record.spec_sha256, **made)
        self._run_bell.ring()
        return run

    @unbroken
    async def dispatch(self, run: LiveRun, event: ev.Event, body: bytes = b"") -> None:
        """Passes an event to the run's round machine, makes the result durable, starts the effects, and then reports the step.

        body: the message of a private round that has arrived with the event. Raises a subclass of Refused if the round machine
        does not allow the event now.
        """
        step = await self._inbox.put(run, event, body)
        if step is None:
            return
        if run.is_over or run.id not in self._held:
            self._troubles.clear(run.id)
        self._follow(run, step)
        if step.ends_round:
            self._open_rounds.forget(run.id, step.before.state.round)
            self._collect_soon()
        if step.ends_run:
            for session in self._sessions.live(self._clock.now_s()):
                if run.spec.groups.role_of(session.group, session.role) is not None:
                    self._client_bells.ring(session.client)
        self._run_bell.ring()
        self.wake()
        if change_slots(step):
            self._hurry.ring()
        report_step(run, step)

    async def steer(self, run: LiveRun, event: ev.Event) -> None:
        """Passes an operator's event to the run as `dispatch` does, then looks at the run. Only the loop looks at a held run."""
        await self.dispatch(run, event)
        if run.id not in self._held:
            await self._look_at(run)

    async def _look_at(self, run: LiveRun) -> None:
        try:
            await self.advance(run)
        except Exception as error:  # noqa: BLE001 - it is logged, and the loop's next turn tries again
            self._note_trouble(run, error)

    async def advance(self, run: LiveRun) -> None:
        """Repeatedly reports the time and the connected clients to the round machine, until no report changes the run.

        After MAX_STEPS_AT_ONCE repetitions the method stops in any case, so that other runs get their turn. A run that is over
        has nothing to hear, and costs nothing: a coordinator may have thousands of them.
        """
        if run.is_over:
            return
        if run.id in self._held:
            if self._held.may_go(run.id, run.spec):
                await self._go_on(run)
            return
        self._reconcile(run)
        for _ in range(MAX_STEPS_AT_ONCE):
            before = run.sequence
            present = self._presence.look(self._clock.now_s()) if needs_look(run.state) else {}  # else nobody matters
            await self._dispatch_all(run, self._losses(run, present))
            await self._dispatch_all(run, self._observations(run, present))
            if run.sequence == before:
                return

    async def _dispatch_all(self, run: LiveRun, events: Sequence[ev.Event]) -> None:
        """Passes events to the run in their order. They share transactions: a thousand clients that are gone cost a few."""
        await asyncio.gather(*(self.dispatch(run, event) for event in events))

    def _losses(self, run: LiveRun, present: Mapping[ClientId, Session]) -> tuple[ev.Event, ...]:
        """Returns the events of clients that are gone. A lease ends with its slot, so an event that is not stored comes again."""
        if run.state.phase in (Phase.CREATED, Phase.ENDED):
            return ()
        now_s = self._clock.now_s()
        revoked = self._presence.revoked
        members = {*run.state.roster, *run.state.cohort} if revoked else set()
        losses: list[ev.Event] = [ev.MemberRevoked(now_s, client) for client in sorted(revoked & members)]
        for client in self._leases.expired(run.id, now_s):
            reason = f"lease expired after {self._leases.duration_s:g} s of silence"
            losses.append(ev.PlaceLost(now_s, client, reason, permanent=False))
        # After a restart, clients have the time of a lease to reconnect.
        if needs_look(run.state) and now_s >= self._started_s + self._leases.duration_s:
            for client in run.state.roster:
                if client not in present and self._leases.of(client) is None:
                    losses.append(ev.PlaceLost(now_s, client, "disconnected", permanent=False))
        return tuple(losses)

    def _observations(self, run: LiveRun, present: Mapping[ClientId, Session]) -> tuple[ev.Event, ...]:
        """Returns the events of the clients that are there, and of the clock."""
        if run.state.phase in (Phase.CREATED, Phase.ENDED):
            return ()
        now_s, by_role = self._clock.now_s(), defaultdict[GroupRole | None, list[ClientId]](list)
        idle = [session for client, session in present.items() if self._leases.of(client) is None]
        closes = run.state.waits_to_close or run.state.is_closing
        for session in idle:
            role = run.spec.groups.role_of(session.group, session.role)
            if (role is not GroupRole.TRAIN and not closes) or self._may_train(run, session):
                by_role[role].append(session.client)
        trainers, held_out, head = by_role[GroupRole.TRAIN], by_role[GroupRole.HELD_OUT], self._peer_keys.head
        ready = len(trainers) + (len(held_out) if run.state.waits_to_close else 0)
        nobody_else = self._expected.nobody_but(run, ready, [session.client for session in idle])
        seen = sightings(run.state, now_s, trainers, held_out, head.hex(), nobody_else=nobody_else)
        return (*seen, ev.ClockTicked(now_s))

    def _may_train(self, run: LiveRun, session: Session) -> bool:
        """Returns whether a client can take part in the run's next round. Its release must know the steps of a private one.

        It then also needs a key on record, which an administrator may have reset since the client's Hello.
        """
        if run.state.private is None or run.state.phase is Phase.EVALUATING:
            return True
        return session.is_ready_for_private_rounds and self._peer_keys.peer_key(session.client) is not None

    def _follow(self, run: LiveRun, step: Step) -> None:
        """Makes the leases and the averaging agree with one step of the run."""
        self._assignments.follow(run, step)
        self._tend_averaging(run)

    def _reconcile(self, run: LiveRun) -> None:
        """Makes the leases and the averaging agree with the round machine's state, whatever has become of earlier effects."""
        self._assignments.check(run)
        self._tend_averaging(run)

    def _tend_averaging(self, run: LiveRun) -> None:
        """Starts the averaging that the run waits for, if it is not in progress. A held run waits until it is let go."""
        averaging = self._averaging.get(run.id)
        may_start = run.id not in self._held and (averaging is None or averaging.done())
        if may_start and (effect := run.progress.averaging) is not None:
            work = partial(self._average_until_done, run, effect)
            self._averaging[run.id] = self._tasks.keep(f"the averaging of run {run.id}", work)

    def release(self, client: ClientId) -> None:
        """Ends the client's lease and makes the server answer the client's open poll."""
        self._assignments.release(client)

    # Averaging

    async def until_averaged(self, run: LiveRun) -> None:
        """Waits until the run's current averaging has ended. Returns at once if no averaging is in progress."""
        if (averaging := self._averaging.get(run.id)) is not None:
            await asyncio.shield(averaging)

    async def _average_until_done(self, run: LiveRun, effect: ev.Average) -> None:
        while run.state.phase is Phase.AGGREGATING and run.state.round == effect.round:
            try:
                await self._held.check_plugin(run.spec)  # its failure costs no round: the package may be mended
                try:
                    await self._make_next_version(run, effect)
                except (BaseLost, UpdateLost, SumImplausible, PluginBroken) as error:
                    await self._abandon_averaging(run, effect, error)
                except DealtWrongly as error:
                    dealt = ev.DealtWrongly(self._clock.now_s(), effect.round, ClientId(error.dealer), error.problem)
                    await self.dispatch(run, dealt)
            except RoundClosed:  # the run has ended meanwhile, so nothing names the stored blobs
                await self._collect()
            except Exception as error:  # noqa: BLE001 - it is logged, and the average is tried again
                self._note_trouble(run, error)
                await self._clock.sleep(RETRY_S)

    async def _make_next_version(self, run: LiveRun, effect: ev.Average) -> None:
        """Averages the updates, stores the new model version and the optimizer moments, and records the version.

        The optimizer moments are the state of the server's optimizer. Raises BaseLost or UpdateLost if a stored file that the
        average needs is lost or corrupt; PluginBroken if another package's aggregator fails; RoundClosed if the round has ended
        meanwhile. Any other error may be temporary, so the caller tries again.
        """
        draft = self._scratch / f"{run.id}-{effect.round}.safetensors"
        trace = round_context(trace_key(run.record, effect.round))
        with AGGREGATION_SECONDS.time(), span("average", trace, updates=len(effect.receipts)):
            if run.spec.private_rounds is not None:
                material = await self._open_rounds.material(run)
                made = await write_private(self._blobs, run.spec, run.newest, material, draft)
            else:
                made = await write_next(
                    self._blobs, run.spec, run.newest, effect.receipts, effect.weights, effect.scales, draft
                )
        self._manifests.keep(made.files[0].manifest)
        with span("publish", trace):
            async with self._retention.storing():
                for draft_file in made.files:
                    await self._blobs.put(draft_file.manifest.digest, draft_file.path)
                digest, *moments = [draft_file.manifest.digest for draft_file in made.files]
                transcript = Digest("")
                if made.transcript is not None:
                    transcript = made.transcript.manifest.digest
                    await self._blobs.put(transcript, made.transcript.path)
                averaged = ev.ModelAveraged(
                    self._clock.now_s(), effect.round, digest, tuple(moments), transcript, made.chosen, made.tail
                )
                await self.dispatch(run, averaged)
                self._implausible.forget(run.id)
                self._manifests.keep_record(run.newest)  # at once: the clients of the next round ask for it together

    async def _abandon_averaging(
        self, run: LiveRun, effect: ev.Average, error: BaseLost | UpdateLost | SumImplausible | PluginBroken
    ) -> None:
        problem = problem_of(error)
        if isinstance(error, SumImplausible):
            again = self._implausible.note(run.id, (receipt.client for receipt in effect.receipts))
            problem += f" The sum before was implausible, too: {', '.join(again)} took part in both." if again else ""
        cause = error.__cause__ if isinstance(error, PluginBroken) else None  # its own error, which only the log has
        log.error("round.averaging_failed", run=run.id, round=effect.round, problem=problem, exc_info=cause)
        failed = ev.AveragingFailed(self._clock.now_s(), effect.round, problem, isinstance(error, BaseLost))
        await self.dispatch(run, failed)

    def _collect_soon(self) -> None:
        self._tasks.spawn("the collection of blobs", self._collect())

    async def _collect(self) -> None:
        """Deletes the blobs that no run needs any more. If the deletion fails, the next end of a round starts another attempt."""
        try:
            await self._retention.collect({run.id for run in self._runs.all() if run.is_over})
        except (PluralError, OSError) as error:
            error = self._fail_stop.disk_failure(error) or error
            log.warning("blobs.not_collected", problem=str(error))

    # Clients

    async def say_hello(self, session: Session) -> None:
        """Opens a session for a client that has called Hello, and makes the client's database row durable if it has changed.

        If a run has excluded the client after a permanent failure, the client may take part in the run again.
        Raises StaleSession if its membership is revoked meanwhile: the next Hello is told so.
        """
        revoked = self._presence.revoked
        await self._clients.save(row_of(session))
        if session.client in self._presence.revoked - revoked:
            raise StaleSession(client=session.client)
        self._presence.readmit(session.client)
        if self._sessions.open(session):
            count = session.takeovers_within_window(session.last_seen_s)
            log.warning("client.taken_over", client=session.client, takeovers=count)
        self._client_bells.ring(session.client)  # the poll of an older instance answers that it was replaced
        log.info("client.connected", client=session.client, group=session.group, role=session.role)
        for run in self._runs.all():
            if not run.is_over and run.state.is_excluded(session.client):
                await self.dispatch(run, ev.ClientReturned(self._clock.now_s(), session.client))
        self.wake()

    async def remove_client(self, client: ClientId) -> None:
        """Removes a revoked member from every run that has not ended, and closes the member's session.

        The member's update in an open round does not count, unless averaging has begun. If a run cannot record the removal now,
        for example on a full disk, the loop removes the member later.
        """
        self._presence.revoke(client)
        self._sessions.close(client)
        self._client_bells.ring(client)  # its held poll is answered
        for run in self._runs.all():
            if not run.is_over:
                try:
                    await self.dispatch(run, ev.MemberRevoked(self._clock.now_s(), client))
                except Exception as error:  # noqa: BLE001 - it is logged, and tried again
                    self._note_trouble(run, error)

    def _note_trouble(self, run: LiveRun, error: Exception) -> None:
        """Notes and logs why the run cannot go on now. An error that nobody expected is logged with its place in the code."""
        error = self._fail_stop.disk_failure(error) or error
        problem = problem_of(error)
        if not self._troubles.note(run.id, problem):
            return
        if isinstance(error, PluralError | OSError):
            log.error("run.in_trouble", run=run.id, problem=problem)
        else:
            log.error("run.broken", run=run.id, problem=problem, exc_info=error)
