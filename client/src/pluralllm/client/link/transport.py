"""The daemon's calls to the coordinator's gRPC services.

Every call has a deadline. Calls that may be repeated are retried.
"""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import stamina
import structlog

from pluralllm.client.link.answers import greeting_in, hello_request, roster_page_in, run_over_in, task_in
from pluralllm.client.link.channel import Connection, OpenChannel
from pluralllm.client.link.link_speed import Speed, measured
from pluralllm.client.link.model_download import MAX_MODEL_BYTES, ModelDownload, stream_deadline_s
from pluralllm.client.link.records import shown_entry, signed_record
from pluralllm.client.link.rests import rest_s
from pluralllm.client.link.tasks import (
    Answer,
    AuditHead,
    Greeting,
    Introduction,
    Renewed,
    RosterPage,
    Scores,
    ShownEntry,
    SignedRecord,
    Wait,
)
from pluralllm.client.process.instruments import RECEIVED_BYTES, SENT_BYTES
from pluralllm.common.errors.grpc_status import from_rpc_error
from pluralllm.common.errors.membership import TooManyCalls
from pluralllm.common.errors.tree import (
    AnswerInvalid,
    BackgroundFailed,
    ChunksMissing,
    Corrupt,
    DigestMismatch,
    DiskFailed,
    NoAnswer,
    Overtaken,
    PluralError,
    ProtocolUnsupported,
    StorageFull,
    Unreachable,
)
from pluralllm.common.process.proxies import DIRECT, Proxies
from pluralllm.common.text.printable import printable
from pluralllm.common.trust.identity import Identity
from pluralllm.common.weights.chunks import CHUNK_BYTES, Manifest
from pluralllm.common.weights.pieces import PIECE_BYTES, PieceSizes, transfer_s
from pluralllm.common.wire.channels import plain_channel, secure_channel
from pluralllm.common.wire.checked_answers import checked_answer
from pluralllm.common.wire.chunk_messages import write_chunk
from pluralllm.common.wire.messages import (
    CHUNK_PIECES,
    CLIENT_ID_KEY,
    MAX_MESSAGE_BYTES,
    NOT_REPORTED,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    addresses_in,
    chunks_in,
    manifest_from,
    manifest_message,
    noise_message,
)
from pluralllm.common.words.addresses import check_loopback
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RunId, TaskId
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.not_reported import NotReported
from pluralllm.v1 import enrolment_pb2, operations_pb2
from pluralllm.v1 import federation_pb2 as pb

log = structlog.get_logger()

CALL_DEADLINE_S = 20.0  # on the slowest link, a request and an answer that may be large have time besides
POLL_HOLD_S = 55.0  # at most; the coordinator may hold a poll for a shorter time, which its configuration says
COMMIT_DEADLINE_S = 300.0  # the coordinator reads, checks and syncs the whole update
RETRY_FOR_S = 600.0  # then the task is given up; the outbox keeps its update
FIRST_RETRY_S, LAST_RETRY_S, RETRY_JITTER_S = 0.2, 15.0, 1.0
LARGE_ANSWERS = frozenset(
    {"GetManifest", "GetRollouts", "GetRoster", "GetRoundStep", "GetRunSpec", "ListAuditEvents", "ListVersionRecords"}
)
SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [
                {"service": "pluralllm.v1.FederationService", "method": method}
                for method in ("GetRunSpec", "ListVersionRecords", "GetManifest", "GetRollouts")
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

OPTIONS = (("grpc.service_config", json.dumps(SERVICE_CONFIG)),)


@dataclass(slots=True)
class Traffic:
    """Bytes of updates sent and of model versions received since the transport was made."""

    sent_bytes: int = 0
    received_bytes: int = 0


class Transport:
    """Makes the daemon's calls to the coordinator.

    A call raises the typed error that the coordinator answered with, or a subclass of NoAnswer if there is no such answer. Every
    field of an answer is checked before the answer is used: a call raises AnswerInvalid if the answer breaks the protocol.
    """

    def __init__(
        self, connection: Connection, client: ClientId, *, in_plain_text: bool, proxies: Proxies = DIRECT
    ) -> None:
        self._connection, self._proxies = connection, proxies
        self._client = client
        self.traffic = Traffic()
        self._metadata = ((CLIENT_ID_KEY, client),) if in_plain_text else ()
        self._instance = secrets.token_hex(8)
        self._generation = ""
        self._coordinator_takes_pieces = False
        self._first_piece = {
            "to": PIECE_BYTES,
            "from": PIECE_BYTES,
        }  # bytes; the size that the last transfer ended with
        self.audit_head: AuditHead | None = None  # of the newest answer to a poll; None if the coordinator states none

    @classmethod
    def of_member(cls, identity: Identity, standby: str | None = None) -> Self:
        """Returns a transport that uses mutual TLS: the member's certificate proves who calls.

        standby: address of a second coordinator, which is called when the first does not answer; None if there is none.
        """
        member = identity.membership
        connection = Connection(_addresses(member.coordinator, standby), _secure(identity))
        return cls(connection, ClientId(member.name), in_plain_text=False, proxies=identity.proxies)

    @classmethod
    def in_plain_text(cls, address: str, client: ClientId, standby: str | None = None) -> Self:
        """Returns a transport without certificates. Raises NotLoopback if an address is not on the loopback interface.

        client: name that the calls carry. standby: address of a second coordinator; None if there is none.
        """
        addresses = _addresses(address, standby)
        for listed in addresses:
            check_loopback(listed)
        return cls(Connection(addresses, lambda at: plain_channel(at, OPTIONS)), client, in_plain_text=True)

    @property
    def address(self) -> str:
        """The address of the coordinator that new calls go to."""
        return self._connection.address

    def use(self, identity: Identity) -> None:
        """Uses the identity's certificate for new calls.

        Calls under way end on the old channel: gRPC cannot change the certificate of a channel.
        """
        self._connection.open_with(_secure(identity))

    async def close(self) -> None:
        """Closes the connection, and ends the calls on it."""
        await self._connection.close()

    async def renew(self, request_der: bytes) -> Renewed:
        """Returns the member's next certificate chain. request_der: certificate request, made with the next key.

        Raises CertificateInvalid, OverLimit or IssuerExpired.
        """
        request = enrolment_pb2.RenewRequest(certificate_request_der=request_der)
        response: enrolment_pb2.RenewResponse = await self._answer(
            "Renew", self._connection.enrolment.Renew, request, CALL_DEADLINE_S
        )
        return Renewed(response.certificate_chain_pem, addresses_in(response))

    async def hello(self, introduction: Introduction) -> Greeting:
        """Opens a session with the coordinator.

        Raises ProtocolUnsupported if client and coordinator have no protocol version in common; PeerKeyDiffers if this member has
        registered another peer key.
        """
        request = hello_request(introduction, self._instance)
        response: pb.HelloResponse = await self._answer(
            "Hello", self._connection.stub.Hello, request, deadline_of("Hello", request)
        )
        self._generation = response.generation
        self._coordinator_takes_pieces = CHUNK_PIECES in response.capabilities
        return greeting_in(response)

    async def roster(self, after: int) -> RosterPage:
        """Returns the roster's entries with a sequence number above `after`; not all of them, if they do not fit one answer."""
        return roster_page_in(await self.call("GetRoster", pb.GetRosterRequest(after=after)))

    async def poll(self, held: TaskId | None, following: Iterable[RunId], held_phase: int = 0) -> Answer:
        """Asks the coordinator for the next task, and renews the lease of the task that the client holds.

        held: the task that this client works on; None if there is none. following: runs whose end this client waits for.
        held_phase: the newest step of the held task that this client knows, in a private round.
        Raises StaleSession if the coordinator does not know the session (call `hello` again); SessionReplaced if a newer daemon
        of this client has connected; ProtocolUnsupported if client and coordinator have no protocol version in common.
        """
        request = pb.PollRequest(
            protocol=PROTOCOL_MAX,
            generation=self._generation,
            instance_id=self._instance,
            held_task=held or "",
            held_phase=held_phase,
            following=following,
        )
        request.hold.FromMilliseconds(int(POLL_HOLD_S * 1000))
        response: pb.PollResponse = await self._answer(
            "Poll", self._connection.stub.Poll, request, POLL_HOLD_S + CALL_DEADLINE_S
        )
        head = response.audit_head if response.HasField("audit_head") else None
        self.audit_head = None if head is None else AuditHead(head.sequence, head.sha256, head.signature)
        match response.WhichOneof("answer"):
            case "task":
                return task_in(response.task)
            case "run_over":
                return run_over_in(response.run_over)
            case "upgrade":
                server = response.upgrade.protocol
                raise ProtocolUnsupported(
                    client_min=PROTOCOL_MIN, client_max=PROTOCOL_MAX, server_min=server.min, server_max=server.max
                )
            case _:
                return Wait(response.wait.after.ToMilliseconds() / 1000, printable(response.wait.reason))

    async def run_spec(self, run: RunId) -> bytes:
        """Returns a run's spec as canonical JSON. The caller must compare the SHA-256 of the bytes with the task's hash."""
        response: pb.GetRunSpecResponse = await self.call("GetRunSpec", pb.GetRunSpecRequest(run=run))
        return response.spec_json

    async def version_records(self, run: RunId, first: ModelVersion, last: ModelVersion) -> list[SignedRecord]:
        """Returns the records of a run's versions from `first` on; not all up to `last`, if they do not fit into one answer."""
        request = pb.ListVersionRecordsRequest(run=run, first_version=first, last_version=last)
        response: pb.ListVersionRecordsResponse = await self.call("ListVersionRecords", request)
        return [signed_record(run, message) for message in response.records]

    async def audit_entries(self, after: int, limit: int) -> list[ShownEntry]:
        """Returns at most `limit` entries of the audit log whose number is above `after`, oldest first.

        The content of entries that do not concern this client is withheld. Raises RoleForbids if the coordinator's release shows
        the audit log to administrators only.
        """
        request = operations_pb2.ListAuditEventsRequest(page_size=limit, after_sequence=after)
        method = self._connection.operations.ListAuditEvents
        response: operations_pb2.ListAuditEventsResponse = await self._answer(
            "ListAuditEvents", method, request, deadline_of("ListAuditEvents", request)
        )
        return [shown_entry(message) for message in response.events]

    async def rollouts(self, task: TaskId) -> bytes:
        """Returns the batch of rollouts for a reward task, as JSON that the function `read_rollouts` reads.

        Raises LeaseLost if this client no longer holds the task's lease.
        """
        response: pb.GetRolloutsResponse = await self.call("GetRollouts", pb.GetRolloutsRequest(task=task))
        return response.rollouts_json

    async def fetch_model(
        self, run: RunId, version: ModelVersion, digest: Digest, size_bytes: int, target: Path
    ) -> None:
        """Downloads a model version to the file `target` unless this file exists.

        A download that breaks off leaves a partial file beside `target`, and the next call continues from this file.
        size_bytes: size of the run's model, which follows from the run spec. Raises AnswerInvalid before it downloads anything
        if the coordinator's version has another size; DigestMismatch if the version does not have the expected `digest`;
        StorageFull if the disk is full.
        """
        response: pb.GetManifestResponse = await self.call(
            "GetManifest", pb.GetManifestRequest(run=run, version=version)
        )
        manifest = manifest_from(response.manifest, MAX_MODEL_BYTES)
        if manifest.digest != digest:
            raise DigestMismatch(what=f"version {version} of run {run}", expected=digest, got=manifest.digest)
        if manifest.size_bytes != size_bytes:
            problem = f"is {manifest.size_bytes}, the run spec's model has {size_bytes} bytes"
            raise AnswerInvalid(call="GetManifest", field="manifest.size_bytes", problem=problem)
        if not await asyncio.to_thread(target.is_file):
            async for attempt in retries(NoAnswer, Corrupt, TooManyCalls):
                with attempt:
                    name, draft = f"version {version}", target.with_suffix(".part")
                    download = await asyncio.to_thread(ModelDownload, name, manifest, draft)
                    await self._fetch_chunks(run, version, manifest, download)
                    await asyncio.to_thread(download.publish, target)

    async def _fetch_chunks(
        self, run: RunId, version: ModelVersion, manifest: Manifest, download: ModelDownload
    ) -> None:
        if download.is_complete:
            return
        piece_bytes, self._first_piece["from"] = self._first_piece["from"], PIECE_BYTES
        request = pb.GetChunksRequest(
            run=run, version=version, first_chunk=download.next_chunk, piece_bytes=piece_bytes
        )
        with download.writing(), measured(self.address, "from") as speed, self._errors():
            stream = self._connection.get_chunks(request, metadata=self._metadata, timeout=stream_deadline_s(manifest))
            async for message in stream:
                download.write(message.facts.index, message.data, more=message.facts.more)
                piece_bytes = max(piece_bytes, len(message.data))
                speed.moved(len(message.data))
                self.traffic.received_bytes += len(message.data)
                RECEIVED_BYTES.inc(len(message.data))
        self._first_piece["from"] = piece_bytes
        if not download.is_complete:
            problem = f"the stream ended at chunk {download.next_chunk} of {manifest.chunks}"
            raise Unreachable(address=self.address, problem=problem)

    async def push_update(
        self,
        task: TaskId,
        path: Path,
        manifest: Manifest,
        spec_sha256: Digest,
        base: Digest,
        examples: int,
        metrics: Mapping[str, float],
        noise: NoiseStatement | None = None,
        statement: bytes = b"",
    ) -> None:
        """Uploads the missing chunks of an update and commits the update. Returns when the coordinator has given its receipt.

        path: file of the delta. manifest: size and hashes of that file. base: digest of the model version that the update
        starts from. examples: the update's weight in the mean of all updates. metrics: numbers about the training, by name.
        noise: the statement about the answers behind the update; None for the one in the newest Hello. statement: in a private
        round, the signature over the masked update.
        If a call fails for a reason that may pass, the upload starts again with BeginUpdate. The coordinator's answer to
        BeginUpdate says whether there is a receipt already. An update therefore also reaches a coordinator that restarts, or
        whose disk is full for some time. Raises the errors that the proto file lists for BeginUpdate, PutChunks and
        CommitUpdate.
        """
        begin = pb.BeginUpdateRequest(
            task=task,
            spec_sha256=spec_sha256,
            base_digest=base,
            manifest=manifest_message(manifest),
            examples=examples,
            metrics=metrics,
            noise=noise_message(noise),
        )
        async for attempt in retries(NoAnswer, ChunksMissing, StorageFull, TooManyCalls):
            with attempt:
                begun: pb.BeginUpdateResponse = await self.call("BeginUpdate", begin)
                if begun.HasField("receipt"):
                    return
                missing = chunks_in(begun.missing, manifest.chunks)
                if missing:
                    with measured(self.address, "to") as speed:
                        messages = self._chunks(task, path, manifest, missing, speed)
                        deadline_s = stream_deadline_s(manifest)
                        await self._answer("PutChunks", self._connection.put_chunks, messages, deadline_s)
                commit = pb.CommitUpdateRequest(task=task, digest=manifest.digest, statement=statement)
                await self.call("CommitUpdate", commit, COMMIT_DEADLINE_S)

    async def _chunks(
        self, task: TaskId, path: Path, manifest: Manifest, missing: list[int], speed: Speed
    ) -> AsyncIterator[bytes]:
        sizes = PieceSizes(time.monotonic, self._first_piece["to"])
        self._first_piece["to"] = PIECE_BYTES  # if the stream breaks
        with path.open("rb") as file:
            for index in missing:
                file.seek(index * CHUNK_BYTES)
                chunk = memoryview(file.read(CHUNK_BYTES))
                for piece, more in sizes.cut(chunk) if self._coordinator_takes_pieces else [(chunk, False)]:
                    facts = pb.PutChunksRequest(task=task, digest=manifest.digest, index=index, more=more)
                    yield write_chunk(facts, piece)
                    speed.moved(len(piece))
                    self.traffic.sent_bytes += len(piece)
                    SENT_BYTES.inc(len(piece))
        self._first_piece["to"] = sizes.next_bytes

    async def report_scores(self, task: TaskId, scores: Scores | NotReported) -> None:
        """Reports the scores of an evaluation, or the reason why this client does not report them.

        Raises the errors that the proto file lists for ReportEvaluation.
        """
        if isinstance(scores, NotReported):
            request = pb.ReportEvaluationRequest(task=task, not_reported=NOT_REPORTED[scores])
        else:
            request = pb.ReportEvaluationRequest(task=task, **asdict(scores))  # a score that is None stays absent
        async for attempt in retries(NoAnswer):
            with attempt:
                await self.call("ReportEvaluation", request)

    async def report_progress(self, task: TaskId, stage: str, progress: float) -> None:
        """Reports the progress of a stage, from 0 to 1. A report that fails is not repeated."""
        await self.call("ReportProgress", pb.ReportProgressRequest(task=task, stage=stage, progress=progress))

    async def report_failure(self, task: TaskId, reason: str, message: str, *, permanent: bool) -> None:
        """Reports that a task failed.

        reason: the error's code. message: the error's text. permanent: whether another attempt on this machine would fail, too.
        """
        kind = pb.FAILURE_KIND_PERMANENT if permanent else pb.FAILURE_KIND_TRANSIENT
        request = pb.ReportFailureRequest(task=task, kind=kind, reason=reason, message=message)
        request.instance_id = self._instance
        await self.call("ReportFailure", request)

    async def call(self, method: str, request: Any, deadline_s: float | None = None) -> Any:
        """Makes a unary call and returns its checked answer. deadline_s: if it is not the call's usual one.

        If the coordinator refuses the call because this member calls too often, the method waits, but not for ever: after
        RETRY_FOR_S seconds it raises Unreachable.
        """
        is_slowed, end_s = False, time.monotonic() + RETRY_FOR_S
        deadline_s = deadline_of(method, request) if deadline_s is None else deadline_s
        while True:
            try:
                return await self._answer(method, getattr(self._connection.stub, method), request, deadline_s)
            except TooManyCalls as refusal:
                if time.monotonic() >= end_s:
                    raise Unreachable(address=self.address, problem=str(refusal)) from refusal
                wait_s = rest_s(refusal.retry_s)
                if not is_slowed:
                    log.warning("client.calls_too_often", rpc=method, wait_s=round(wait_s, 1))
                is_slowed = True
                await asyncio.sleep(wait_s)

    async def chunks_of(self, method: str, request: Any, deadline_s: float) -> AsyncIterator[tuple[int, bytes]]:
        """Yields number and bytes of each chunk of a stream. The caller checks both."""
        with self._errors():
            stream = getattr(self._connection.stub, method)(request, metadata=self._metadata, timeout=deadline_s)
            async for message in stream:
                yield message.index, message.data

    async def _answer(self, name: str, method: Any, request: Any, deadline_s: float) -> Any:
        """Makes a call and returns its checked answer. name: name of the method. Raises AnswerInvalid for a bad answer."""
        with self._errors():
            answer = await method(request, metadata=self._metadata, timeout=deadline_s)
        return checked_answer(name, request, answer, self._client)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns a gRPC error inside the block into a typed error, and raises the typed error.

        If the error means that this coordinator cannot serve any more, new calls go to the other coordinator, if there is one.
        """
        address = self._connection.address
        try:
            yield
        except grpc.RpcError as error:
            failure = from_rpc_error(error, address)
            if isinstance(failure, NoAnswer | Overtaken | DiskFailed | BackgroundFailed):
                self._connection.leave(address)
            raise self._proxies.explained(failure) from error


def deadline_of(method: str, request: Any) -> float:
    """Returns the deadline of a unary call in seconds, long enough for its messages on the slowest supported link."""
    answer_bytes = MAX_MESSAGE_BYTES if method in LARGE_ANSWERS else 0
    return CALL_DEADLINE_S + transfer_s(request.ByteSize() + answer_bytes)


def _addresses(coordinator: str, standby: str | None) -> tuple[str, ...]:
    return (coordinator,) if standby is None else (coordinator, standby)


def _secure(identity: Identity) -> OpenChannel:
    return lambda address: secure_channel(identity.at(address), OPTIONS)


def retries(*errors: type[PluralError]) -> AsyncIterator[stamina.Attempt]:
    """Yields attempts at a call. A new attempt follows if the call in the previous attempt raised one of `errors`.

    The waits between attempts grow and are partly random. After RETRY_FOR_S seconds the error of the last attempt is raised.
    """
    return stamina.retry_context(
        on=errors,
        attempts=None,
        timeout=RETRY_FOR_S,
        wait_initial=FIRST_RETRY_S,
        wait_max=LAST_RETRY_S,
        wait_jitter=RETRY_JITTER_S,
    )
