"""A member reads runs that it has no part in: every call that could show something of such a run is refused."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from support.coordinator_harness import (
    DEADLINE_S,
    HandClient,
    Served,
    pass_first_evaluation,
    serving,
    small_spec,
    write_delta,
)

from pluralllm.common.errors.grpc_status import from_rpc_error
from pluralllm.common.errors.membership import RunNotShared
from pluralllm.common.errors.tree import NotFound, PluralError
from pluralllm.common.words.roles import MemberRole
from pluralllm.v1 import federation_pb2 as fed
from pluralllm.v1 import federation_pb2_grpc, operations_pb2_grpc
from pluralllm.v1 import operations_pb2 as ops

CLOSED = small_spec(groups={"train": ["group of ann", "group of ben"]})
SECRET = "closed"

READS: dict[str, Any] = {
    "GetRunSpec": fed.GetRunSpecRequest(run=SECRET),
    "ListVersionRecords": fed.ListVersionRecordsRequest(run=SECRET, last_version=1),
    "GetManifest": fed.GetManifestRequest(run=SECRET),
    "GetChunks": fed.GetChunksRequest(run=SECRET),
    "GetTranscript": fed.GetTranscriptRequest(run=SECRET, round=1),
    "GetMaskedChunks": fed.GetMaskedChunksRequest(run=SECRET, round=1, member="ann"),
    "GetRun": ops.GetRunRequest(name=f"runs/{SECRET}"),
    "GetRound": ops.GetRoundRequest(name=f"runs/{SECRET}/rounds/1"),
    "ListRounds": ops.ListRoundsRequest(parent=f"runs/{SECRET}"),
    "ListEvaluations": ops.ListEvaluationsRequest(parent=f"runs/{SECRET}"),
    "GetModel": ops.GetModelRequest(name=f"runs/{SECRET}/models/-"),
    "WatchRun": ops.WatchRunRequest(name=f"runs/{SECRET}"),
}
OF_PRIVATE_ROUNDS = {"GetTranscript", "GetMaskedChunks"}  # the run has plain rounds
TASK = f"runs/{SECRET}/rounds/1/tasks/train-mallory"
TASKS: dict[str, Any] = {
    "GetRollouts": fed.GetRolloutsRequest(task=TASK),
    "GetRoundStep": fed.GetRoundStepRequest(task=TASK),
    "PutRoundStep": fed.PutRoundStepRequest(task=TASK, terms_sha256=bytes(32)),
    "BeginUpdate": fed.BeginUpdateRequest(task=TASK),
    "PutChunks": fed.PutChunksRequest(task=TASK),
    "CommitUpdate": fed.CommitUpdateRequest(task=TASK),
    "ReportEvaluation": fed.ReportEvaluationRequest(task=TASK),
    "ReportProgress": fed.ReportProgressRequest(task=TASK),
    "ReportFailure": fed.ReportFailureRequest(task=TASK),
}
OF_OBSERVERS = {name for name, request in READS.items() if type(request).__name__ in dir(ops)} - {"GetModel"}


async def outcome(channel: grpc.aio.Channel, name: str, request: Any) -> PluralError | None:
    """Makes one call; returns the error of a refusal. Reads the first message of a stream."""
    stubs: tuple[Any, ...] = (
        federation_pb2_grpc.FederationServiceStub(channel),
        operations_pb2_grpc.OperationsServiceStub(channel),
    )
    method = next(getattr(stub, name) for stub in stubs if hasattr(stub, name))
    calling = method(iter([request]) if name == "PutChunks" else request, timeout=DEADLINE_S)
    try:
        if hasattr(calling, "read"):
            await calling.read()
            calling.cancel()
        else:
            await calling
    except grpc.RpcError as error:
        return from_rpc_error(error, "the coordinator")
    return None


async def listed(channel: grpc.aio.Channel) -> list[str]:
    stub: Any = operations_pb2_grpc.OperationsServiceStub(channel)
    return [run.name for run in (await stub.ListRuns(ops.ListRunsRequest(), timeout=DEADLINE_S)).runs]


async def a_closed_round(served: Served) -> HandClient:
    """Opens a round of the closed run; returns a client that has no part in it."""
    clients = [await served.client(name) for name in ("ann", "ben")]
    await served.create(SECRET, CLOSED)
    await pass_first_evaluation(*clients)
    await clients[0].task()
    return await served.client("mallory")


async def test_a_client_reads_nothing_of_a_run_that_does_not_name_its_group(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        mallory = await a_closed_round(served)
        evil, good = served.channels["mallory"], served.channels["ann"]
        for name, request in READS.items():
            error = await outcome(evil, name, request)
            assert isinstance(error, RunNotShared), f"{name}: {error!r}"
            assert (error.name, error.run) == ("mallory", SECRET)
            answered = await outcome(good, name, request)
            assert answered is None or (name in OF_PRIVATE_ROUNDS and isinstance(answered, NotFound)), name
        assert await listed(evil) == []
        assert await listed(good) == [f"runs/{SECRET}"]
        await served.create("open", small_spec(), start=False)
        assert await listed(evil) == ["runs/open"]
        newest = ops.GetRunRequest(name="runs/-")
        await served.create("closed-2", CLOSED, start=False)
        stub: Any = operations_pb2_grpc.OperationsServiceStub(evil)
        assert (await stub.GetRun(newest, timeout=DEADLINE_S)).run.name == "runs/open"
        entries = await served.registry.audit.entries(0, 1000)
        refused = {entry.action for entry, _ in entries if (entry.actor, entry.result) == ("mallory", "RUN_NOT_SHARED")}
        assert refused == set(READS), "the audit log has each kind of refusal"
        cancel = ops.CancelRunRequest(name=f"runs/{SECRET}")
        await served.operations.CancelRun(cancel, timeout=DEADLINE_S)
        answer = await mallory.poll(following=[SECRET])
        assert answer.WhichOneof("answer") == "wait", "its end, its version and its digest are not for others either"
        assert SECRET not in answer.wait.reason


async def test_a_client_names_a_task_of_a_run_that_it_may_not_read(tmp_path: Path) -> None:
    taking = {
        method.name
        for method in fed.DESCRIPTOR.services_by_name["FederationService"].methods
        if "task" in method.input_type.fields_by_name
    }
    assert set(TASKS) == taking
    async with serving(tmp_path / "state") as served:
        await a_closed_round(served)
        for name, request in TASKS.items():
            assert isinstance(await outcome(served.channels["mallory"], name, request), RunNotShared), name


async def test_an_observer_reads_the_runs_of_its_invite_only(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await a_closed_round(served)
        await served.create("other", small_spec(), start=False)
        invited = served.channel_of(await served.member("eve", MemberRole.OBSERVER, runs=(SECRET, "not-yet")))
        other = served.channel_of(await served.member("oscar", MemberRole.OBSERVER, runs=("other",)))
        everything = served.channel_of(await served.member("olga", MemberRole.OBSERVER))
        for name in sorted(OF_OBSERVERS):
            assert isinstance(await outcome(other, name, READS[name]), RunNotShared), name
            assert await outcome(invited, name, READS[name]) is None, name
            assert await outcome(everything, name, READS[name]) is None, name
        assert await listed(invited) == [f"runs/{SECRET}"]
        assert await listed(other) == ["runs/other"]
        await served.create("not-yet", CLOSED, start=False)
        assert await listed(invited) == ["runs/not-yet", f"runs/{SECRET}"]
        assert len(await listed(everything)) == 3


async def test_a_member_of_a_run_does_not_read_why_another_one_failed(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann, ben = [await served.client(name) for name in ("ann", "ben")]
        await served.create("r", small_spec())
        await pass_first_evaluation(ann, ben)
        task = await ann.task()
        wrong = write_delta(tmp_path / "u", small_spec(predictor={"d_model": 4}), 1)
        with pytest.raises(PluralError) as refusal:
            await ann.begin(task, wrong)
        failure = fed.ReportFailureRequest(
            task=task.name,
            kind=fed.FAILURE_KIND_PERMANENT,
            reason="WORKER_FAILED",
            message="the disk of ann is full",
        )
        await ann.call("ReportFailure", failure)
        olga = served.channel_of(await served.member("olga", MemberRole.OBSERVER))
        secrets = ("the disk of ann", "WORKER_FAILED", refusal.value.reason)
        for channel, may_know in (
            *((served.channels["ann"], True), (served.channel, True)),
            *((served.channels["ben"], False), (olga, False)),
        ):
            stub: Any = operations_pb2_grpc.OperationsServiceStub(channel)
            texts = [
                str(await stub.GetRun(ops.GetRunRequest(name="runs/r"), timeout=DEADLINE_S)),
                str(await stub.ListRuns(ops.ListRunsRequest(), timeout=DEADLINE_S)),
                str(await stub.ListRounds(ops.ListRoundsRequest(parent="runs/r"), timeout=DEADLINE_S)),
            ]
            for secret in secrets:
                assert [secret in text for text in texts] == [may_know, may_know, False], secret
        await ben.task()  # the round of the others goes on


@pytest.mark.parametrize("name", ["mallory", "oscar"])
async def test_pages_of_runs_hold_what_the_caller_may_read_and_no_gaps(tmp_path: Path, name: str) -> None:
    async with serving(tmp_path / "state") as served:
        for number in range(6):
            await served.create(f"r{number}", small_spec() if number % 2 else CLOSED, start=False)
        if name == "mallory":
            await served.client(name)
            channel = served.channels[name]
        else:
            runs = ("r1", "r3", "r5")
            channel = served.channel_of(await served.member(name, MemberRole.OBSERVER, runs=runs))
        stub: Any = operations_pb2_grpc.OperationsServiceStub(channel)
        seen, token = [], ""
        while True:
            page = await stub.ListRuns(ops.ListRunsRequest(page_size=2, page_token=token), timeout=DEADLINE_S)
            seen.append([run.name for run in page.runs])
            if not (token := page.next_page_token):
                break
        assert seen == [["runs/r5", "runs/r3"], ["runs/r1"]]
