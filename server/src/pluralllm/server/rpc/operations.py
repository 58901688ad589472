"""OperationsService: the RPCs of administrators and observers."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

from pluralllm.common.errors.tree import InvalidArgument, NotFound
from pluralllm.common.process.clock import Clock
from pluralllm.common.wire.messages import manifest_message
from pluralllm.common.words.names import ModelName, RoundName, RunName
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.door import caller
from pluralllm.server.members.own_entries import concerns
from pluralllm.server.rounds import events as ev
from pluralllm.server.rpc.member_operations import MemberOperations
from pluralllm.server.rpc.messages import (
    audit_message,
    evaluation_message,
    event_message,
    model_message,
    rewards_message,
    round_message,
    round_summary,
    run_message,
    summary_message,
    withheld_message,
)
from pluralllm.server.rpc.shared_runs import SharedRuns
from pluralllm.server.rpc.signatures import Signatures
from pluralllm.server.runs.bell import Bell
from pluralllm.server.runs.coordinator import Coordinator
from pluralllm.server.runs.ended_evaluations import EndedEvaluations, split_by_version
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.live_runs import Runs
from pluralllm.server.runs.reward_queue import RewardQueue
from pluralllm.server.runs.round_sums import RoundSums, sum_of
from pluralllm.server.runs.status import Status
from pluralllm.server.storage.model_reader import ModelReader
from pluralllm.server.storage.store import RoundRecord, Store
from pluralllm.v1 import operations_pb2 as pb
from pluralllm.v1 import operations_pb2_grpc as pb_grpc
from pluralllm.v1 import resources_pb2

PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
WATCH_PAGE = 200
WATCH_WAIT_S = 30.0
MAX_REASON = 400
TRIES = 5  # to read the rows of a run between two of its events
Context = Any  # grpc.aio.ServicerContext; its type parameters say nothing here
Row = TypeVar("Row")


class Operations(pb_grpc.OperationsServiceServicer):
    """Answers the RPCs that change and read runs. The object `members` answers the RPCs about members."""

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        runs: Runs,
        status: Status,
        evaluations: EndedEvaluations,
        sums: RoundSums,
        store: Store,
        models: ModelReader,
        rewards: RewardQueue,
        members: MemberOperations,
        audit: AuditLog,
        clock: Clock,
        run_bell: Bell,
        signatures: Signatures,
    ) -> None:
        self._coordinator, self._shared, self._status, self._store = coordinator, SharedRuns(runs), status, store
        self._evaluations, self._sums = evaluations, sums
        self._models, self._rewards, self._members, self._audit = models, rewards, members, audit
        self._clock, self._run_bell, self._signatures = clock, run_bell, signatures

    # Steering

    async def CreateRun(self, request: pb.CreateRunRequest, context: Context) -> pb.CreateRunResponse:
        run = await self._coordinator.create_run(request.run_id, request.spec_json)
        return pb.CreateRunResponse(run=await self._describe(run))

    async def StartRun(self, request: pb.StartRunRequest, context: Context) -> pb.StartRunResponse:
        return pb.StartRunResponse(run=await self._steer(request.name, ev.RunStarted(self._now_s())))

    async def PauseRun(self, request: pb.PauseRunRequest, context: Context) -> pb.PauseRunResponse:
        return pb.PauseRunResponse(run=await self._steer(request.name, ev.RunPaused(self._now_s())))

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Context) -> pb.ResumeRunResponse:
        return pb.ResumeRunResponse(run=await self._steer(request.name, ev.RunResumed(self._now_s())))

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:
        reason = request.reason[:MAX_REASON] or "cancelled by an operator"
        return pb.CancelRunResponse(run=await self._steer(request.name, ev.RunCancelled(self._now_s(), reason)))

    async def ArchiveRun(self, request: pb.ArchiveRunRequest, context: Context) -> pb.ArchiveRunResponse:
        return pb.ArchiveRunResponse(run=await self._steer(request.name, ev.RunArchived(self._now_s())))

    async def UnarchiveRun(self, request: pb.UnarchiveRunRequest, context: Context) -> pb.UnarchiveRunResponse:
        return pb.UnarchiveRunResponse(run=await self._steer(request.name, ev.RunUnarchived(self._now_s())))

    async def _steer(self, name: str, event: ev.Event) -> resources_pb2.Run:
        run = self._shared.exactly(name)
        await self._coordinator.steer(run, event)
        return await self._describe(run)

    # Rewards

    async def AskRewards(self, request: pb.AskRewardsRequest, context: Context) -> pb.AskRewardsResponse:
        run = self._shared.exactly(request.name)
        number = await self._rewards.ask(run, request.rollouts_json)
        return pb.AskRewardsResponse(round=str(RoundName(run.id, number)))

    async def GetRewards(self, request: pb.GetRewardsRequest, context: Context) -> pb.GetRewardsResponse:
        name = RoundName.parse(request.name)
        hold_s = max(0.0, request.hold.seconds + request.hold.nanos / 1e9)
        return rewards_message(await self._rewards.rewards(self._shared.get_or_newest(name.run), name.number, hold_s))

    # Reading

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        head = self._signatures.audit_head()
        run, token = await self._describe(self._shared.named(request.name)), ""
        if request.participants_page_size or request.participants_page_token:
            people = list(run.participants)
            page, token = page_of(people, request.participants_page_size, request.participants_page_token)
            del run.participants[:]
            run.participants.extend(page)
        return pb.GetRunResponse(
            run=run,
            audit_sequence=head.sequence,
            audit_sha256=head.sha256,
            audit_signature=head.signature,
            next_participants_page_token=token,
        )

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        listed = self._shared.newest_first() if request.show_archived else self._shared.not_archived()
        page, token = page_of(listed, request.page_size, request.page_token)
        describe = self._summarise if request.summary else self._describe
        runs = [await describe(run) for run in page]
        return pb.ListRunsResponse(runs=runs, next_page_token=token)

    async def GetRound(self, request: pb.GetRoundRequest, context: Context) -> pb.GetRoundResponse:
        name = RoundName.parse(request.name)
        run = self._shared.get_or_newest(name.run)
        record = await self._store.round(run.id, name.number)
        if record is None:
            raise NotFound(what="round", name=request.name)
        return pb.GetRoundResponse(round=await self._describe_round(run, record))

    async def ListRounds(self, request: pb.ListRoundsRequest, context: Context) -> pb.ListRoundsResponse:
        run = self._shared.named(request.parent)
        size, before = page_size(request.page_size), cursor(request.page_token)
        records = await self._store.rounds(run.id, before or None, size + 1)
        token = str(records[size - 1].round) if len(records) > size else ""
        if request.summary:
            updates = await self._store.receipt_counts(run.id, [record.round for record in records[:size]])
            rounds = [
                round_summary(record, updates.get(record.round, 0), sum_of(record, run.spec))
                for record in records[:size]
            ]
        else:
            rounds = [await self._describe_round(run, record) for record in records[:size]]
        return pb.ListRoundsResponse(rounds=rounds, next_page_token=token)

    async def ListEvaluations(self, request: pb.ListEvaluationsRequest, context: Context) -> pb.ListEvaluationsResponse:
        run = self._shared.named(request.parent)
        size = page_size(request.page_size)
        rows = await self._store.evaluations(run.id, cursor(request.page_token), size + 1)
        token = str(rows[size - 1][0]) if len(rows) > size else ""
        evaluations = [evaluation_message(record) for _, record in rows[:size]]
        return pb.ListEvaluationsResponse(evaluations=evaluations, next_page_token=token)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        name = ModelName.parse(request.name)
        run = self._shared.get_or_newest(name.run)
        version = run.state.version if name.version is None else name.version
        record, manifest = await self._models.manifest(run.id, version)
        return pb.GetModelResponse(
            model=model_message(record), manifest=manifest_message(manifest), spec_json=run.record.spec_json
        )

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncIterator[pb.WatchRunResponse]:
        run = self._shared.named(request.name)
        after = request.after_sequence
        while True:
            heard, over = self._run_bell.rings, run.is_over
            records = await self._store.events(run.id, after, WATCH_PAGE)
            for record in records:
                after = record.sequence
                yield pb.WatchRunResponse(event=event_message(record, caller()))
            if not records and (over or self._run_bell.closed):
                return
            if not records:
                await self._run_bell.wait(heard, WATCH_WAIT_S)

    # Members

    async def ListMembers(self, request: pb.ListMembersRequest, context: Context) -> pb.ListMembersResponse:
        page, token = page_of(await self._members.everyone(), request.page_size, request.page_token)
        return pb.ListMembersResponse(members=page, next_page_token=token)

    async def CreateInvite(self, request: pb.CreateInviteRequest, context: Context) -> pb.CreateInviteResponse:
        return await self._members.invite(caller(), request)

    async def ApproveMember(self, request: pb.ApproveMemberRequest, context: Context) -> pb.ApproveMemberResponse:
        return pb.ApproveMemberResponse(member=await self._members.approve(caller(), request.name))

    async def RevokeMember(self, request: pb.RevokeMemberRequest, context: Context) -> pb.RevokeMemberResponse:
        reason = request.reason[:MAX_REASON]
        return pb.RevokeMemberResponse(member=await self._members.revoke(caller(), request.name, reason))

    async def ResetPeerKey(self, request: pb.ResetPeerKeyRequest, context: Context) -> pb.ResetPeerKeyResponse:
        await self._members.reset_peer_key(caller(), request.name)
        return pb.ResetPeerKeyResponse()

    async def CreatePageLink(self, request: pb.CreatePageLinkRequest, context: Context) -> pb.CreatePageLinkResponse:
        return self._members.page_link(caller())

    async def ListAuditEvents(self, request: pb.ListAuditEventsRequest, context: Context) -> pb.ListAuditEventsResponse:
        size, after = page_size(request.page_size), max(cursor(request.page_token), request.after_sequence)
        entries = await self._audit.entries(after, size + 1)
        token = str(entries[size - 1][0].sequence) if len(entries) > size else ""
        principal, runs = caller(), {str(RunName(run.id)) for run in self._shared.newest_first()}
        reads_all = principal.role is MemberRole.ADMIN
        events = [
            (audit_message if reads_all or concerns(entry, principal.name, runs) else withheld_message)(entry, sha256)
            for entry, sha256 in entries[:size]
        ]
        return pb.ListAuditEventsResponse(events=events, next_page_token=token)

    # Parts

    def _now_s(self) -> float:
        return self._clock.now_s()

    async def _summarise(self, run: LiveRun) -> resources_pb2.Run:
        fairness = await self._evaluations.fairness(run)
        return summary_message(run, self._status.of(run, with_participants=False), fairness)

    async def _describe(self, run: LiveRun) -> resources_pb2.Run:
        for _ in range(TRIES):  # the run may go on during the read; a run that never rests is described all the same
            sequence = run.sequence
            records = await self._evaluations.of(run)
            if run.sequence == sequence:
                break
        latest, previous = split_by_version(records)
        sums = await self._sums.of(run)
        return run_message(run, self._status.of(run), latest, previous, caller(), sums)

    async def _describe_round(self, run: LiveRun, record: RoundRecord) -> resources_pb2.Round:
        return round_message(record, await self._store.receipts(run.id, record.round), sum_of(record, run.spec))


def page_size(asked: int) -> int:
    """Returns the number of rows in a page, which is at most MAX_PAGE_SIZE.

    `asked` is the number in the request; 0 means the default (aip.dev/158). Raises InvalidArgument if the number is negative.
    """
    if asked < 0:
        raise InvalidArgument(field="page_size", problem=f"is {asked}, must not be negative")
    return min(asked or PAGE_SIZE, MAX_PAGE_SIZE)


def cursor(token: str) -> int:
    """Returns the position in a list that a page token stands for; 0 for an empty token.

    Raises InvalidArgument for a token that the server did not issue.
    """
    if token and not (token.isascii() and token.isdecimal() and len(token) < 19):
        raise InvalidArgument(field="page_token", problem="was not given by this coordinator")
    return int(token or 0)


def page_of(rows: Sequence[Row], asked: int, token: str) -> tuple[Sequence[Row], str]:
    """Returns one page of `rows`, and the token of the next page ("" after the last page).

    `asked` is the page size in the request, and `token` is the page token in the request. Raises InvalidArgument if the page
    size is negative or the server did not issue the token.
    """
    start, size = cursor(token), page_size(asked)
    return rows[start : start + size], str(start + size) if len(rows) > start + size else ""
