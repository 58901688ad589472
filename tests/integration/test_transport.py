"""The client's transport against a scripted coordinator: which calls it repeats by itself, and which it does not."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.plain_server import serving_scripted
from support.process_harness import free_port

from pluralllm.client.link import transport as transport_module
from pluralllm.client.link.rests import rest_s
from pluralllm.client.link.tasks import Scores
from pluralllm.client.link.transport import Transport
from pluralllm.common.errors.membership import TooManyCalls
from pluralllm.common.errors.tree import (
    AnswerInvalid,
    BackgroundFailed,
    ChunksMissing,
    DiskFailed,
    NormTooLarge,
    NotLoopback,
    Overtaken,
    PluralError,
    StorageFull,
    Unreachable,
)
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.wire.messages import manifest_message, noise_in, timestamp
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RunId, TaskId
from pluralllm.common.words.names import ModelName, TaskName
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.not_reported import NotReported
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.rpc.boundary import Boundary
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1 import federation_pb2_grpc, resources_pb2

TASK = TaskId("runs/r/rounds/1/tasks/train-ann")


class Scripted(federation_pb2_grpc.FederationServiceServicer):
    """A coordinator whose calls fail once for each entry of a script, then work."""

    def __init__(self, **failures: list[PluralError]) -> None:
        self._failures = failures
        self.calls: list[str] = []
        self.stored = False
        self.noise: NoiseStatement | None = None  # of the newest announcement
        self.evaluations: list[pb.ReportEvaluationRequest] = []
        self.manifest = resources_pb2.BlobManifest()  # of every model version
        self.breaks_receipts = False  # the receipts are for the update of somebody else

    def _play(self, method: str) -> None:
        self.calls.append(method)
        if failures := self._failures.get(method):
            raise failures.pop(0)

    async def GetManifest(self, request: pb.GetManifestRequest, context: Any) -> pb.GetManifestResponse:
        self._play("manifest")
        model = resources_pb2.ModelVersion(
            name=str(ModelName(RunId(request.run), ModelVersion(request.version))),
            version=request.version,
            digest=self.manifest.digest,
            record_sha256="a" * 64,
            spec_sha256="b" * 64,
            create_time=timestamp(time.time()),
        )
        return pb.GetManifestResponse(manifest=self.manifest, model=model)

    async def GetChunks(self, request: pb.GetChunksRequest, context: Any) -> AsyncIterator[pb.GetChunksResponse]:
        self._play("chunks")
        yield pb.GetChunksResponse()

    async def BeginUpdate(self, request: pb.BeginUpdateRequest, context: Any) -> pb.BeginUpdateResponse:
        self._play("begin")
        self.noise = noise_in(request)
        if self.stored:
            return pb.BeginUpdateResponse()
        return pb.BeginUpdateResponse(missing=[resources_pb2.ChunkRange(first=0, last=0)])

    async def PutChunks(self, request_iterator: Any, context: Any) -> pb.PutChunksResponse:
        self._play("put")
        async for _ in request_iterator:
            self.stored = True
        return pb.PutChunksResponse()

    async def CommitUpdate(self, request: pb.CommitUpdateRequest, context: Any) -> pb.CommitUpdateResponse:
        self._play("commit")
        name = TaskName.parse(request.task)
        client = "eve" if self.breaks_receipts else name.client
        receipt = resources_pb2.Receipt(run=name.run, round=name.round, client=client, update_digest=request.digest)
        receipt.create_time.CopyFrom(timestamp(time.time()))
        return pb.CommitUpdateResponse(receipt=receipt)

    async def ReportEvaluation(self, request: pb.ReportEvaluationRequest, context: Any) -> pb.ReportEvaluationResponse:
        self._play("evaluation")
        self.evaluations.append(request)
        return pb.ReportEvaluationResponse()


NOISE = NoiseStatement(noised=True, epsilon=2.0, delta=1e-6, unit="respondent")


class OpenDoor:
    """A door that admits every caller, because these tests are about repeated calls."""

    @contextlib.asynccontextmanager
    async def enter(self, method: str, context: Any, request: object) -> AsyncIterator[Callable[[], None]]:
        yield lambda: None


def scripted(**failures: list[PluralError]) -> Scripted:
    return Scripted(**failures)  # type: ignore[abstract]  # what is not scripted is never called


@contextlib.asynccontextmanager
async def transport_to(service: Scripted, standby: str | None = None) -> AsyncIterator[Transport]:
    async with serving(service) as address:
        transport = Transport.in_plain_text(address, ClientId("ann"), standby)
        try:
            yield transport
        finally:
            await transport.close()


def serving(service: Scripted) -> contextlib.AbstractAsyncContextManager[str]:
    return serving_scripted(service, [Boundary(OpenDoor(), FailStop())])


async def push(transport: Transport, folder: Path) -> None:
    path = folder / "delta"
    await asyncio.to_thread(path.write_bytes, b"delta")
    manifest = manifest_of(path)
    await asyncio.wait_for(transport.push_update(TASK, path, manifest, Digest("s"), Digest("b"), 5, {}, NOISE), 30)


async def test_a_coordinator_that_forgot_the_announcement_is_told_again(tmp_path: Path) -> None:
    service = scripted(put=[ChunksMissing(missing=1)], commit=[ChunksMissing(missing=1)])
    async with transport_to(service) as transport:
        await push(transport, tmp_path)
    assert service.calls == ["begin", "put", "begin", "put", "commit", "begin", "commit"]
    assert service.noise == NOISE


async def test_a_coordinator_whose_disk_is_full_is_given_time(tmp_path: Path) -> None:
    service = scripted(begin=[StorageFull(what="an update")], commit=[StorageFull(what="the database")])
    async with transport_to(service) as transport:
        await push(transport, tmp_path)
    assert service.calls == ["begin", "begin", "put", "commit", "begin", "commit"]


async def test_the_receipt_of_another_clients_update_is_no_receipt(tmp_path: Path) -> None:
    service = scripted()
    service.breaks_receipts = True
    async with transport_to(service) as transport:
        with pytest.raises(AnswerInvalid, match=r"receipt\.client is eve, must be ann"):
            await push(transport, tmp_path)


async def test_a_client_that_calls_too_often_waits_and_tries_again(tmp_path: Path) -> None:
    often: list[PluralError] = [TooManyCalls(name="ann", rpc="x", retry_s=0.3) for _ in range(4)]
    service = scripted(begin=often[:2], put=often[2:3], commit=often[3:4])
    started_s = time.monotonic()
    async with transport_to(service) as transport:
        with capture_logs() as logs:
            await push(transport, tmp_path)
    assert service.calls == ["begin"] * 3 + ["put", "begin", "put", "commit", "commit"]
    assert time.monotonic() - started_s >= 0.9
    slowed = [(line["rpc"], line["log_level"]) for line in logs if line["event"] == "client.calls_too_often"]
    assert slowed == [("BeginUpdate", "warning"), ("CommitUpdate", "warning")]


async def test_a_client_that_is_refused_as_too_busy_for_ever_gives_the_call_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "RETRY_FOR_S", 0.5)
    service = scripted(begin=[TooManyCalls(name="ann", rpc="x", retry_s=0.0) for _ in range(1000)])
    async with transport_to(service) as transport:
        with pytest.raises(Unreachable):
            await push(transport, tmp_path)
    assert len(service.calls) <= 5


@pytest.mark.parametrize(
    ("wish_s", "least_s", "most_s"),
    [
        (2.0, 2.0, 3.0),
        (0.0, 0.2, 0.2),
        (-5.0, 0.2, 0.2),
        (1e300, 60, 60),
        (float("inf"), 60, 60),
        (float("nan"), 60, 60),
    ],
)
def test_the_wait_is_what_the_coordinator_wishes_within_limits(wish_s: float, least_s: float, most_s: float) -> None:
    assert least_s <= rest_s(wish_s) <= most_s


async def test_a_refused_update_is_not_sent_again(tmp_path: Path) -> None:
    service = scripted(commit=[NormTooLarge(norm=9.0, limit=1.0)])
    async with transport_to(service) as transport:
        with pytest.raises(NormTooLarge):
            await push(transport, tmp_path)
    assert service.calls == ["begin", "put", "commit"]


@pytest.mark.parametrize(
    "failure",
    [
        Overtaken(generation=1),
        DiskFailed(problem="Input/output error"),
        BackgroundFailed(work="the loop", problem="a bug"),
    ],
)
async def test_a_coordinator_that_cannot_serve_any_more_is_left_for_the_standby(
    tmp_path: Path, failure: PluralError
) -> None:
    first, second = scripted(begin=[failure]), scripted()
    async with serving(second) as standby, transport_to(first, standby) as transport:
        with pytest.raises(type(failure)):
            await push(transport, tmp_path)
        assert transport.address == standby
        await push(transport, tmp_path)
    assert (first.calls, second.calls) == (["begin"], ["begin", "put", "commit"])


async def test_where_nobody_answers_the_other_address_is_tried_in_turn(tmp_path: Path) -> None:
    service = scripted()
    async with serving(service) as standby:
        transport = Transport.in_plain_text(f"127.0.0.1:{free_port()}", ClientId("ann"), standby)
        await push(transport, tmp_path)
        assert transport.address == standby
        await transport.close()
    assert service.calls == ["begin", "put", "commit"]


@pytest.mark.parametrize(
    ("scores", "fields"),
    [
        (
            Scores(0.75, 0.5, None, 40),
            {"alignment_score": 0.75, "alignment_score_base2": 0.5, "questions": 40},
        ),
        (
            Scores(0.75, 0.5, 0.0, 40),
            {"alignment_score": 0.75, "alignment_score_base2": 0.5, "wasserstein_score": 0.0, "questions": 40},
        ),
        (
            Scores(0.75, 0.5, None, 40, 0.0),
            {"alignment_score": 0.75, "alignment_score_base2": 0.5, "questions": 40, "context_gain": 0.0},
        ),
        (NotReported.TOO_FEW_QUESTIONS, {"not_reported": resources_pb2.NOT_REPORTED_TOO_FEW_QUESTIONS}),
        (NotReported.BUDGET_SPENT, {"not_reported": resources_pb2.NOT_REPORTED_BUDGET_SPENT}),
    ],
)
async def test_an_evaluation_is_sent_with_its_scores_or_with_the_reason_alone(
    scores: Scores | NotReported, fields: dict[str, Any]
) -> None:
    service = scripted()
    async with transport_to(service) as transport:
        await asyncio.wait_for(transport.report_scores(TASK, scores), 30)
    assert service.evaluations == [pb.ReportEvaluationRequest(task=TASK, **fields)]


@pytest.mark.parametrize("excess_bytes", [-1, 1, 3 * 2**30])
async def test_a_model_of_another_size_than_the_run_specs_is_not_downloaded(tmp_path: Path, excess_bytes: int) -> None:
    content, target = tmp_path / "content", tmp_path / "models" / "target"
    content.write_bytes(b"weights")
    target.parent.mkdir()
    manifest = manifest_of(content)
    service = scripted()
    service.manifest = manifest_message(manifest)
    async with transport_to(service) as transport:
        with pytest.raises(AnswerInvalid, match=f"is 7, the run spec's model has {7 + excess_bytes} bytes"):
            await transport.fetch_model(RunId("r"), ModelVersion(0), manifest.digest, 7 + excess_bytes, target)
    assert service.calls == ["manifest"]
    assert list(target.parent.iterdir()) == []


async def test_plain_text_stays_on_loopback_at_the_second_address_too() -> None:
    with pytest.raises(NotLoopback):
        Transport.in_plain_text("127.0.0.1:7443", ClientId("ann"), "coordinator.example.org:7443")
