"""Holds each client's poll open until the server has something to report, or until the poll's time is over."""

import asyncio

from pluralllm.common.errors.tree import InvalidArgument, SessionReplaced, StaleSession
from pluralllm.common.process.clock import Clock
from pluralllm.common.process.tracing import traceparent
from pluralllm.common.wire.messages import PROTOCOL_MAX, PROTOCOL_MIN
from pluralllm.common.words.ids import ClientId, RoundNumber
from pluralllm.common.words.names import TaskKind
from pluralllm.server.rounds.cohort import task_seed
from pluralllm.server.rpc.messages import OUTCOMES, duration
from pluralllm.server.rpc.signatures import Signatures
from pluralllm.server.runs.bell import ClientBells
from pluralllm.server.runs.coordinator import Coordinator
from pluralllm.server.runs.leases import Leases
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.live_runs import Runs
from pluralllm.server.runs.round_steps import STEPS
from pluralllm.server.runs.round_traces import trace_key
from pluralllm.server.runs.sessions import Session, Sessions
from pluralllm.server.runs.what_now import DoTask, RunOver, Wait, reason_to_wait, spread_of, what_now
from pluralllm.v1 import federation_pb2 as pb

# Pause of a client whose poll is not held, and up to twice as long: shorter than the time after which it counts as silent.
BUSY_AFTER_S = 2.0
MAX_FOLLOWED = 1000  # runs in one poll; the open poll looks at them whenever a run changes
TASK_KINDS = {
    TaskKind.TRAIN: pb.TASK_KIND_TRAIN,
    TaskKind.EVALUATE: pb.TASK_KIND_EVALUATE,
    TaskKind.REWARD: pb.TASK_KIND_REWARD,
}


class Polls:
    """Answers the RPC Poll, with which clients ask for tasks.

    `generation` identifies the coordinator's process. A client that reports another generation must call Hello again.
    """

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        runs: Runs,
        sessions: Sessions,
        leases: Leases,
        client_bells: ClientBells,
        clock: Clock,
        generation: str,
        hold_s: float,
        max_held: int,
        signatures: Signatures,
    ) -> None:
        """Stores the arguments.

        `hold_s` is the longest time in seconds that the server holds a poll open. `max_held` is the largest number of polls that
        it holds at the same time.
        """
        self._coordinator, self._runs, self._sessions, self._leases = coordinator, runs, sessions, leases
        self._client_bells, self._clock = client_bells, clock
        self.generation, self.hold_s, self._signatures = generation, hold_s, signatures
        self._max_held, self._held = max_held, 0

    async def answer(self, request: pb.PollRequest, client: ClientId) -> pb.PollResponse:
        """Waits until there is an answer to the client's poll, and returns the answer.

        Raises StaleSession if the client must call Hello; SessionReplaced if a newer daemon of the client has connected.
        """
        if not PROTOCOL_MIN <= request.protocol <= PROTOCOL_MAX:
            return pb.PollResponse(upgrade=pb.Upgrade(protocol=pb.ProtocolRange(min=PROTOCOL_MIN, max=PROTOCOL_MAX)))
        if request.generation != self.generation:
            raise StaleSession(client=client)
        if len(request.following) > MAX_FOLLOWED:
            raise InvalidArgument(
                field="following", problem=f"names {len(request.following)} runs, at most {MAX_FOLLOWED}"
            )
        session = self._sessions.check(client, request.instance_id)
        hold_s = min(self.hold_s, max(0.0, request.hold.seconds + request.hold.nanos / 1e9))
        if not session.is_live(self._clock.now_s()):
            self._coordinator.wake()  # a silent client has come back
        is_full = self._held >= self._max_held
        session.polls_open += 1
        self._held += 1
        try:
            response = await self._hold(request, session, 0.0 if is_full else hold_s)
        finally:
            self._held -= 1
            session.polls_open -= 1
            session.last_seen_s = self._clock.now_s()
        if is_full and hold_s > 0 and response.HasField("wait"):
            after_s = BUSY_AFTER_S * (1 + spread_of(client, session.last_seen_s))
            reason = (
                f"the coordinator holds {self._max_held} polls, as many as max_held_polls in its configuration allows"
            )
            response.wait.CopyFrom(pb.Wait(after=duration(after_s), reason=reason))
        response.audit_head.CopyFrom(self._signatures.audit_head())
        return response

    async def _hold(self, request: pb.PollRequest, session: Session, hold_s: float) -> pb.PollResponse:
        loop, bell = asyncio.get_running_loop(), self._client_bells.of(session.client)
        until_s = loop.time() + hold_s
        while True:
            heard = bell.rings
            newest = self._sessions.get(session.client)
            if newest is not session:
                leaf = StaleSession if newest is None else SessionReplaced
                raise leaf(client=session.client)
            session.last_seen_s = self._clock.now_s()
            self._leases.renew(session.client, session.last_seen_s)
            left_s = 0.0 if bell.closed else until_s - loop.time()
            if (response := self._look(request, session, stopping=bell.closed, is_last=left_s <= 0)) is not None:
                return response
            await bell.wait(heard, min(left_s, self._leases.duration_s / 3))

    def _look(
        self, request: pb.PollRequest, session: Session, *, stopping: bool, is_last: bool
    ) -> pb.PollResponse | None:
        """Returns the answer to a poll, or None if the server must keep the poll open.

        `stopping` is true while the coordinator stops. `is_last` is true when the poll's time is over and the server must answer.
        """
        ended = [run.id for run in self._runs.all() if run.id in request.following and _has_ended_for(run, session)]
        lease = self._leases.of(session.client)
        leased = None if lease is None else lease.task
        spread = spread_of(session.client, session.last_seen_s)
        step = 0 if lease is None else task_step(self._runs.get(lease.run))
        held_step = request.held_phase
        match what_now(ended, leased, request.held_task, spread, is_last=is_last, phase=step, held_phase=held_step):
            case RunOver(run):
                return pb.PollResponse(run_over=run_over_message(self._runs.get(run)))
            case DoTask(task):
                self._leases.mark_fetched(session.client)
                return pb.PollResponse(task=self._task(self._runs.get(task.run), session.client))
            case Wait(after_s):
                reason = reason_to_wait(session, request.held_task, self._runs.all(), stopping=stopping)
                return pb.PollResponse(wait=pb.Wait(after=duration(after_s), reason=reason))
            case None:
                return None

    def _task(self, run: LiveRun, client: ClientId) -> pb.Task:
        state, name = run.state, run.task_name(client)
        return pb.Task(
            name=str(name),
            run=run.id,
            kind=TASK_KINDS[name.kind],
            round=state.round,
            phase=task_step(run),
            spec_sha256=run.record.spec_sha256,
            base_version=run.base.version,
            base_digest=run.base.digest,
            base_record_sha256=run.base.record_sha256,
            cohort_size=len(state.cohort),
            seed=task_seed(state.seed, RoundNumber(state.round), client),
            lease=duration(self._leases.duration_s),
            traceparent=traceparent(trace_key(run.record, state.round)),
        )


def task_step(run: LiveRun) -> int:
    """Returns the step of the run's private round that its tasks are in, as Task.phase has it; 0 in every other round."""
    return STEPS[run.state.phase] if run.state.is_private_round else 0


def _has_ended_for(run: LiveRun, session: Session) -> bool:
    """Returns whether a run has ended that the session's group takes part in. Other groups get no news of the run."""
    return run.is_over and run.spec.groups.role_of(session.group, session.role) is not None


def run_over_message(run: LiveRun) -> pb.RunOver:
    state = run.state
    return pb.RunOver(
        run=run.id,
        outcome=OUTCOMES[state.outcome],
        reason=state.reason,
        version=state.version,
        version_digest=state.model_digest,
    )
