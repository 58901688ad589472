"""A thief of a client's key, who sends again what the client has sent: as it was, in another order, with other bytes."""

import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from nemesis.client import SENT

from pluralllm.common.errors.grpc_status import from_rpc_error
from pluralllm.common.errors.tree import Broken, StorageFull, Unreachable
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.weights.chunks import CHUNK_BYTES, Manifest, manifest_of
from pluralllm.common.wire.channels import credentials
from pluralllm.common.wire.chunk_messages import write_chunk
from pluralllm.common.wire.messages import PROTOCOL_MAX, manifest_message
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1 import federation_pb2_grpc, resources_pb2

DEADLINE_S = 5.0
TASKS_AT_ONCE = 3
IDENTICAL = "identical receipt"


@dataclass
class Replays:
    """What became of all replayed calls of a federation; several threads write here."""

    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    _receipts: dict[str, bytes] = field(default_factory=dict)  # by task, as the first answer had it
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def refused(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome.startswith("refused"))

    def note(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1

    def note_receipt(self, task: str, receipt: resources_pb2.Receipt, sent_digest: str) -> None:
        """Every receipt of a task is the same one."""
        with self._lock:
            self.outcomes[IDENTICAL] += 1
            first = self._receipts.setdefault(task, receipt.SerializeToString(deterministic=True))
            if first != receipt.SerializeToString(deterministic=True):
                self.problems.append(f"{task}: a second receipt differs from the first: {receipt}")
            if receipt.update_digest != sent_digest:
                self.problems.append(f"{task}: a receipt for other bytes than those sent")


def replay(home: Path, address: str, number: int, replays: Replays) -> None:
    """Some of what a client has sent so far, by a stub of its own. What does not answer is passed over."""
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


@dataclass
class _Thief:
    stub: Any
    put_chunks: Any
    draw: random.Random
    replays: Replays

    def poll(self) -> None:
        """As an instance that nobody knows."""
        self._try(self.stub.Poll, pb.PollRequest(protocol=PROTOCOL_MAX, generation="old", instance_id="a thief"))

    def send(self, facts: dict[str, Any], path: Path) -> None:
        """All calls of an update in a seeded order, some twice; then the same for other bytes, if the update has its receipt."""
        content, manifest = path.read_bytes(), manifest_of(path)
        steps = ["begin", "put", "commit"]
        order = self.draw.choice((steps, steps * 2, [self.draw.choice(steps) for _ in range(4)], steps[::-1]))
        for step in order:
            self._step(step, facts, content, manifest)
        found = self._try(self.stub.CommitUpdate, pb.CommitUpdateRequest(task=facts["task"], digest=manifest.digest))
        if found is None:  # an open task: with other bytes the owner itself would be robbed, and rightly so
            return
        self.replays.note_receipt(facts["task"], found.receipt, manifest.digest)
        other = bytearray(content)
        other[-1] ^= 1
        changed = path.with_suffix(f".{self.draw.getrandbits(64):x}")
        changed.write_bytes(bytes(other))
        forged = manifest_of(changed)
        changed.unlink()
        for step in steps:
            if self._step(step, facts, bytes(other), forged) is not None:
                self.replays.problems.append(f"{facts['task']}: {step} with other bytes was accepted after the receipt")

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
                found = self._try(self.stub.BeginUpdate, request)
                if found is not None and found.HasField("receipt"):
                    self.replays.note_receipt(task, found.receipt, manifest.digest)
            case "put":
                found = self._try(self.put_chunks, self._chunks(task, content, manifest))
            case _:
                found = self._try(self.stub.CommitUpdate, pb.CommitUpdateRequest(task=task, digest=manifest.digest))
                if found is not None:
                    self.replays.note_receipt(task, found.receipt, manifest.digest)
        return found

    def _chunks(self, task: str, content: bytes, manifest: Manifest) -> Iterator[bytes]:
        for index in self.draw.sample(range(manifest.chunks), manifest.chunks):
            data = content[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
            yield write_chunk(pb.PutChunksRequest(task=task, digest=manifest.digest, index=index), data)

    def _try(self, call: Any, request: Any) -> Any:
        """The answer; None if it is a refusal."""
        try:
            found = call(request, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            found_error = from_rpc_error(error, "the coordinator")
            if isinstance(found_error, Broken | StorageFull | Unreachable):
                self.replays.note("no answer")
            else:
                self.replays.note(f"refused: {type(found_error).__name__}")
            return None
        return found
