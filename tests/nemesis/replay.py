"""A thief of a client's key, who sends the client's calls again: unchanged, in another order, or with other bytes."""

import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from drill.private_clients import SAID
from nemesis.client import SENT

from pluralllm.common.errors.grpc_status import from_rpc_error
from pluralllm.common.errors.tree import Broken, NoAnswer, StorageFull
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.weights.chunks import CHUNK_BYTES, Manifest, manifest_of
from pluralllm.common.wire.channels import credentials
from pluralllm.common.wire.chunk_messages import write_chunk
from pluralllm.common.wire.messages import PROTOCOL_MAX, manifest_message
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1 import federation_pb2_grpc, resources_pb2

DEADLINE_S = 5.0
TASKS_AT_ONCE = 3
MESSAGES_AT_ONCE = 8
IDENTICAL = "identical receipt"


@dataclass
class Replays:
    """The outcomes of all replayed calls of a federation; several threads write here."""

    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    _receipts: dict[str, bytes] = field(default_factory=dict)  # by task, as in the first answer
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def refused(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome.startswith("refused"))

    def note(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1

    def note_receipt(self, task: str, receipt: resources_pb2.Receipt, sent_digest: str) -> None:
        """Checks that every receipt of a task is the same."""
        with self._lock:
            self.outcomes[IDENTICAL] += 1
            first = self._receipts.setdefault(task, receipt.SerializeToString(deterministic=True))
            if first != receipt.SerializeToString(deterministic=True):
                self.problems.append(f"{task}: a second receipt differs from the first: {receipt}")
            if receipt.update_digest != sent_digest:
                self.problems.append(f"{task}: a receipt for other bytes than those sent")


def replay(home: Path, address: str, number: int, replays: Replays) -> None:
    """Replays some of the client's calls over a channel of its own; ignores calls that get no answer."""
    draw = random.Random(number)
    sent = sorted((home / SENT).glob("*.json"))
    chosen = draw.sample(sent, min(TASKS_AT_ONCE, len(sent)))
    identity = load_identity(home / "state" / "identity", "pluralllm-client")
    with grpc.secure_channel(address, credentials(identity)) as channel:
        put_chunks: Any = channel.stream_unary(
            "/pluralllm.v1.FederationService/PutChunks", None, pb.PutChunksResponse.FromString
        )
        thief = _Thief(federation_pb2_grpc.FederationServiceStub(channel), put_chunks, draw, replays)
        thief.poll()
        for path in chosen:
            thief.send(json.loads(path.read_text()), path.with_suffix(".bytes"))
        said = sorted(path for path in (home / SAID).glob("*") if not path.suffix)
        for path in draw.sample(said, min(MESSAGES_AT_ONCE, len(said))):
            thief.say(pb.PutRoundStepRequest.FromString(path.read_bytes()))


@dataclass
class _Thief:
    stub: Any
    put_chunks: Any
    draw: random.Random
    replays: Replays

    def poll(self) -> None:
        """Polls as an instance that the coordinator does not know."""
        self._try(self.stub.Poll, pb.PollRequest(protocol=PROTOCOL_MAX, generation="old", instance_id="a thief"))

    def send(self, facts: dict[str, Any], path: Path) -> None:
        """Sends an update's calls in a seeded order, some twice; then, if it has its receipt, the same with other bytes."""
        content, manifest = path.read_bytes(), manifest_of(path)
        steps = ["begin", "put", "commit"]
        order = self.draw.choice((steps, steps * 2, [self.draw.choice(steps) for _ in range(4)], steps[::-1]))
        for step in order:
            self._step(step, facts, content, manifest)
        response = self._try(self.stub.CommitUpdate, _commit(facts, manifest))
        if response is None:  # while the task is open, other bytes may replace the owner's update
            return
        self.replays.note_receipt(facts["task"], response.receipt, manifest.digest)
        other = bytearray(content)
        other[-1] ^= 1
        changed = path.with_suffix(f".{self.draw.getrandbits(64):x}")
        changed.write_bytes(bytes(other))
        forged = manifest_of(changed)
        changed.unlink()
        for step in steps:
            if self._step(step, facts, bytes(other), forged) is not None:
                self.replays.problems.append(f"{facts['task']}: {step} with other bytes was accepted after the receipt")

    def say(self, request: pb.PutRoundStepRequest) -> None:
        """Sends a message of a private round again, and then one that its member has not signed."""
        self._try(self.stub.PutRoundStep, request)
        forged, kind = pb.PutRoundStepRequest.FromString(request.SerializeToString()), request.WhichOneof("body")
        signed = forged.shares.boxes[0] if kind == "shares" else getattr(forged, kind or "keys")
        signed.signature = signed.signature[:-1] + bytes([signed.signature[-1] ^ 1])
        if self._try(self.stub.PutRoundStep, forged) is not None:
            self.replays.problems.append(f"{request.task}: {kind} with another signature was accepted")

    def _step(self, step: str, facts: dict[str, Any], content: bytes, manifest: Manifest) -> Any:
        task = facts["task"]
        match step:
            case "begin":
                request = pb.BeginUpdateRequest(
                    task=task,
                    spec_sha256=facts["spec_sha256"],
                    base_digest=facts["base"],
                    manifest=manifest_message(manifest),
                    examples=facts["examples"],
                    metrics=facts["metrics"],
                )
                response = self._try(self.stub.BeginUpdate, request)
                if response is not None and response.HasField("receipt"):
                    self.replays.note_receipt(task, response.receipt, manifest.digest)
            case "put":
                response = self._try(self.put_chunks, self._chunks(task, content, manifest))
            case _:
                response = self._try(self.stub.CommitUpdate, _commit(facts, manifest))
                if response is not None:
                    self.replays.note_receipt(task, response.receipt, manifest.digest)
        return response

    def _chunks(self, task: str, content: bytes, manifest: Manifest) -> Iterator[bytes]:
        for index in self.draw.sample(range(manifest.chunks), manifest.chunks):
            data = content[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
            yield write_chunk(pb.PutChunksRequest(task=task, digest=manifest.digest, index=index), data)

    def _try(self, call: Any, request: Any) -> Any:
        """Returns the answer; None if the call is refused or gets no answer."""
        try:
            response = call(request, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            refusal = from_rpc_error(error, "the coordinator")
            if isinstance(refusal, Broken | NoAnswer | StorageFull):
                self.replays.note("no answer")
            else:
                self.replays.note(f"refused: {type(refusal).__name__}")
            return None
        return response


def _commit(facts: dict[str, Any], manifest: Manifest) -> pb.CommitUpdateRequest:
    statement = bytes.fromhex(facts["statement"])
    return pb.CommitUpdateRequest(task=facts["task"], digest=manifest.digest, statement=statement)
