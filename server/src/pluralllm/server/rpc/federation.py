"""FederationService: converts the RPCs of the client daemon into calls on the other packages, and converts the results back."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from pluralllm.common import __version__
from pluralllm.common.errors.grpc_status import CLIENT_STOPPED
from pluralllm.common.errors.membership import IdentityMismatch
from pluralllm.common.errors.private_rounds import WrongStep
from pluralllm.common.errors.tree import (
    InvalidArgument,
    LeaseLost,
    OverLimit,
    ProtocolUnsupported,
    StreamSilent,
    WrongPhase,
)
from pluralllm.common.process.clock import Clock
from pluralllm.common.text.printable import GROUP_HELP, is_group_name
from pluralllm.common.weights.chunks import CHUNK_BYTES
from pluralllm.common.weights.pieces import Pieces, PieceSizes, transfer_s
from pluralllm.common.wire.chunk_messages import ChunkMessage, write_chunk
from pluralllm.common.wire.messages import (
    CHUNK_PIECES,
    MAX_MESSAGE_BYTES,
    MAX_ROSTER_ENTRIES,
    NOT_REPORTED_BACK,
    PRIVATE_ROUNDS,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    ROLES_BACK,
    manifest_from,
    manifest_message,
    noise_in,
    range_messages,
    roster_entry_message,
    seconds,
    timestamp,
)
from pluralllm.common.wire.round_steps import step_body, view_message
from pluralllm.common.words.addresses import Addresses
from pluralllm.common.words.ids import Digest, GroupName, ModelVersion, RoundNumber
from pluralllm.common.words.names import TaskKind, TaskName
from pluralllm.common.words.question_digests import MAX_DIGESTS
from pluralllm.server.members.door import caller
from pluralllm.server.members.roster_log import RosterLog
from pluralllm.server.rounds import events as ev
from pluralllm.server.rpc.messages import (
    addresses_message,
    claim_in,
    duration,
    model_message,
    receipt_message,
)
from pluralllm.server.rpc.polling import Polls
from pluralllm.server.rpc.shared_runs import SharedRuns
from pluralllm.server.rpc.signatures import Signatures
from pluralllm.server.runs.coordinator import Coordinator
from pluralllm.server.runs.intake import Intake, parse_task
from pluralllm.server.runs.leases import Leases
from pluralllm.server.runs.live_runs import Runs
from pluralllm.server.runs.question_counts import QuestionCounts
from pluralllm.server.runs.reward_queue import RewardQueue
from pluralllm.server.runs.round_steps import RoundSteps
from pluralllm.server.runs.sessions import Session, Sessions
from pluralllm.server.runs.traffic import Traffic
from pluralllm.server.storage.model_reader import ModelReader
from pluralllm.server.storage.round_files import RoundFiles
from pluralllm.server.storage.store import ReceiptRecord
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1 import federation_pb2_grpc as pb_grpc
from pluralllm.v1 import resources_pb2

MAX_NAME = 200
MAX_METRICS = 50
MAX_RECORDS = 100  # version records in one answer
# Updates of all records in one answer but the first: 256 KiB, a quarter of a minute on the slowest link. Meanwhile the client's
# poll waits for its answer on the same connection, and has less than a minute.
MAX_RECORDED_UPDATES = 1_024
Context = Any  # grpc.aio.ServicerContext; its type parameters say nothing here


class Federation(pb_grpc.FederationServiceServicer):
    """Answers the RPCs of the client daemon. federation.proto describes each RPC."""

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        polls: Polls,
        intake: Intake,
        round_steps: RoundSteps,
        round_files: RoundFiles,
        rewards: RewardQueue,
        models: ModelReader,
        runs: Runs,
        sessions: Sessions,
        leases: Leases,
        clock: Clock,
        traffic: Traffic,
        chunk_idle_s: float,
        signatures: Signatures,
        roster: RosterLog,
        addresses: Addresses | None,
        questions: QuestionCounts,
    ) -> None:
        self._coordinator, self._polls, self._intake, self._rewards = coordinator, polls, intake, rewards
        self._round_steps, self._round_files = round_steps, round_files
        self._models, self._shared, self._sessions, self._leases = models, SharedRuns(runs), sessions, leases
        self._clock, self._traffic, self._chunk_idle_s = clock, traffic, chunk_idle_s
        self._signatures, self._roster, self._addresses = signatures, roster, addresses
        self._questions = questions

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
        for field in ("instance_id", "software_version"):
            if not 0 < len(getattr(request, field)) <= MAX_NAME:
                raise InvalidArgument(field=field, problem=f"must have 1 to {MAX_NAME} characters")
        if not is_group_name(request.group):
            raise InvalidArgument(field="group", problem=f"must be {GROUP_HELP}")
        if request.training_questions < 0:
            raise InvalidArgument(field="training_questions", problem="must not be negative")
        if principal.group is not None and (request.group, ROLES_BACK[request.role]) != principal.group_and_role:
            claimed = f"group {request.group} ({ROLES_BACK[request.role]})"
            raise IdentityMismatch(claimed=claimed, certificate=f"group {principal.group} ({principal.group_role})")
        if principal.max_examples is not None and request.training_questions > principal.max_examples:
            what = f"the number of questions of {principal.name} (its limit is from `pluralllm invite --max-examples`)"
            raise OverLimit(what=what, got=request.training_questions, limit=principal.max_examples)
        if request.HasField("peer_key"):
            await self._roster.register(principal, request.group, claim_in(request.peer_key))
        now_s = self._clock.now_s()
        session = Session(
            client=principal.name,
            instance=request.instance_id,
            group=GroupName(request.group),
            role=ROLES_BACK[request.role],
            training_questions=request.training_questions,
            software_version=request.software_version,
            last_seen_s=now_s,
            data_changed_s=seconds(request.data_change_time) if request.HasField("data_change_time") else None,
            noise=noise_in(request),
            is_ready_for_private_rounds=request.HasField("peer_key") and PRIVATE_ROUNDS in request.capabilities,
        )
        await self._coordinator.say_hello(session)
        return pb.HelloResponse(
            protocol=protocol,
            generation=self._polls.generation,
            server_time=timestamp(now_s),
            limits=pb.Limits(
                max_message_bytes=MAX_MESSAGE_BYTES,
                chunk_bytes=CHUNK_BYTES,
                lease=duration(self._leases.duration_s),
                poll_hold=duration(self._polls.hold_s),
            ),
            capabilities=[CHUNK_PIECES, PRIVATE_ROUNDS],
            addresses=None if self._addresses is None else addresses_message(self._addresses),
            release=__version__,
            roster_head=self._roster.head,
        )

    async def Poll(self, request: pb.PollRequest, context: Context) -> pb.PollResponse:
        return await self._polls.answer(request, caller().name)

    async def GetRunSpec(self, request: pb.GetRunSpecRequest, context: Context) -> pb.GetRunSpecResponse:
        record = self._shared.get(request.run).record
        return pb.GetRunSpecResponse(spec_json=record.spec_json, spec_sha256=record.spec_sha256)

    async def CompareQuestions(
        self, request: pb.CompareQuestionsRequest, context: Context
    ) -> pb.CompareQuestionsResponse:
        run = self._shared.get(request.run)
        if len(request.digests) > MAX_DIGESTS:
            raise InvalidArgument(field="digests", problem=f"must have at most {MAX_DIGESTS}")
        digests = np.asarray(request.digests, np.uint64)  # (D,)
        if not (digests[1:] > digests[:-1]).all():
            raise InvalidArgument(field="digests", problem="must be strictly ascending")
        if run.is_over:
            raise WrongPhase(run=run.id, phase=run.state.phase.value, wanted="compared")
        counts = self._questions.compare(run.id, caller().name, digests)
        return pb.CompareQuestionsResponse(members=counts.members, shared=counts.shared, compared=counts.compared)

    async def ListVersionRecords(
        self, request: pb.ListVersionRecordsRequest, context: Context
    ) -> pb.ListVersionRecordsResponse:
        run = self._shared.get(request.run)
        first = max(0, request.first_version)
        last = min(request.last_version, run.state.version, first + MAX_RECORDS - 1)
        response, updates = pb.ListVersionRecordsResponse(), 0
        for number in range(first, last + 1):
            newest = run.newest
            record = newest if number == newest.version else await self._models.record(run.id, ModelVersion(number))
            updates += len(record.updates)
            if response.records and updates > MAX_RECORDED_UPDATES:
                break
            response.records.append(self._signatures.version_record(record))
        return response

    async def GetManifest(self, request: pb.GetManifestRequest, context: Context) -> pb.GetManifestResponse:
        run = self._shared.get(request.run)
        record, manifest = await self._models.manifest(run.id, ModelVersion(request.version))
        return pb.GetManifestResponse(manifest=manifest_message(manifest), model=model_message(record))

    async def GetChunks(self, request: pb.GetChunksRequest, context: Context) -> AsyncIterator[bytes]:  # type: ignore[override]
        run = self._shared.get(request.run)
        sizes = PieceSizes(time.monotonic, request.piece_bytes)
        index = request.first_chunk
        async for message, size_bytes in self._models.chunks(run.id, ModelVersion(request.version), index):
            if request.piece_bytes == 0:
                yield message
            else:
                for piece, more in sizes.cut(memoryview(message)[-size_bytes:]):
                    is_whole = len(piece) == size_bytes  # clients share the message of a whole chunk
                    yield message if is_whole else write_chunk(pb.GetChunksResponse(index=index, more=more), piece)
            index += 1
            self._traffic.count_sent(run.id, size_bytes)

    async def GetRollouts(self, request: pb.GetRolloutsRequest, context: Context) -> pb.GetRolloutsResponse:
        task = self._task_of(request.task)
        if not self._leases.is_held(task):
            raise LeaseLost(task=str(task))
        return pb.GetRolloutsResponse(rollouts_json=await self._rewards.rollouts(self._shared.get(task.run)))

    async def BeginUpdate(self, request: pb.BeginUpdateRequest, context: Context) -> pb.BeginUpdateResponse:
        task = self._task_of(request.task)
        if len(request.metrics) > MAX_METRICS or not all(map(math.isfinite, request.metrics.values())):
            raise InvalidArgument(field="metrics", problem=f"at most {MAX_METRICS} finite numbers")
        limit = (
            2 * self._shared.get(task.run).update_format.size_bytes
        )  # the exact size is checked next, with a typed refusal
        manifest = manifest_from(request.manifest, limit)
        answer = await self._intake.begin(
            task,
            request.spec_sha256,
            request.base_digest,
            manifest,
            request.examples,
            dict(request.metrics),
            max_examples=caller().max_examples,
            noise=noise_in(request),
        )
        if isinstance(answer, ReceiptRecord):
            return pb.BeginUpdateResponse(receipt=receipt_message(answer))
        return pb.BeginUpdateResponse(missing=range_messages(answer))

    async def PutChunks(  # type: ignore[override]
        self, request_iterator: AsyncIterator[ChunkMessage[pb.PutChunksRequest]], context: Context
    ) -> pb.PutChunksResponse:
        task, digest = None, ""
        stream, pieces = aiter(request_iterator), Pieces()
        while True:
            # An earlier release sends whole chunks: its silence may be a chunk on its way over a slow link.
            limit_s = self._chunk_idle_s if pieces.is_in_pieces else self._chunk_idle_s + transfer_s(CHUNK_BYTES)
            try:
                async with asyncio.timeout(limit_s):
                    message = await anext(stream)
            except StopAsyncIteration:
                break
            except TimeoutError:
                raise StreamSilent(address=task.client if task else "a client", silent_s=limit_s) from None
            facts = message.facts
            if task is None:
                task, digest = self._task_of(facts.task), facts.digest
            chunk = pieces.add(facts.index, message.data, more=facts.more)
            if chunk is not None:
                await self._intake.put(task, digest, facts.index, chunk)
        if task is None:
            raise InvalidArgument(field="task", problem="the stream was empty")
        return pb.PutChunksResponse(missing=range_messages(await self._intake.missing(task)))

    async def CommitUpdate(self, request: pb.CommitUpdateRequest, context: Context) -> pb.CommitUpdateResponse:
        task = self._task_of(request.task)
        receipt = await self._intake.commit(task, Digest(request.digest), request.statement)
        return pb.CommitUpdateResponse(receipt=receipt_message(receipt))

    async def GetRoundStep(self, request: pb.GetRoundStepRequest, context: Context) -> pb.GetRoundStepResponse:
        task = self._task_of(request.task)
        step, view = await self._round_steps.view(self._shared.get(task.run), task)
        if request.phase != step:
            raise WrongStep(problem=f"step {request.phase} was asked for, and the round is in step {step}")
        self._leases.renew(task.client, self._clock.now_s())
        return view_message(step, view)

    async def PutRoundStep(self, request: pb.PutRoundStepRequest, context: Context) -> pb.PutRoundStepResponse:
        task = self._task_of(request.task)
        await self._round_steps.put(self._shared.get(task.run), task, request.terms_sha256, step_body(request))
        self._leases.renew(task.client, self._clock.now_s())
        return pb.PutRoundStepResponse()

    async def GetTranscript(
        self, request: pb.GetTranscriptRequest, context: Context
    ) -> AsyncIterator[pb.GetTranscriptResponse]:
        run, number = self._shared.get(request.run), RoundNumber(request.round)
        async for index, data in self._round_files.transcript(run.id, number, request.first_chunk):
            yield pb.GetTranscriptResponse(index=index, data=data)
            self._traffic.count_sent(run.id, len(data))

    async def GetMaskedChunks(
        self, request: pb.GetMaskedChunksRequest, context: Context
    ) -> AsyncIterator[pb.GetMaskedChunksResponse]:
        run, number = self._shared.get(request.run), RoundNumber(request.round)
        async for index, data in self._round_files.masked(run.id, number, request.member, request.first_chunk):
            yield pb.GetMaskedChunksResponse(index=index, data=data)
            self._traffic.count_sent(run.id, len(data))

    async def ReportEvaluation(
        self, request: pb.ReportEvaluationRequest, context: Context
    ) -> pb.ReportEvaluationResponse:
        task = self._task_of(request.task)
        run = self._shared.get(task.run)
        session = self._sessions.of(task.client)
        _check_scores(request)
        if task.kind is not TaskKind.EVALUATE or task.round != run.state.round:
            raise LeaseLost(task=str(task))
        reports = request.not_reported == resources_pb2.NOT_REPORTED_UNSPECIFIED
        score = ev.Score(
            client=task.client,
            group=session.group,
            role=run.spec.groups.role_of(session.group, session.role) or session.role,
            version=run.state.version,
            alignment_score=request.alignment_score if reports else None,
            alignment_score_base2=request.alignment_score_base2 if reports else None,
            wasserstein_score=request.wasserstein_score if request.HasField("wasserstein_score") else None,
            questions=request.questions,
            not_reported=None if reports else NOT_REPORTED_BACK[request.not_reported],
            context_gain=request.context_gain if request.HasField("context_gain") else None,
        )
        await self._coordinator.dispatch(run, ev.EvaluationArrived(self._clock.now_s(), score))
        return pb.ReportEvaluationResponse()

    async def ReportProgress(self, request: pb.ReportProgressRequest, context: Context) -> pb.ReportProgressResponse:
        task = self._task_of(request.task)
        if not self._leases.is_held(task):
            raise LeaseLost(task=str(task))
        progress = min(1.0, max(0.0, request.progress)) if math.isfinite(request.progress) else 0.0
        self._leases.note(task.client, request.stage[:40], progress)
        self._leases.renew(task.client, self._clock.now_s())
        return pb.ReportProgressResponse()

    async def ReportFailure(self, request: pb.ReportFailureRequest, context: Context) -> pb.ReportFailureResponse:
        task = self._task_of(request.task)
        session = self._sessions.get(task.client)
        is_replaced = session is not None and request.instance_id not in ("", session.instance)
        if self._leases.is_held(task) and not is_replaced:
            reason = f"{request.reason[:40]}: {request.message[:400]}"
            permanent = request.kind == pb.FAILURE_KIND_PERMANENT
            self._coordinator.release(task.client)
            if request.reason == CLIENT_STOPPED:  # before its slot is free, or it would get the next one
                self._sessions.close(task.client)
            lost = ev.PlaceLost(self._clock.now_s(), task.client, reason, permanent)
            await self._coordinator.dispatch(self._shared.get(task.run), lost)
        return pb.ReportFailureResponse()

    async def GetRoster(self, request: pb.GetRosterRequest, context: Context) -> pb.GetRosterResponse:
        if request.after < 0:
            raise InvalidArgument(field="after", problem=f"is {request.after}, must be at least 0")
        entries = self._roster.entries(request.after, MAX_ROSTER_ENTRIES)
        return pb.GetRosterResponse(entries=map(roster_entry_message, entries), head=self._roster.head)

    def _task_of(self, name: str) -> TaskName:
        """Parses a task name, and checks that the task is the caller's and that the caller may still read its run.

        Raises InvalidArgument, IdentityMismatch, NotFound or RunNotShared.
        """
        task = parse_task(name, caller().name)
        self._shared.get(task.run)
        return task


def _check_scores(request: pb.ReportEvaluationRequest) -> None:
    """Checks the numbers of an evaluation: all of them are there, or, if the client does not report them, none is.

    Raises InvalidArgument for a score outside 0 .. 1, for scores over no question, for an unknown reason, and for numbers beside
    a reason.
    """
    wasserstein = [request.wasserstein_score] if request.HasField("wasserstein_score") else []
    scores = [request.alignment_score, request.alignment_score_base2, *wasserstein]
    gain = [request.context_gain] if request.HasField("context_gain") else []
    if request.not_reported == resources_pb2.NOT_REPORTED_UNSPECIFIED:
        if request.questions < 1 or not all(0 <= score <= 1 for score in scores):
            raise InvalidArgument(field="alignment_score", problem="scores are in 0..1, over at least 1 question")
        if not all(-1 <= number <= 1 for number in gain):
            raise InvalidArgument(field="context_gain", problem="a difference of two scores is in -1..1")
    elif request.not_reported not in NOT_REPORTED_BACK:
        raise InvalidArgument(field="not_reported", problem=f"is {request.not_reported}, which has no meaning here")
    elif wasserstein or gain or request.questions or any(scores):
        raise InvalidArgument(field="not_reported", problem="is set, so scores and questions must be left out")
