"""A client that does the daemon's work in one task, step by step; only its disk survives its death.

It trains nothing. A delta follows from the task's seed, so it is the same each time it is made.
"""

import asyncio
import contextlib
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from simulation.faults import Faults, Kind
from simulation.network import DEADLINE_S, Killed, Network
from simulation.process import LEASE_S, POLL_HOLD_S
from simulation.update import Update, make_update

from pluralllm.common.errors.tree import (
    Broken,
    ChunksMissing,
    Corrupt,
    DigestMismatch,
    LeaseLost,
    PluralError,
    RoundClosed,
    SessionReplaced,
    StaleSession,
    StorageFull,
    Unreachable,
)
from pluralllm.common.wire.chunk_messages import chunk_reader, write_chunk
from pluralllm.common.wire.messages import PROTOCOL_MAX, PROTOCOL_MIN, ROLES, chunks_in, manifest_from, manifest_message
from pluralllm.common.words.spec import GroupRole, RunSpec
from pluralllm.server.rpc.messages import duration
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1.resources_pb2 import NOT_REPORTED_TOO_FEW_QUESTIONS

RETRY_FOR_S = 30.0
FIRST_RETRY_S, LAST_RETRY_S = 0.2, 3.0
MODELS_KEPT = 2
KEEPS_SCORES = 64  # of 256 evaluations: the client answers them without numbers
MAX_LIVES, MAX_POLLS, MAX_RETRIES = 100_000, 1_000_000, 1000
MAX_MODEL_BYTES = 1_000_000_000
_read_chunk = chunk_reader(pb.GetChunksResponse)


class HistoryRewritten(AssertionError):
    """The coordinator shows another history than before."""


@dataclass(slots=True)
class ClientDisk:
    """The state that survives the client's death."""

    outbox: dict[str, Update] = field(default_factory=dict)  # by task name
    models: dict[str, bytes] = field(default_factory=dict)  # by digest, oldest first
    history: dict[int, str] = field(default_factory=dict)  # record hashes by version


class SimulatedClient:
    """One group's client. `receipts` are the receipts it was given; the test reads them, the client does not."""

    def __init__(self, name: str, spec: RunSpec, network: Network, faults: Faults, seed: int, examples: int) -> None:
        self.name = name
        self.receipts: dict[int, str] = {}  # update digests by round
        self.knows_that_it_is_over = False
        self.knows_the_run = False  # since its last start
        self._spec, self._network, self._faults, self._examples = spec, network, faults, examples
        self._disk = ClientDisk()
        self._draw = random.Random(f"{seed}/{name}")
        self._instance = self._generation = ""

    async def run(self) -> None:
        """Runs the client, starting it again after each death, until the run is over."""
        for life in range(MAX_LIVES):
            try:
                self._instance, self._generation, self.knows_the_run = f"life {life}", "", False
                await self._live()
            except (Killed, SessionReplaced, StorageFull):  # whatever ends a daemon, something starts it again
                await asyncio.sleep(self._draw.uniform(0.05, 2.0))
            else:
                return
        raise AssertionError(f"{self.name} died {MAX_LIVES} times")

    async def _live(self) -> None:
        backoff_s, greeted = FIRST_RETRY_S, False
        for _ in range(MAX_POLLS):
            try:
                if not greeted:
                    await self._hello()
                    greeted = True
                answer = await self._poll()
                backoff_s = FIRST_RETRY_S
                match answer.WhichOneof("answer"):
                    case "task":
                        await self._do(answer.task)
                    case "run_over":
                        self.knows_that_it_is_over = True
                        self._disk.outbox.clear()
                        return
                    case _:  # waits a random time, because the coordinator's hint depends on the machine's speed
                        await asyncio.sleep(self._draw.uniform(0.05, 0.5))
            except StaleSession:
                greeted = False
            except (Unreachable, Broken) as error:
                await asyncio.sleep(backoff_s * self._draw.uniform(0.5, 1.5))
                backoff_s = min(2 * backoff_s, LAST_RETRY_S)
                greeted = greeted and not isinstance(error, Broken)
        raise AssertionError(f"{self.name} polled {MAX_POLLS} times")

    async def _do(self, task: pb.Task) -> None:
        try:
            await self._know(task)
            if task.kind == pb.TASK_KIND_TRAIN:
                await self._train(task)
            else:
                await self._evaluate(task)
        except (RoundClosed, LeaseLost):
            self._disk.outbox.pop(task.name, None)
        except (Unreachable, StaleSession):
            pass  # the update is in the outbox and is pushed next time
        except SessionReplaced:
            raise
        except PluralError as error:
            await self._give_up(task, error)

    async def _give_up(self, task: pb.Task, error: PluralError) -> None:
        permanent = not isinstance(error, Broken | StorageFull)
        if permanent:  # no fault of a simulation leads to a permanent error
            raise AssertionError(f"{self.name} was refused: {error}") from error
        await self._report_failure(task, error.reason)

    async def _report_failure(self, task: pb.Task, reason: str) -> None:
        kind = pb.FAILURE_KIND_TRANSIENT
        with contextlib.suppress(PluralError):
            await self._call("ReportFailure", pb.ReportFailureRequest(task=task.name, kind=kind, reason=reason))

    async def _know(self, task: pb.Task) -> None:
        if not self.knows_the_run:
            [raw] = await self._call("GetRunSpec", pb.GetRunSpecRequest(run=task.run))
            response = pb.GetRunSpecResponse.FromString(raw)
            assert hashlib.sha256(response.spec_json).hexdigest() == task.spec_sha256
            self.knows_the_run = True

    async def _train(self, task: pb.Task) -> None:
        update = self._disk.outbox.get(task.name)
        if update is None or update.base_digest != task.base_digest:
            await self._fetch(task)
            if (fault := self._faults.of_training(self.name)) is not None:
                if fault.kind is Kind.CLIENT_FAILED:
                    await self._report_failure(task, "OUT_OF_MEMORY")
                    return
                await asyncio.sleep(LEASE_S * (1.1 + fault.number % 10 / 10))
            update = make_update(self._spec, task.seed, task.base_digest)
            self._disk.outbox[task.name] = update
        receipt = await self._retried(lambda: self._push(task, update), (Unreachable, ChunksMissing, StorageFull))
        self.receipts[task.round] = receipt
        del self._disk.outbox[task.name]

    async def _push(self, task: pb.Task, update: Update) -> str:
        """Uploads an update and returns the digest in its receipt."""
        begin = pb.BeginUpdateRequest(
            task=task.name,
            spec_sha256=task.spec_sha256,
            base_digest=task.base_digest,
            manifest=manifest_message(update.manifest),
            examples=self._examples,
            metrics=update.metrics,
        )
        [raw] = await self._call("BeginUpdate", begin)
        begun = pb.BeginUpdateResponse.FromString(raw)
        if begun.HasField("receipt"):
            return begun.receipt.update_digest
        digest = update.manifest.digest
        if missing := chunks_in(begun.missing, update.manifest.chunks):
            facts = [pb.PutChunksRequest(task=task.name, digest=digest, index=index) for index in missing]
            chunks = [write_chunk(request, update.chunk(request.index)) for request in facts]
            await self._network.call(self.name, self._draw, "PutChunks", chunks)
        [raw] = await self._call("CommitUpdate", pb.CommitUpdateRequest(task=task.name, digest=digest))
        return pb.CommitUpdateResponse.FromString(raw).receipt.update_digest

    async def _evaluate(self, task: pb.Task) -> None:
        await self._fetch(task)
        score = int(task.base_digest[:4], 16) / 0xFFFF
        request = pb.ReportEvaluationRequest(task=task.name)
        if hashlib.sha256(f"{self.name}{task.base_digest}".encode()).digest()[0] < KEEPS_SCORES:
            request.not_reported = NOT_REPORTED_TOO_FEW_QUESTIONS
        else:
            request.alignment_score, request.alignment_score_base2, request.questions = score, score / 2, 9
        await self._retried(lambda: self._call("ReportEvaluation", request), (Unreachable,))

    async def _fetch(self, task: pb.Task) -> None:
        """Downloads and verifies the base model, and checks it against the history seen so far. Raises HistoryRewritten."""
        request = pb.GetManifestRequest(run=task.run, version=task.base_version)
        [raw] = await self._call("GetManifest", request)
        response = pb.GetManifestResponse.FromString(raw)
        manifest = manifest_from(response.manifest, MAX_MODEL_BYTES)
        if manifest.digest != task.base_digest:
            raise DigestMismatch(what="the base", expected=task.base_digest, got=manifest.digest)
        models = self._disk.models
        if manifest.digest not in models:
            fetch = lambda: self._fetch_chunks(task, manifest.chunk_hashes)  # noqa: E731
            models[manifest.digest] = await self._retried(fetch, (Unreachable, Corrupt))
            for old in list(models)[:-MODELS_KEPT]:
                del models[old]
        history, link = self._disk.history, response.model
        shown = (link.record_sha256, link.record_sha256, link.parent_record_sha256)
        seen_before = (task.base_record_sha256, history.get(link.version), history.get(link.version - 1))
        if any(before not in (None, now) for now, before in zip(shown, seen_before, strict=True)):
            raise HistoryRewritten(f"version {link.version} is not the one {self.name} saw before")
        history[link.version] = link.record_sha256

    async def _fetch_chunks(self, task: pb.Task, hashes: Sequence[bytes]) -> bytes:
        raw = await self._call("GetChunks", pb.GetChunksRequest(run=task.run, version=task.base_version))
        chunks = [_read_chunk(message) for message in raw]
        for index, (chunk, expected) in enumerate(zip(chunks, hashes, strict=True)):
            digest = hashlib.sha256(chunk.data).digest()
            if digest != expected or chunk.facts.index != index:
                raise Corrupt(what=f"chunk {index}", expected=expected.hex(), got=digest.hex())
        return b"".join(chunk.data for chunk in chunks)

    async def _hello(self) -> None:
        request = pb.HelloRequest(
            protocol=pb.ProtocolRange(min=PROTOCOL_MIN, max=PROTOCOL_MAX),
            software_version="simulated",
            instance_id=self._instance,
            group=f"group of {self.name}",
            role=ROLES[GroupRole.TRAIN],
            training_questions=self._examples,
        )
        [raw] = await self._call("Hello", request)
        self._generation = pb.HelloResponse.FromString(raw).generation

    async def _poll(self) -> pb.PollResponse:
        request = pb.PollRequest(
            protocol=PROTOCOL_MAX,
            generation=self._generation,
            instance_id=self._instance,
            following=["simulated"] if self.knows_the_run else [],
            hold=duration(POLL_HOLD_S),
        )
        [raw] = await self._call("Poll", request, POLL_HOLD_S + DEADLINE_S)
        return pb.PollResponse.FromString(raw)

    async def _call(self, method: str, request: Any, deadline_s: float = DEADLINE_S) -> list[bytes]:
        raw = [request.SerializeToString()]
        return await self._network.call(self.name, self._draw, method, raw, deadline_s)

    async def _retried(self, work: Any, on: tuple[type[PluralError], ...]) -> Any:
        """Repeats the work after these errors, for as long as a daemon would. Raises the error of the last attempt."""
        until_s = asyncio.get_running_loop().time() + RETRY_FOR_S
        for attempt in range(MAX_RETRIES):
            try:
                return await work()
            except on:
                if asyncio.get_running_loop().time() >= until_s:
                    raise
            await asyncio.sleep(min(LAST_RETRY_S, FIRST_RETRY_S * 2**attempt) * self._draw.uniform(0.5, 1.5))
        raise AssertionError(f"{MAX_RETRIES} tries in {RETRY_FOR_S} s")
