"""FederationService: RPCs of the client daemon, translated to calls on the coordinator and back."""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.duration_pb2 import Duration

from pluralllm.common.errors.grpc_status import CLIENT_STOPPED
from pluralllm.common.errors.membership import IdentityMismatch
from pluralllm.common.errors.tree import (
    InvalidArgument,
    LeaseLost,
    OverLimit,
    ProtocolUnsupported,
    SessionReplaced,
    StaleSession,
    Unreachable,
)
from pluralllm.common.process.tracing import traceparent
from pluralllm.common.weights.chunks import CHUNK_BYTES
from pluralllm.common.wire.chunk_messages import ChunkMessage
from pluralllm.common.wire.messages import (
    MAX_MESSAGE_BYTES,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    ROLES_BACK,
    manifest_from,
    manifest_message,
    range_messages,
    timestamp,
)
from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber
from pluralllm.common.words.names import TaskKind
from pluralllm.server.members.door import caller
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.cohort import task_seed
from pluralllm.server.rpc.messages import OUTCOMES, model_message, receipt_message
from pluralllm.server.runs.coordinator import Coordinator
from pluralllm.server.runs.intake import Intake, parse_task
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.overview import why_waiting
from pluralllm.server.runs.reward_queue import RewardDesk
from pluralllm.server.runs.round_traces import trace_key
from pluralllm.server.runs.sessions import Session
from pluralllm.server.storage.model_chunks import ModelChunks
from pluralllm.server.storage.store import ReceiptRecord
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1 import federation_pb2_grpc as pb_grpc

RETRY_AFTER_S = 0.05  # after a poll was held to its end the client may ask again almost at once
IDLE_HINT_S = 0.5
MAX_NAME = 200
MAX_METRICS = 50
TASK_KINDS = {
    TaskKind.TRAIN: pb.TASK_KIND_TRAIN,
    TaskKind.EVALUATE: pb.TASK_KIND_EVALUATE,
    TaskKind.REWARD: pb.TASK_KIND_REWARD,
}
Context = Any  # grpc.aio.ServicerContext; its type parameters say nothing here


class Federation(pb_grpc.FederationServiceServicer):
    def __init__(
        self, coordinator: Coordinator, intake: Intake, desk: RewardDesk, poll_hold_s: float, chunk_idle_s: float
    ) -> None:
        self._coordinator = coordinator
        self._desk = desk
        self._intake = intake
        self._poll_hold_s = poll_hold_s
        self._chunk_idle_s = chunk_idle_s
        self._chunks = ModelChunks()

    async def Hello(self, request: pb.HelloRequest, context: Context) -> pb.HelloResponse:
        principal = caller()
        offered = request.protocol
        protocol = min(offered.max, PROTOCOL_MAX)
        if protocol < max(offered.min, PROTOCOL_MIN):
            raise ProtocolUnsupported(
                client_min=offered.min, client_max=offered.max, server_min=PROTOCOL_MIN, server_max=PROTOCOL_MAX
            )
        if request.role not in ROLES_BACK:
            raise InvalidArgument(field="role", problem="must be TRAIN or HELD_OUT")
        for field in ("group", "instance_id", "software_version"):
            if not 0 < len(getattr(request, field)) <= MAX_NAME:
                raise InvalidArgument(field=field, problem=f"must have 1 to {MAX_NAME} characters")
        if request.training_questions < 0:
            raise InvalidArgument(field="training_questions", problem="must not be negative")
        if principal.group is not None and (request.group, ROLES_BACK[request.role]) != principal.group_and_role:
            claimed = f"group {request.group} ({ROLES_BACK[request.role]})"
            raise IdentityMismatch(claimed=claimed, certificate=f"group {principal.group} ({principal.group_role})")
        now_s = self._coordinator.clock.now_s()
        session = Session(
            client=principal.name,
            instance=request.instance_id,
            group=GroupName(request.group),
            role=ROLES_BACK[request.role],
            training_questions=request.training_questions,
            software_version=request.software_version,
            last_seen_s=now_s,
        )
        await self._coordinator.say_hello(session)
        return pb.HelloResponse(
            protocol=protocol,
            generation=self._coordinator.generation,
            server_time=timestamp(now_s),
            limits=pb.Limits(
                max_message_bytes=MAX_MESSAGE_BYTES,
                chunk_bytes=CHUNK_BYTES,
                lease=duration(self._coordinator.leases.duration_s),
                poll_hold=duration(self._poll_hold_s),
            ),
        )

    async def Poll(self, request: pb.PollRequest, context: Context) -> pb.PollResponse:
        client = caller().name
        if not PROTOCOL_MIN <= request.protocol <= PROTOCOL_MAX:
            return pb.PollResponse(upgrade=pb.Upgrade(protocol=pb.ProtocolRange(min=PROTOCOL_MIN, max=PROTOCOL_MAX)))
        if request.generation != self._coordinator.generation:
            raise StaleSession(client=client)
        session = self._coordinator.sessions.check(client, request.instance_id)
        hold_s = min(self._poll_hold_s, max(0.0, request.hold.seconds + request.hold.nanos / 1e9))
        if not session.is_live(self._coordinator.clock.now_s()):
            self._coordinator.wake()  # someone came back
        session.polls_open += 1
        try:
            return await self._hold(request, session, hold_s)
        finally:
            session.polls_open -= 1
            session.last_seen_s = self._coordinator.clock.now_s()

    async def _hold(self, request: pb.PollRequest, session: Session, hold_s: float) -> pb.PollResponse:
        coordinator, client = self._coordinator, session.client
        loop, bell = asyncio.get_running_loop(), coordinator.client_bells.of(client)
        until_s = loop.time() + hold_s
        while True:
            heard = bell.rings
            known = coordinator.sessions.get(client)
            if known is not session:
                raise SessionReplaced(client=client) if known is not None else StaleSession(client=client)
            session.last_seen_s = coordinator.clock.now_s()
            coordinator.leases.renew(client, session.last_seen_s)
            left_s = 0.0 if coordinator.draining else until_s - loop.time()
            answer = self._answer(request, session, is_last=left_s <= 0)
            if answer is not None:
                return answer
            await bell.wait(heard, min(left_s, coordinator.leases.duration_s / 3))

    def _answer(self, request: pb.PollRequest, session: Session, *, is_last: bool) -> pb.PollResponse | None:
        """What to tell the client now; None to hold on."""
        coordinator = self._coordinator
        for run in coordinator.runs():
            if run.is_over and run.id in request.following:
                return pb.PollResponse(run_over=run_over_message(run))
        lease = coordinator.leases.of(session.client)
        if lease is not None and (str(lease.task) != request.held_task or is_last):
            coordinator.leases.mark_fetched(session.client)
            return pb.PollResponse(task=self._task(coordinator.run(lease.run), session.client))
        if lease is None and (request.held_task or is_last):
            after_s = (
                RETRY_AFTER_S if request.held_task else RETRY_AFTER_S + IDLE_HINT_S * (hash(session.client) % 10) / 10
            )
            return pb.PollResponse(wait=pb.Wait(after=duration(after_s), reason=self._why(request, session)))
        return None

    def _why(self, request: pb.PollRequest, session: Session) -> str:
        if request.held_task:
            return f"task {request.held_task} is no longer wanted"
        if self._coordinator.draining:
            return "the coordinator is stopping"
        open_runs = [run for run in self._coordinator.runs() if not run.is_over]
        mine = [run for run in open_runs if run.spec.groups.role_of(session.group, session.role) is not None]
        if not mine:
            return "no run is open" if not open_runs else f"group {session.group} is not named in any open run"
        return "; ".join(why_waiting(run, session.client) for run in mine)

    def _task(self, run: LiveRun, client: ClientId) -> pb.Task:
        state, name = run.state, run.task_name(client)
        return pb.Task(
            name=str(name),
            run=run.id,
            kind=TASK_KINDS[name.kind],
            round=state.round,
            spec_sha256=run.record.spec_sha256,
            base_version=run.base.version,
            base_digest=run.base.digest,
            base_record_sha256=run.base.record_sha256,
            cohort_size=len(state.cohort),
            seed=task_seed(state.seed, RoundNumber(state.round), client),
            lease=duration(self._coordinator.leases.duration_s),
            traceparent=traceparent(trace_key(run.record, state.round)),
        )

    async def GetRunSpec(self, request: pb.GetRunSpecRequest, context: Context) -> pb.GetRunSpecResponse:
        record = self._coordinator.run(request.run).record
        return pb.GetRunSpecResponse(spec_json=record.spec_json, spec_sha256=record.spec_sha256)

    async def GetManifest(self, request: pb.GetManifestRequest, context: Context) -> pb.GetManifestResponse:
        run = self._coordinator.run(request.run)
        record, manifest = await self._coordinator.manifests.of(run.id, ModelVersion(request.version))
        return pb.GetManifestResponse(manifest=manifest_message(manifest), model=model_message(record))

    async def GetChunks(self, request: pb.GetChunksRequest, context: Context) -> AsyncIterator[bytes]:  # type: ignore[override]
        run = self._coordinator.run(request.run)
        record, manifest = await self._coordinator.manifests.of(run.id, ModelVersion(request.version))
        if not 0 <= request.first_chunk < manifest.chunks:
            raise OverLimit(what="first_chunk", got=request.first_chunk, limit=manifest.chunks - 1)
        path = await self._coordinator.blobs.path(record.digest)
        for index in range(request.first_chunk, manifest.chunks):
            yield await self._chunks.message(path, manifest, index)
            run.sent_bytes += manifest.chunk_size(index)

    async def GetRollouts(self, request: pb.GetRolloutsRequest, context: Context) -> pb.GetRolloutsResponse:
        task = parse_task(request.task, caller().name)
        run = self._coordinator.held_run(task)
        if run is None:
            raise LeaseLost(task=str(task))
        return pb.GetRolloutsResponse(rollouts_json=await self._desk.rollouts(run))

    async def BeginUpdate(self, request: pb.BeginUpdateRequest, context: Context) -> pb.BeginUpdateResponse:
        task = parse_task(request.task, caller().name)
        if len(request.metrics) > MAX_METRICS or not all(map(math.isfinite, request.metrics.values())):
            raise InvalidArgument(field="metrics", problem=f"at most {MAX_METRICS} finite numbers")
        limit = (
            2 * self._coordinator.run(task.run).update_format.size_bytes
        )  # the exact size is checked next, with a typed refusal
        manifest = manifest_from(request.manifest, limit)
        answer = await self._intake.begin(
            task, request.spec_sha256, request.base_digest, manifest, request.examples, dict(request.metrics)
        )
        if isinstance(answer, ReceiptRecord):
            return pb.BeginUpdateResponse(receipt=receipt_message(answer))
        return pb.BeginUpdateResponse(missing=range_messages(answer))

    async def PutChunks(  # type: ignore[override]
        self, request_iterator: AsyncIterator[ChunkMessage[pb.PutChunksRequest]], context: Context
    ) -> pb.PutChunksResponse:
        client, task, digest = caller().name, None, ""
        stream = aiter(request_iterator)
        while True:
            try:
                async with asyncio.timeout(self._chunk_idle_s):
                    message = await anext(stream)
            except StopAsyncIteration:
                break
            except TimeoutError:
                raise Unreachable(address="client", problem=f"no chunk for {self._chunk_idle_s:g} s") from None
            if task is None:
                task, digest = parse_task(message.facts.task, client), message.facts.digest
            await self._intake.put(task, digest, message.facts.index, message.data)
        if task is None:
            raise InvalidArgument(field="task", problem="the stream was empty")
        return pb.PutChunksResponse(missing=range_messages(await self._intake.missing(task)))

    async def CommitUpdate(self, request: pb.CommitUpdateRequest, context: Context) -> pb.CommitUpdateResponse:
        task = parse_task(request.task, caller().name)
        return pb.CommitUpdateResponse(receipt=receipt_message(await self._intake.commit(task, Digest(request.digest))))

    async def ReportEvaluation(
        self, request: pb.ReportEvaluationRequest, context: Context
    ) -> pb.ReportEvaluationResponse:
        task = parse_task(request.task, caller().name)
        run = self._coordinator.run(task.run)
        session = self._coordinator.sessions.of(task.client)
        wasserstein = request.wasserstein_score if request.HasField("wasserstein_score") else None
        scores = [
            request.alignment_score,
            request.alignment_score_base2,
            *([] if wasserstein is None else [wasserstein]),
        ]
        if request.questions < 1 or not all(0 <= score <= 1 for score in scores):
            raise InvalidArgument(field="alignment_score", problem="scores are in 0..1, over at least 1 question")
        if task.kind is not TaskKind.EVALUATE or task.round != run.state.round:
            raise LeaseLost(task=str(task))
        score = ev.Score(
            client=task.client,
            group=session.group,
            role=run.spec.groups.role_of(session.group, session.role) or session.role,
            version=run.state.version,
            alignment_score=request.alignment_score,
            alignment_score_base2=request.alignment_score_base2,
            wasserstein_score=wasserstein,
            questions=request.questions,
        )
        await self._coordinator.dispatch(run, ev.EvaluationArrived(self._coordinator.clock.now_s(), score))
        return pb.ReportEvaluationResponse()

    async def ReportProgress(self, request: pb.ReportProgressRequest, context: Context) -> pb.ReportProgressResponse:
        task = parse_task(request.task, caller().name)
        if self._coordinator.held_run(task) is None:
            raise LeaseLost(task=str(task))
        progress = min(1.0, max(0.0, request.progress)) if math.isfinite(request.progress) else 0.0
        self._coordinator.leases.note(task.client, request.stage[:40], progress)
        self._coordinator.leases.renew(task.client, self._coordinator.clock.now_s())
        return pb.ReportProgressResponse()

    async def ReportFailure(self, request: pb.ReportFailureRequest, context: Context) -> pb.ReportFailureResponse:
        task = parse_task(request.task, caller().name)
        run = self._coordinator.held_run(task)
        session = self._coordinator.sessions.get(task.client)
        is_replaced = session is not None and request.instance_id not in ("", session.instance)
        if run is not None and not is_replaced:
            reason = f"{request.reason[:40]}: {request.message[:400]}"
            permanent = request.kind == pb.FAILURE_KIND_PERMANENT
            self._coordinator.release(task.client)
            if request.reason == CLIENT_STOPPED:  # before its place is free, or it would be given the next one
                self._coordinator.sessions.close(task.client)
            lost = ev.PlaceLost(self._coordinator.clock.now_s(), task.client, reason, permanent)
            await self._coordinator.dispatch(run, lost)
        return pb.ReportFailureResponse()


def duration(length_s: float) -> Duration:
    """Seconds as a protobuf duration (milliseconds kept)."""
    found = Duration()
    found.FromMilliseconds(round(length_s * 1000))
    return found


def run_over_message(run: LiveRun) -> pb.RunOver:
    state = run.state
    return pb.RunOver(
        run=run.id,
        outcome=OUTCOMES[state.outcome],
        reason=state.reason,
        version=state.version,
        version_digest=state.model_digest,
    )
