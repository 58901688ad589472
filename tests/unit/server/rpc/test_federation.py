"""The calls of the client daemon, made directly on the service over a store in memory, near their limits."""

import asyncio
import itertools
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from support.memory_coordinator import MemoryCoordinator, Update, as_caller, settle
from support.memory_store import MemoryMembership, Tables
from support.private_members import member_key
from support.private_round import NAMES, collecting, keying, send

from pluralllm.common import __version__
from pluralllm.common.errors.grpc_status import CLIENT_STOPPED
from pluralllm.common.errors.membership import IdentityMismatch, RunNotShared
from pluralllm.common.errors.private_rounds import PeerKeyDiffers, WrongStep
from pluralllm.common.errors.tree import (
    ChunksMissing,
    InvalidArgument,
    LeaseLost,
    NotFound,
    OverLimit,
    ProtocolUnsupported,
    SessionReplaced,
    StaleSession,
    StreamSilent,
    WrongLayout,
    WrongPhase,
)
from pluralllm.common.private_rounds.messages import Confirmation
from pluralllm.common.private_rounds.peer_keys import endorsed, public_der
from pluralllm.common.private_rounds.roster import Roster
from pluralllm.common.trust.certificates import PrivateKey, new_key
from pluralllm.common.weights.chunks import CHUNK_BYTES
from pluralllm.common.wire.chunk_messages import ChunkMessage
from pluralllm.common.wire.messages import (
    MAX_MESSAGE_BYTES,
    PRIVATE_ROUNDS,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    manifest_message,
    noise_message,
    roster_entry_in,
    timestamp,
)
from pluralllm.common.wire.round_steps import step_request, view_of
from pluralllm.common.words.addresses import Addresses
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.not_reported import NotReported
from pluralllm.common.words.question_digests import MAX_DIGESTS
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.composition import federation_of
from pluralllm.server.members.access import Principal
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.roster_log import RosterLog
from pluralllm.server.rounds import events as ev
from pluralllm.server.rpc import federation as federation_module
from pluralllm.server.rpc.federation import MAX_METRICS, MAX_NAME, MAX_RECORDED_UPDATES, MAX_RECORDS, Federation
from pluralllm.server.rpc.messages import member_message
from pluralllm.server.rpc.polling import MAX_FOLLOWED
from pluralllm.server.rpc.signatures import Signatures
from pluralllm.server.runs.bell import Bell
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.what_now import spread_of
from pluralllm.server.storage.membership import MemberState
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1 import resources_pb2 as rpb

ANN, BEN = ClientId("ann"), ClientId("ben")
HOLD_S, CHUNK_IDLE_S = 20.0, 0.05


class Service:
    """The service of one coordinator, with its objects."""

    def __init__(self, folder: Path, max_held_polls: int = 100) -> None:
        self.place = MemoryCoordinator(folder)
        signatures = Signatures(lambda: (7, "head"), None)
        membership = MemoryMembership(Tables())
        self.audit = AuditLog(membership, lambda: 0.0)
        self.roster = RosterLog(membership, self.audit)
        self.federation: Federation = federation_of(
            self.place.parts, HOLD_S, CHUNK_IDLE_S, signatures, self.roster, max_held_polls=max_held_polls
        )

    async def call(self, method: str, request: Any, name: str = "ann", **principal: Any) -> Any:
        """Makes a unary call as a client."""
        with as_caller(Principal(ClientId(name), **{"role": MemberRole.CLIENT, **principal})):
            return await getattr(self.federation, method)(request, None)

    async def hello(
        self, name: str = "ann", principal: dict[str, Any] | None = None, **changes: Any
    ) -> pb.HelloResponse:
        values = {
            "protocol": pb.ProtocolRange(min=PROTOCOL_MIN, max=PROTOCOL_MAX),
            "software_version": "test",
            "instance_id": "first",
            "group": f"group of {name}",
            "role": rpb.GROUP_ROLE_TRAIN,
            "training_questions": 50,
        }
        request = pb.HelloRequest(**{**values, **changes})
        response: pb.HelloResponse = await self.call("Hello", request, name, **(principal or {}))
        return response

    async def poll(self, name: str = "ann", hold_s: float = 0.0, **changes: Any) -> pb.PollResponse:
        seconds = int(hold_s)
        values = {
            "protocol": PROTOCOL_MAX,
            "generation": self.place.parts.generation,
            "instance_id": "first",
            "hold": Duration(seconds=seconds, nanos=int((hold_s - seconds) * 1e9)),
        }
        response: pb.PollResponse = await self.call("Poll", pb.PollRequest(**{**values, **changes}), name)
        return response


async def in_time(polling: "asyncio.Task[pb.PollResponse]") -> pb.PollResponse:
    """Returns the answer to a poll, which must come within ten seconds."""
    return await asyncio.wait_for(polling, 10)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    made = Service(tmp_path)
    yield made
    await made.place.stop()


# Hello


async def test_hello_opens_a_session_and_answers_with_the_coordinators_limits(service: Service) -> None:
    answer = await service.hello()
    assert (answer.protocol, answer.generation) == (PROTOCOL_MAX, service.place.parts.generation)
    assert (answer.limits.max_message_bytes, answer.limits.chunk_bytes) == (MAX_MESSAGE_BYTES, CHUNK_BYTES)
    assert (answer.limits.lease.seconds, answer.limits.poll_hold.seconds) == (20, 20)
    assert answer.server_time.seconds == service.place.clock.now_s()
    session = service.place.parts.sessions.of(ANN)
    assert (session.instance, session.group, session.role) == ("first", "group of ann", GroupRole.TRAIN)
    assert (session.training_questions, session.last_seen_s) == (50, service.place.clock.now_s())
    assert answer.release == __version__


@pytest.mark.parametrize(
    "noise",
    [NoiseStatement(noised=True, epsilon=4.0, delta=1e-6, unit="respondent"), NoiseStatement(noised=False), None],
)
async def test_what_a_member_declares_about_noise_is_kept_and_shown(
    service: Service, noise: NoiseStatement | None
) -> None:
    await service.hello(noise=noise_message(NoiseStatement(noised=True, epsilon=1.0, delta=0.5, unit="respondent")))
    await service.hello(noise=noise_message(noise))
    assert service.place.parts.sessions.of(ANN).noise == noise
    (row,) = await service.place.parts.store.clients()
    assert row.noise == noise
    shown = member_message(ANN, None, MemberState.UNPROVEN, None, row)
    assert shown.HasField("noise") is (noise is not None)
    assert shown.noise == (noise_message(noise) or rpb.NoiseStatement())


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"protocol": pb.ProtocolRange(min=PROTOCOL_MAX + 1, max=PROTOCOL_MAX + 1)}, ProtocolUnsupported),
        ({"protocol": pb.ProtocolRange(min=PROTOCOL_MIN - 1, max=PROTOCOL_MIN - 1)}, ProtocolUnsupported),
        ({"role": rpb.GROUP_ROLE_UNSPECIFIED}, InvalidArgument),
        ({"instance_id": ""}, InvalidArgument),
        ({"instance_id": "x" * (MAX_NAME + 1)}, InvalidArgument),
        ({"software_version": ""}, InvalidArgument),
        ({"software_version": "x" * (MAX_NAME + 1)}, InvalidArgument),
        ({"group": ""}, InvalidArgument),
        ({"noise": rpb.NoiseStatement(noised=True, epsilon=math.nan, delta=1e-6, unit="respondent")}, InvalidArgument),
        ({"training_questions": -1}, InvalidArgument),
    ],
)
async def test_a_hello_outside_the_limits_is_refused(
    service: Service, changes: dict[str, Any], refusal: type[Exception]
) -> None:
    with pytest.raises(refusal):
        await service.hello(**changes)
    assert service.place.parts.sessions.get(ANN) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": pb.ProtocolRange(min=PROTOCOL_MIN - 1, max=PROTOCOL_MAX + 5)},
        {"instance_id": "x"},
        {"software_version": "x"},
        {"instance_id": "x" * MAX_NAME},
        {"software_version": "x" * MAX_NAME},
        {"training_questions": 0},
        {"role": rpb.GROUP_ROLE_HELD_OUT},
    ],
)
async def test_a_hello_at_the_limits_is_accepted(service: Service, changes: dict[str, Any]) -> None:
    assert (await service.hello(**changes)).protocol == PROTOCOL_MAX


async def test_group_and_role_are_those_of_the_certificate(service: Service) -> None:
    proven = {"group": "G", "group_role": GroupRole.TRAIN}
    await service.hello(principal=proven, group="G")
    for changes in ({"group": "H"}, {"group": "G", "role": rpb.GROUP_ROLE_HELD_OUT}):
        with pytest.raises(IdentityMismatch):
            await service.hello(principal=proven, **changes)
    await service.hello(principal={"group": None}, group="any")  # plain text


async def test_a_client_states_at_most_the_questions_that_its_membership_allows(service: Service) -> None:
    await service.hello(principal={"max_examples": 50}, training_questions=50)
    with pytest.raises(OverLimit) as refused:
        await service.hello(principal={"max_examples": 50}, training_questions=51)
    assert (refused.value.got, refused.value.limit) == (51, 50)
    await service.hello(principal={"max_examples": None}, training_questions=10**9)


async def test_hello_tells_the_present_addresses_and_learns_when_the_private_file_has_changed(service: Service) -> None:
    assert not (await service.hello()).HasField("addresses")
    assert service.place.parts.sessions.of(ANN).data_changed_s is None
    service.federation._addresses = Addresses("host:1", "host:2")
    answer = await service.hello(data_change_time=timestamp(12.5))
    assert (answer.addresses.coordinator, answer.addresses.enrolment) == ("host:1", "host:2")
    assert service.place.parts.sessions.of(ANN).data_changed_s == 12.5


# Poll


async def test_a_poll_gets_the_clients_task_once_and_again_when_its_time_is_over(service: Service) -> None:
    place = service.place
    run = await place.collecting("ann", "ben")
    answer = await service.poll(hold_s=5)
    task = answer.task
    assert (task.name, task.run, task.kind) == (str(run.task_name(ANN)), "r", pb.TASK_KIND_TRAIN)
    assert (task.round, task.base_version, task.base_digest) == (1, 0, run.base.digest)
    assert (task.spec_sha256, task.cohort_size, task.lease.seconds) == (run.record.spec_sha256, 2, 20)
    assert (answer.audit_head.sequence, answer.audit_head.sha256) == (7, "head")
    lease = place.parts.leases.of(ANN)
    assert lease is not None
    assert lease.fetched
    again = await service.poll(held_task=task.name, hold_s=0)
    assert again.task.name == task.name


async def test_a_poll_is_held_until_a_task_comes(service: Service) -> None:
    place = service.place
    run = await place.new_run()
    await place.hello("ann")
    session = place.parts.sessions.of(ANN)
    polling = asyncio.create_task(service.poll(hold_s=30))
    await settle()
    assert session.polls_open == 1
    assert not polling.done()
    place.clock.advance(100)
    assert session.is_live(place.clock.now_s())
    await place.hello("ben")
    await place.look(run)
    answer = await in_time(polling)
    assert answer.task.kind == pb.TASK_KIND_EVALUATE
    assert (session.polls_open, session.last_seen_s) == (0, place.clock.now_s())


async def test_a_poll_is_answered_as_soon_as_the_step_of_its_task_in_a_private_round_has_ended(
    service: Service,
) -> None:
    place = service.place
    run = await keying(place)
    ann, ben = (str(run.task_name(client)) for client in (ANN, BEN))
    assert (await service.poll()).task.phase == 1
    polling = asyncio.create_task(service.poll(hold_s=30, held_task=ann, held_phase=1))
    await settle()
    await send(place, run, ev.RoundStep.KEYS, *NAMES[:3])
    await settle()
    assert not polling.done()
    await send(place, run, ev.RoundStep.KEYS, NAMES[3])
    answer = await in_time(polling)
    assert (answer.task.name, answer.task.phase) == (ann, 2)
    late = await service.poll("ben", 30, held_task=ben, held_phase=1)
    assert late.task.phase == 2, "it need not have been there"


async def test_a_poll_renews_the_lease_and_is_a_sign_of_life(service: Service) -> None:
    place = service.place
    run = await place.collecting("ann", "ben")
    place.clock.advance(15)
    await service.poll(held_task=str(run.task_name(ANN)))
    lease = place.parts.leases.of(ANN)
    assert lease is not None
    assert lease.expires_s == place.clock.now_s() + 20
    assert place.parts.sessions.of(ANN).last_seen_s == place.clock.now_s()


async def test_a_silent_client_that_polls_again_wakes_the_loop(service: Service) -> None:
    place = service.place
    await place.hello("ann")
    wakes = place.coordinator._wake.rings
    await service.poll()
    assert place.coordinator._wake.rings == wakes
    place.clock.advance(5.001)
    await service.poll()
    assert place.coordinator._wake.rings == wakes + 1


async def test_a_poll_of_another_process_or_daemon_or_protocol_is_answered_so(service: Service) -> None:
    with pytest.raises(StaleSession):
        await service.poll()
    await service.place.hello("ann")
    with pytest.raises(StaleSession):
        await service.poll(generation="of an earlier process")
    with pytest.raises(SessionReplaced):
        await service.poll(instance_id="second")
    for protocol in (PROTOCOL_MIN - 1, PROTOCOL_MAX + 1):
        upgrade = (await service.poll(protocol=protocol)).upgrade
        assert (upgrade.protocol.min, upgrade.protocol.max) == (PROTOCOL_MIN, PROTOCOL_MAX)


async def test_a_held_poll_learns_that_a_newer_daemon_has_replaced_it_or_that_its_session_is_closed(
    service: Service,
) -> None:
    place = service.place
    await place.hello("ann")
    polling = asyncio.create_task(service.poll(hold_s=30))
    await settle()
    await place.hello("ann")
    with pytest.raises(SessionReplaced):
        await in_time(polling)
    polling = asyncio.create_task(service.poll(hold_s=30))
    await settle()
    await place.coordinator.remove_client(ANN)
    with pytest.raises(StaleSession):
        await in_time(polling)


async def test_a_poll_names_at_most_a_thousand_runs(service: Service) -> None:
    await service.place.hello("ann")
    assert MAX_FOLLOWED == 1000
    assert (await service.poll(following=["x"] * MAX_FOLLOWED)).WhichOneof("answer") == "wait"
    with pytest.raises(InvalidArgument, match="1001 runs"):
        await service.poll(following=["x"] * (MAX_FOLLOWED + 1))


async def test_a_client_learns_of_the_end_of_runs_that_it_follows_and_takes_part_in(service: Service) -> None:
    place = service.place
    run = await place.new_run(groups={"train": ["group of ann", "group of ben"]})
    await place.hello("ann")
    await place.hello("cat")
    polling = asyncio.create_task(service.poll(hold_s=30, following=["r"]))
    await settle()
    await place.coordinator.dispatch(run, ev.RunCancelled(place.clock.now_s(), "enough"))
    over = (await in_time(polling)).run_over
    assert (over.run, over.outcome, over.reason) == ("r", rpb.RUN_OUTCOME_CANCELLED, "enough")
    assert (over.version, over.version_digest) == (0, run.newest.digest)
    assert (await service.poll()).WhichOneof("answer") == "wait"
    assert (await service.poll("cat", following=["r"])).WhichOneof("answer") == "wait"


async def test_a_poll_that_must_wait_says_why_and_how_long(service: Service) -> None:
    place = service.place
    await place.hello("ann")
    wait = (await service.poll()).wait
    assert wait.reason == "no run is open"
    assert 0.05e9 <= wait.after.nanos < 0.55e9
    dropped = (await service.poll(held_task="runs/r/rounds/1/tasks/train-ann", hold_s=30)).wait
    assert dropped.reason.endswith("is no longer wanted")


async def test_a_hold_is_at_most_the_coordinators_and_a_negative_one_is_none(tmp_path: Path) -> None:
    service = Service(tmp_path)
    await service.place.hello("ann")
    service.federation._polls.hold_s = 0.02
    async with asyncio.timeout(10):
        assert (await service.poll(hold_s=3600)).WhichOneof("answer") == "wait"
        assert (await service.poll(hold_s=-5)).WhichOneof("answer") == "wait"


@pytest.mark.parametrize(("hold_s", "first_wait_s"), [(20.0, 20 / 3), (60.0, 20 / 3), (2.5, 2.5), (0.9, 0.9)])
async def test_a_held_poll_looks_again_when_a_third_of_a_lease_or_its_time_is_over(
    service: Service, monkeypatch: pytest.MonkeyPatch, hold_s: float, first_wait_s: float
) -> None:
    await service.place.hello("ann")
    bell, waits = service.place.parts.client_bells.of(ANN), []

    async def wait(_: Bell, heard: int, timeout_s: float) -> None:
        assert heard == bell.rings
        waits.append(timeout_s)
        bell.closed = True

    monkeypatch.setattr(Bell, "wait", wait)
    assert (await service.poll(hold_s=hold_s)).wait.reason == "the coordinator is stopping"
    assert waits == [pytest.approx(first_wait_s, abs=0.5 * min(1.0, first_wait_s))]


@pytest.mark.parametrize(
    ("asked_s", "held_s"), [(3.25, 3.25), (0.0, 0.0), (-5.0, 0.0), (19.999, 19.999), (20.0, 20.0), (3600.0, 20.0)]
)
async def test_a_poll_is_held_as_long_as_it_asks_for_but_not_longer_than_the_coordinators_limit(
    service: Service, monkeypatch: pytest.MonkeyPatch, asked_s: float, held_s: float
) -> None:
    holds: list[float] = []

    async def hold(_: object, __: object, limit_s: float) -> pb.PollResponse:
        holds.append(limit_s)
        return pb.PollResponse()

    monkeypatch.setattr(service.federation._polls, "_hold", hold)
    await service.place.hello("ann")
    await service.poll(hold_s=asked_s)
    assert holds == [pytest.approx(held_s, abs=2e-9)]


async def test_a_client_that_hangs_up_was_there_until_then(service: Service) -> None:
    session = await service.place.hello("ann")
    polling = asyncio.create_task(service.poll(hold_s=15))
    await settle()
    service.place.clock.advance(3)
    polling.cancel()
    await asyncio.wait([polling])
    assert (session.polls_open, session.last_seen_s) == (0, service.place.clock.now_s())


async def test_a_poll_is_answered_when_the_coordinator_stops(service: Service) -> None:
    await service.place.hello("ann")
    polling = asyncio.create_task(service.poll(hold_s=30))
    await settle()
    service.place.coordinator.drain()
    assert (await in_time(polling)).wait.reason == "the coordinator is stopping"


# Runs and models


async def test_a_client_reads_only_runs_of_its_group(service: Service) -> None:
    run = await service.place.new_run(groups={"train": ["A", "B"]})
    proven = {"group": "A"}
    spec = await service.call("GetRunSpec", pb.GetRunSpecRequest(run="r"), **proven)
    assert (spec.spec_json, spec.spec_sha256) == (run.record.spec_json, run.record.spec_sha256)
    manifest = await service.call("GetManifest", pb.GetManifestRequest(run="r", version=0), **proven)
    assert manifest.manifest.digest == run.base.digest
    with pytest.raises(RunNotShared):
        await service.call("GetRunSpec", pb.GetRunSpecRequest(run="r"), group="C")
    with pytest.raises(NotFound):
        await service.call("GetRunSpec", pb.GetRunSpecRequest(run="s"), **proven)


async def test_chunks_of_a_model_are_sent_from_the_first_that_is_asked_for_and_counted(service: Service) -> None:
    run = await service.place.new_run()
    with as_caller(Principal(ANN, MemberRole.CLIENT)):
        request = pb.GetChunksRequest(run="r", version=0)
        messages = [message async for message in service.federation.GetChunks(request, None)]
    assert len(messages) == 1
    chunk = pb.GetChunksResponse.FromString(messages[0])
    assert chunk.index == 0
    assert service.place.parts.traffic.sent_bytes(run.id) == len(chunk.data)


async def a_history(service: Service, versions: int, updates: int = 1) -> LiveRun:
    """Returns a run with this many versions after the first, each made from this many updates."""
    run = await service.place.new_run()
    rows = service.place.tables.runs[run.id].versions
    for number in range(1, versions + 1):
        made_from = tuple((ClientId(f"c{index}"), Digest("u"), 1) for index in range(updates))
        rows.put(number, replace(run.first, version=ModelVersion(number), round=RoundNumber(number), updates=made_from))
    state = replace(run.state, version=ModelVersion(versions))
    newest = rows.get(versions) or run.first
    object.__setattr__(run, "progress", replace(run.progress, state=state, newest=newest))
    return run


async def records(service: Service, first: int, last: int) -> list[int]:
    request = pb.ListVersionRecordsRequest(run="r", first_version=first, last_version=last)
    return [record.version for record in (await service.call("ListVersionRecords", request)).records]


async def test_version_records_come_in_order_and_at_most_a_hundred_at_a_time(service: Service) -> None:
    await a_history(service, 150)
    assert await records(service, 0, 99) == list(range(100))
    assert await records(service, 0, 100) == list(range(100))
    assert await records(service, 60, 10_000) == list(range(60, 151))
    assert await records(service, 150, 150) == [150]
    assert await records(service, -5, 1) == [0, 1]
    assert await records(service, 151, 160) == []
    assert await records(service, 5, 4) == []


async def test_an_answer_holds_few_updates_but_always_one_record(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_history(service, 5, updates=10)
    assert MAX_RECORDED_UPDATES == 1_024
    monkeypatch.setattr(federation_module, "MAX_RECORDED_UPDATES", 30)
    assert await records(service, 0, 5) == [0, 1, 2, 3]
    assert (MAX_NAME, MAX_RECORDS) == (200, 100)
    assert await records(service, 1, 5) == [1, 2, 3]
    monkeypatch.setattr(federation_module, "MAX_RECORDED_UPDATES", 5)
    assert await records(service, 2, 5) == [2]


# Updates


def begin_request(run: LiveRun, update: Update, **changes: Any) -> pb.BeginUpdateRequest:
    values = {
        "task": str(run.task_name(ANN)),
        "spec_sha256": run.record.spec_sha256,
        "base_digest": run.base.digest,
        "manifest": manifest_message(update.manifest),
        "examples": 50,
    }
    return pb.BeginUpdateRequest(**{**values, **changes})


async def put(service: Service, *messages: ChunkMessage[pb.PutChunksRequest], wait: bool = False) -> Any:
    async def stream() -> AsyncIterator[ChunkMessage[pb.PutChunksRequest]]:
        for message in messages:
            yield message
        if wait:
            await asyncio.Event().wait()

    with as_caller(Principal(ANN, MemberRole.CLIENT)):
        return await asyncio.wait_for(service.federation.PutChunks(stream(), None), 10)


def chunk_of(run: LiveRun, update: Update, index: int) -> ChunkMessage[pb.PutChunksRequest]:
    facts = pb.PutChunksRequest(task=str(run.task_name(ANN)), digest=update.manifest.digest, index=index)
    return ChunkMessage(facts, update.chunk(index))


async def test_an_update_is_announced_sent_and_committed(service: Service) -> None:
    run = await service.place.collecting("ann", "ben")
    update = service.place.update(run)
    begun = await service.call("BeginUpdate", begin_request(run, update))
    assert [(piece.first, piece.last) for piece in begun.missing] == [(0, update.manifest.chunks - 1)]
    answer = await put(service, *(chunk_of(run, update, index) for index in range(update.manifest.chunks)))
    assert list(answer.missing) == []
    request = pb.CommitUpdateRequest(task=str(run.task_name(ANN)), digest=update.manifest.digest)
    receipt = (await service.call("CommitUpdate", request)).receipt
    assert (receipt.client, receipt.update_digest) == ("ann", update.manifest.digest)
    assert (await service.call("BeginUpdate", begin_request(run, update))).receipt == receipt


@pytest.mark.parametrize(
    ("metrics", "is_allowed"),
    [
        ({f"m{number}": 1.0 for number in range(MAX_METRICS)}, True),
        ({f"m{number}": 1.0 for number in range(MAX_METRICS + 1)}, False),
        ({"loss": math.inf}, False),
        ({"loss": math.nan}, False),
        ({"loss": 1.0, "other": -math.inf}, False),
    ],
)
async def test_metrics_are_few_and_finite(service: Service, metrics: dict[str, float], is_allowed: bool) -> None:
    assert MAX_METRICS == 50
    run = await service.place.collecting("ann", "ben")
    request = begin_request(run, service.place.update(run), metrics=metrics)
    if is_allowed:
        assert (await service.call("BeginUpdate", request)).missing
    else:
        with pytest.raises(InvalidArgument, match="at most 50 finite numbers"):
            await service.call("BeginUpdate", request)


async def test_the_statement_that_comes_with_an_update_is_checked_and_kept(service: Service) -> None:
    run = await service.place.collecting("ann", "ben")
    update = service.place.update(run)
    with pytest.raises(InvalidArgument, match="without noise have no epsilon"):
        await service.call("BeginUpdate", begin_request(run, update, noise=rpb.NoiseStatement(epsilon=1.0)))
    await service.call("BeginUpdate", begin_request(run, update, noise=rpb.NoiseStatement()))
    await service.place.send(run, "ann", update)
    await service.call(
        "CommitUpdate", pb.CommitUpdateRequest(task=str(run.task_name(ANN)), digest=update.manifest.digest)
    )
    assert dict(run.noise) == {"ann": NoiseStatement(noised=False)}


async def test_a_size_above_twice_the_models_is_refused_before_the_rest_is_looked_at(service: Service) -> None:
    run = await service.place.collecting("ann", "ben")
    update, size = service.place.update(run), run.update_format.size_bytes
    for size_bytes, refusal in ((2 * size, WrongLayout), (2 * size + 1, OverLimit)):
        manifest = manifest_message(update.manifest)
        manifest.size_bytes = size_bytes
        with pytest.raises(refusal):
            await service.call("BeginUpdate", begin_request(run, update, manifest=manifest))


async def test_an_empty_stream_is_refused(service: Service) -> None:
    run = await service.place.collecting("ann", "ben")
    await service.call("BeginUpdate", begin_request(run, service.place.update(run)))
    with pytest.raises(InvalidArgument, match="the stream was empty"):
        await put(service)


async def test_a_stream_that_falls_silent_is_ended_sooner_if_it_comes_in_pieces(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federation_module, "transfer_s", lambda size_bytes: size_bytes / CHUNK_BYTES / 50)
    run = await service.place.collecting("ann", "ben")
    update = service.place.update(run)
    await service.call("BeginUpdate", begin_request(run, update))
    with pytest.raises(StreamSilent, match=r"between here and ann was silent: no byte for 0\.07 s"):
        await put(service, chunk_of(run, update, 0), wait=True)
    piece = chunk_of(run, update, 0)
    piece.facts.more = True
    with pytest.raises(StreamSilent, match=r"no byte for 0\.05 s"):
        await put(service, ChunkMessage(piece.facts, piece.data[:10]), wait=True)


async def test_a_chunk_may_come_in_pieces(service: Service) -> None:
    run = await service.place.collecting("ann", "ben")
    update = service.place.update(run)
    await service.call("BeginUpdate", begin_request(run, update))
    whole = chunk_of(run, update, 0)
    first, last = pb.PutChunksRequest(), pb.PutChunksRequest()
    for facts, more in ((first, True), (last, False)):
        facts.CopyFrom(whole.facts)
        facts.more = more
    answer = await put(service, ChunkMessage(first, whole.data[:10]), ChunkMessage(last, whole.data[10:]))
    assert list(answer.missing) == []


LARGE = {"d_model": 128, "layers": 4, "heads": 2, "feedforward": 256, "embedder_layers": 2}  # more than two chunks


@pytest.mark.parametrize("first", [0, 1])
async def test_a_model_is_sent_in_pieces_of_the_size_that_is_asked_for(
    service: Service, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    half_seconds = itertools.count()  # each piece takes half a second, so its size stays
    monkeypatch.setattr("pluralllm.server.rpc.federation.time.monotonic", lambda: next(half_seconds) / 2)
    run = await service.place.new_run(predictor=LARGE)
    path = await service.place.parts.blobs.path(run.first.digest)
    content = path.read_bytes()[first * CHUNK_BYTES :]
    for piece_bytes in (0, 16 * 1024, 4 * CHUNK_BYTES):
        request = pb.GetChunksRequest(run="r", version=0, first_chunk=first, piece_bytes=piece_bytes)
        with as_caller(Principal(ANN, MemberRole.CLIENT)):
            messages = [message async for message in service.federation.GetChunks(request, None)]
        pieces = [pb.GetChunksResponse.FromString(message) for message in messages]
        assert b"".join(piece.data for piece in pieces) == content
        last = (first * CHUNK_BYTES + len(content) - 1) // CHUNK_BYTES
        assert sorted({piece.index for piece in pieces}) == list(range(first, last + 1))
        ends = [piece.index for piece in pieces if not piece.more]
        assert ends == list(range(first, last + 1)), "each chunk has one last piece"
        if piece_bytes == 16 * 1024:
            assert all(len(piece.data) == 16 * 1024 for piece in pieces if piece.more)
            assert len(pieces) > len(ends)
        else:
            assert len(pieces) == len(ends)
    assert service.place.parts.traffic.sent_bytes(run.id) == 3 * len(content)


async def test_a_stream_belongs_to_the_update_that_its_first_message_names(service: Service) -> None:
    run = await service.place.collecting("ann", "ben")
    update = service.place.update(run)
    await service.call("BeginUpdate", begin_request(run, update))
    second = ChunkMessage(pb.PutChunksRequest(index=0), update.chunk(0))
    assert list((await put(service, chunk_of(run, update, 0), second)).missing) == []


async def test_a_task_of_another_client_or_of_a_run_that_is_not_shared_is_refused(service: Service) -> None:
    run = await service.place.collecting("ann", "ben")
    update = service.place.update(run)
    with pytest.raises(IdentityMismatch):
        await service.call("BeginUpdate", begin_request(run, update), "ben")
    with pytest.raises(ChunksMissing):
        await service.call("CommitUpdate", pb.CommitUpdateRequest(task=str(run.task_name(ANN)), digest="d"))
    named = await service.place.new_run("named", groups={"train": ["A", "B"]})
    progress = pb.ReportProgressRequest(task=str(named.task_name(ANN)))
    with pytest.raises(RunNotShared):
        await service.call("ReportProgress", progress, group="C")


# Reports


async def evaluating(service: Service) -> LiveRun:
    run = await service.place.new_run()
    await service.place.hello("ann")
    await service.place.hello("ben")
    await service.place.look(run)
    return run


def scores(run: LiveRun, **changes: Any) -> pb.ReportEvaluationRequest:
    values = {"task": str(run.task_name(ANN)), "alignment_score": 0.5, "alignment_score_base2": 0.25, "questions": 9}
    return pb.ReportEvaluationRequest(**{**values, **changes})


async def test_scores_are_recorded_with_the_clients_group(service: Service) -> None:
    run = await evaluating(service)
    await service.call("ReportEvaluation", scores(run, wasserstein_score=1.0))
    ((_, record),) = await service.place.parts.store.evaluations(run.id, 0, 10)
    assert record.score == ev.Score(
        ANN, service.place.parts.sessions.of(ANN).group, GroupRole.TRAIN, ModelVersion(0), 0.5, 0.25, 1.0, 9, None
    )


KEPT = {"alignment_score": 0, "alignment_score_base2": 0, "questions": 0, "not_reported": rpb.NOT_REPORTED_BUDGET_SPENT}


@pytest.mark.parametrize(
    ("changes", "is_allowed"),
    [
        ({"questions": 1}, True),
        ({"questions": 0}, False),
        ({"alignment_score": 0.0}, True),
        ({"alignment_score": 1.0}, True),
        ({"alignment_score": -1e-9}, False),
        ({"alignment_score": 1 + 1e-9}, False),
        ({"alignment_score": math.nan}, False),
        ({"alignment_score_base2": 1.1}, False),
        ({"wasserstein_score": 0.0}, True),
        ({"wasserstein_score": 1.1}, False),
        ({"context_gain": -1.0}, True),
        ({"context_gain": 1.0}, True),
        ({"context_gain": -1.01}, False),
        ({"context_gain": 1.01}, False),
        (KEPT, True),
        ({**KEPT, "context_gain": 0.0}, False),
        ({**KEPT, "not_reported": 99}, False),
        ({**KEPT, "questions": 1}, False),
        ({**KEPT, "alignment_score": 0.5}, False),
        ({**KEPT, "alignment_score_base2": 0.5}, False),
        ({**KEPT, "wasserstein_score": 0.0}, False),
    ],
)
async def test_scores_lie_between_0_and_1_or_are_all_left_out(
    service: Service, changes: dict[str, Any], is_allowed: bool
) -> None:
    run = await evaluating(service)
    if not is_allowed:
        with pytest.raises(InvalidArgument):
            await service.call("ReportEvaluation", scores(run, **changes))
        assert run.state.reported == ()
        return
    await service.call("ReportEvaluation", scores(run, **changes))
    assert run.state.reported == (ANN,)
    ((_, record),) = await service.place.parts.store.evaluations(run.id, 0, 10)
    assert (record.score.alignment_score is None) == ("not_reported" in changes)
    assert (record.score.alignment_score_base2 is None) == ("not_reported" in changes)
    assert record.score.not_reported == (NotReported.BUDGET_SPENT if "not_reported" in changes else None)
    assert record.score.context_gain == changes.get("context_gain")
    assert (record.score.wasserstein_score is None) == ("wasserstein_score" not in changes)


async def test_scores_are_of_the_role_that_the_spec_gives_the_group(service: Service) -> None:
    place = service.place
    run = await place.new_run(groups={"train": ["A", "B"], "held_out": ["group of ann"]})
    for client, group in (("ben", "A"), ("cat", "B"), ("ann", "")):
        await place.hello(client, group=group)
    await place.look(run)
    await service.call("ReportEvaluation", scores(run))
    ((_, record),) = await place.parts.store.evaluations(run.id, 0, 10)
    assert record.score.role is GroupRole.HELD_OUT


async def test_scores_for_another_round_or_kind_of_task_are_refused(service: Service) -> None:
    run = await evaluating(service)
    for name in ("runs/r/rounds/1/tasks/evaluate-ann", "runs/r/rounds/0/tasks/train-ann"):
        with pytest.raises(LeaseLost):
            await service.call("ReportEvaluation", scores(run, task=name))
    service.place.parts.sessions.close(ANN)
    with pytest.raises(StaleSession):
        await service.call("ReportEvaluation", scores(run))


@pytest.mark.parametrize(
    ("sent", "shown"), [(0.5, 0.5), (1.0, 1.0), (1.5, 1.0), (-0.5, 0.0), (math.inf, 0.0), (math.nan, 0.0)]
)
async def test_progress_is_kept_within_its_bounds_and_renews_the_lease(
    service: Service, sent: float, shown: float
) -> None:
    run = await service.place.collecting("ann", "ben")
    service.place.clock.advance(5)
    task = str(run.task_name(ANN))
    await service.call("ReportProgress", pb.ReportProgressRequest(task=task, stage="x" * 41, progress=sent))
    lease = service.place.parts.leases.of(ANN)
    assert lease is not None
    assert (lease.progress, lease.stage, lease.fetched) == (shown, "x" * 40, True)
    assert lease.expires_s == service.place.clock.now_s() + 20
    service.place.coordinator.release(ANN)
    with pytest.raises(LeaseLost):
        await service.call("ReportProgress", pb.ReportProgressRequest(task=task))


async def fail(service: Service, run: LiveRun, reason: str = "BROKEN", permanent: bool = False, **more: Any) -> None:
    kind = pb.FAILURE_KIND_PERMANENT if permanent else pb.FAILURE_KIND_TRANSIENT
    values = {"task": str(run.task_name(ANN)), "reason": reason, "message": "it broke", "kind": kind}
    await service.call("ReportFailure", pb.ReportFailureRequest(**{**values, **more}))


async def test_a_client_that_fails_for_a_while_loses_its_slot_and_keeps_its_session(service: Service) -> None:
    run = await service.place.collecting("ann", "ben")
    await fail(service, run, "R" * 41, message="m" * 401)
    assert [(loss.client, loss.reason) for loss in run.state.losses] == [("ann", "R" * 40 + ": " + "m" * 400)]
    assert not run.state.is_excluded(ANN)
    assert service.place.parts.sessions.get(ANN) is not None


async def test_a_client_that_fails_for_good_is_excluded(service: Service) -> None:
    run = await service.place.collecting("ann", "ben")
    await fail(service, run, permanent=True)
    assert run.state.is_excluded(ANN)


async def test_a_client_that_stops_ends_its_session_before_its_slot_is_free(service: Service) -> None:
    run = await service.place.collecting("ann", "ben")
    await fail(service, run, CLIENT_STOPPED)
    assert service.place.parts.sessions.get(ANN) is None
    assert run.state.losses[0].client == "ann"


async def test_a_failure_of_a_daemon_that_was_replaced_or_has_no_lease_changes_nothing(service: Service) -> None:
    run = await service.place.collecting("ann", "ben")
    await fail(service, run, instance_id="second")
    assert run.state.losses == ()
    await fail(service, run, instance_id="first")
    assert len(run.state.losses) == 1
    roster = run.state.roster
    await fail(service, run)
    assert (len(run.state.losses), run.state.roster) == (1, roster)


async def test_a_failure_counts_also_without_a_session(service: Service) -> None:
    run = await service.place.collecting("ann", "ben")
    service.place.parts.sessions.close(ANN)
    await fail(service, run, instance_id="first")
    assert len(run.state.losses) == 1


async def test_rollouts_are_for_the_client_that_holds_the_task(service: Service) -> None:
    run = await service.place.collecting("ann", "ben")
    task = str(run.task_name(ANN))
    with pytest.raises(NotFound):  # a run that trains has no batch
        await service.call("GetRollouts", pb.GetRolloutsRequest(task=task))
    service.place.coordinator.release(ANN)
    with pytest.raises(LeaseLost):
        await service.call("GetRollouts", pb.GetRolloutsRequest(task=task))


async def test_a_poll_above_the_limit_is_answered_at_once_with_the_reason(tmp_path: Path) -> None:
    service = Service(tmp_path, max_held_polls=1)
    for name in ("ann", "ben"):
        await service.hello(name)
    held = asyncio.create_task(service.poll("ann", hold_s=HOLD_S))
    await settle()
    polling = asyncio.create_task(service.poll("ben", hold_s=HOLD_S))
    await settle()
    assert polling.done(), "it waited for nothing"
    answer = polling.result()
    assert "holds 1 polls, as many as max_held_polls" in answer.wait.reason
    after_s = 2.0 * (1 + spread_of(BEN, service.place.clock.now_s()))
    assert answer.wait.after.ToMicroseconds() == pytest.approx(after_s * 1e6, abs=1000), (
        "from 2 to 4 s, as chance has it"
    )
    assert "max_held_polls" in (await service.poll("ben", hold_s=0.5)).wait.reason, "it asked for half a second"
    assert answer.HasField("audit_head")
    assert (await service.poll("ben")).wait.reason == "no run is open", "it did not ask to be held"
    service.place.coordinator.drain()
    assert (await held).wait.reason == "the coordinator is stopping"
    assert not held.cancelled()


async def test_a_poll_above_the_limit_has_its_task_all_the_same_and_its_slot_is_free_afterwards(tmp_path: Path) -> None:
    service = Service(tmp_path, max_held_polls=1)
    await service.place.collecting("ann", "ben")
    held = asyncio.create_task(service.poll("ann", hold_s=HOLD_S, held_task="runs/r/rounds/1/tasks/train-ann"))
    await settle()
    assert (await service.poll("ben", hold_s=HOLD_S)).task.name == "runs/r/rounds/1/tasks/train-ben"
    service.place.coordinator.release(ClientId("ann"))
    assert (await held).HasField("wait")
    waiting = asyncio.create_task(service.poll("ben", hold_s=HOLD_S, held_task="runs/r/rounds/1/tasks/train-ben"))
    await settle()
    assert not waiting.done(), "there is room for one again"
    waiting.cancel()


# Peer keys


def stated(key: PrivateKey, name: str = "ann") -> pb.PeerKey:
    """Returns the peer key as a client in plain text states it: without an endorsement."""
    der = public_der(key)
    return pb.PeerKey(key_der=der, proof=endorsed(key, "", name, der))


async def test_hello_registers_a_peer_key_and_answers_with_the_rosters_head(service: Service) -> None:
    assert (await service.hello("ben")).roster_head == b""
    key = new_key()
    answer = await service.hello(peer_key=stated(key), capabilities=[PRIVATE_ROUNDS])
    assert (answer.roster_head, service.roster.peer_key(ANN)) == (service.roster.head, public_der(key))
    assert len(answer.roster_head) == 32
    ready = [service.place.parts.sessions.of(name).is_ready_for_private_rounds for name in (ANN, BEN)]
    assert ready == [True, False]
    (entry,) = service.roster.entries(0, 9)
    assert (entry.name, entry.group) == ("ann", "group of ann")
    assert PRIVATE_ROUNDS in answer.capabilities


@pytest.mark.parametrize(("key", "capabilities"), [(True, []), (False, [PRIVATE_ROUNDS])])
async def test_a_client_without_key_or_capability_is_not_ready_for_private_rounds(
    service: Service, key: bool, capabilities: list[str]
) -> None:
    await service.hello(peer_key=stated(new_key()) if key else None, capabilities=capabilities)
    assert not service.place.parts.sessions.of(ANN).is_ready_for_private_rounds


async def test_hello_with_another_peer_key_opens_no_session(service: Service) -> None:
    await service.hello(peer_key=stated(new_key()))
    before = service.place.parts.sessions.of(ANN)
    with pytest.raises(PeerKeyDiffers):
        await service.hello(instance_id="second", peer_key=stated(new_key()))
    assert service.place.parts.sessions.of(ANN) is before


async def test_the_roster_is_served_from_any_entry_on(service: Service) -> None:
    for name in ("ann", "ben"):
        await service.hello(name, peer_key=stated(new_key(), name))
    answer = await service.call("GetRoster", pb.GetRosterRequest())
    assert [(entry.sequence, entry.name, entry.change) for entry in answer.entries] == [(1, "ann", 1), (2, "ben", 1)]
    assert Roster().extended(map(roster_entry_in, answer.entries)).head == answer.head == service.roster.head
    later = await service.call("GetRoster", pb.GetRosterRequest(after=1))
    assert (list(later.entries), later.head) == (list(answer.entries)[1:], answer.head)
    with pytest.raises(InvalidArgument, match="after"):
        await service.call("GetRoster", pb.GetRosterRequest(after=-1))


async def test_members_of_a_run_learn_how_many_of_their_questions_others_have(service: Service) -> None:
    run = await service.place.new_run()

    async def compared(name: str, *digests: int) -> tuple[int, int]:
        request = pb.CompareQuestionsRequest(run=run.id, digests=digests)
        answer = await service.call("CompareQuestions", request, name)
        return answer.members, answer.shared

    assert await compared("ann", 3, 2**64 - 1) == (0, 0)
    assert await compared("ben", 2, 3, 2**64 - 1) == (1, 2)
    for wrong in ((3, 2), (2, 2), (1, 3, 2), tuple(range(MAX_DIGESTS + 1))):
        with pytest.raises(InvalidArgument, match="digests"):
            await compared("cem", *wrong)
    assert await compared("dee", *range(MAX_DIGESTS)) == (2, 2), "what was refused is not kept"
    with pytest.raises(NotFound):
        await service.call("CompareQuestions", pb.CompareQuestionsRequest(run="other"))
    await service.place.coordinator.dispatch(run, ev.RunCancelled(service.place.clock.now_s(), "enough"))
    with pytest.raises(WrongPhase):
        await compared("ann", 3)


# Steps of private rounds


async def test_the_files_of_a_private_round_are_sent_from_the_first_chunk_that_is_asked_for_and_counted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, run = service.place.parts.round_files, await service.place.new_run()

    async def file_of(*asked: object) -> AsyncIterator[tuple[int, bytes]]:
        name, first = repr(asked[:-1]).encode(), asked[-1]
        assert isinstance(first, int)
        for index in range(first, 2):
            yield index, name

    monkeypatch.setattr(files, "transcript", file_of)
    monkeypatch.setattr(files, "masked", file_of)
    for first, sent in ((0, 2), (1, 1)):
        before = service.place.parts.traffic.sent_bytes(run.id)
        transcript = pb.GetTranscriptRequest(run="r", round=3, first_chunk=first)
        masked = pb.GetMaskedChunksRequest(run="r", round=3, member="ben", first_chunk=first)
        with as_caller(Principal(ANN, MemberRole.CLIENT)):
            of_round = [chunk async for chunk in service.federation.GetTranscript(transcript, None)]
            of_ben = [chunk async for chunk in service.federation.GetMaskedChunks(masked, None)]
        assert [(chunk.index, chunk.data) for chunk in of_round] == [(n, b"('r', 3)") for n in range(first, 2)]
        assert [(chunk.index, chunk.data) for chunk in of_ben] == [(n, b"('r', 3, 'ben')") for n in range(first, 2)]
        size_bytes = len(b"('r', 3)") + len(b"('r', 3, 'ben')")
        assert service.place.parts.traffic.sent_bytes(run.id) - before == sent * size_bytes


async def test_the_present_step_of_a_private_round_is_shown_and_a_message_is_taken_and_both_keep_the_lease(
    service: Service,
) -> None:
    place = service.place
    run = await collecting(place)
    leases, task = place.parts.leases, str(run.task_name(ANN))
    await send(place, run, ev.RoundStep.UPDATE, *NAMES)
    for phase in (0, 3, 5):
        with pytest.raises(WrongStep, match=f"step {phase} was asked for, and the round is in step 4"):
            await service.call("GetRoundStep", pb.GetRoundStepRequest(task=task, phase=phase))
    rounds = place.parts.open_rounds
    sum_sha256 = rounds.fixed(run, await rounds.of(run)).sum_sha256
    confirmation = Confirmation(sum_sha256).signed(member_key(ANN))
    for method, request in (
        ("GetRoundStep", pb.GetRoundStepRequest(task=task, phase=4)),
        ("PutRoundStep", step_request(task, rounds.terms(run).sha256, confirmation)),
    ):
        for client in NAMES:
            leases.renew(client, place.clock.now_s())
        place.clock.advance(leases.duration_s - 1)
        answer = await service.call(method, request)
        place.clock.advance(2)
        assert leases.expired(run.id, place.clock.now_s()) == NAMES[1:]
        assert method == "PutRoundStep" or view_of(answer).terms == rounds.terms(run)
    assert [sent.client for sent in run.state.confirmed] == [ANN]
    assert (await rounds.of(run)).of(Confirmation, run.state.confirmed) == {ANN: confirmation}
    with pytest.raises(WrongStep):
        await service.call("PutRoundStep", step_request(task, bytes(32), confirmation))
