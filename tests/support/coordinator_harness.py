"""A real coordinator behind a real gRPC server on loopback, with a fake clock and clients that a test drives by hand."""

import asyncio
import base64
import contextlib
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from pluralllm.common.errors.grpc_status import from_rpc_error
from pluralllm.common.predictor.architecture import update_layout
from pluralllm.common.process.clock import Clock, FakeClock
from pluralllm.common.trust.certificates import PrivateKey, make_request, new_key
from pluralllm.common.trust.identity import Identity, Membership, load_identity, save_identity
from pluralllm.common.trust.record_signatures import RecordSigner
from pluralllm.common.weights.chunks import CHUNK_BYTES, Manifest
from pluralllm.common.weights.layout import Layout, write_weights
from pluralllm.common.wire.channels import secure_channel
from pluralllm.common.wire.messages import PROTOCOL_MAX, PROTOCOL_MIN, ROLES, manifest_message
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole, RunSpec
from pluralllm.server.composition import running
from pluralllm.server.members.access import ALL_RUNS, Principal
from pluralllm.server.members.authority import create_authority
from pluralllm.server.members.invite_order import InviteOrder
from pluralllm.server.members.record_key import record_key_of
from pluralllm.server.members.registry import Registry
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.rpc.messages import duration
from pluralllm.server.runs.assembly import Assembly
from pluralllm.server.runs.coordinator import Coordinator
from pluralllm.server.storage.membership import Member
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1 import federation_pb2_grpc, operations_pb2, operations_pb2_grpc, resources_pb2

DEADLINE_S = 20.0
PATIENCE_S = 5.0  # until a client must have a task: the coordinator's loop may be late, and looks every 50 ms at most
QUESTIONS = 50  # of a hand-driven client, as its Hello states
BOOTSTRAP = Principal(ClientId("bootstrap"), MemberRole.ADMIN)


def small_spec(**changes: Any) -> RunSpec:
    """Returns the spec of a run of a tiny predictor that ends in seconds; tables in `changes` are merged into its tables."""
    values: dict[str, Any] = {
        "rounds": 2,
        "seed": 5,
        "round": {"min_clients": 2, "target_clients": 2, "evaluate_every": 100, "gather_s": 30, "deadline_s": 100},
        "predictor": {"d_model": 8, "layers": 1, "heads": 2, "feedforward": 8, "embedder_layers": 2},
        "embedding": {"model": "tiny", "dimension": 8},
    }
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(values.get(key), dict) and "architecture" not in value
        values[key] = {**values[key], **value} if both else value
    return RunSpec.model_validate(values)


@dataclasses.dataclass
class Served:
    """A running coordinator and a channel to it for its administrator."""

    address: str
    parts: Assembly
    registry: Registry
    clock: Clock
    channel: grpc.aio.Channel
    operations: "operations_pb2_grpc.OperationsServiceAsyncStub"
    identities: Path
    enrolment_address: str = ""
    channels: dict[str, grpc.aio.Channel] = dataclasses.field(default_factory=dict)

    @property
    def coordinator(self) -> Coordinator:
        return self.parts.coordinator

    async def create(self, run_id: str, spec: RunSpec, *, start: bool = True) -> None:
        request = operations_pb2.CreateRunRequest(run_id=run_id, spec_json=spec.canonical_json())
        await self.operations.CreateRun(request, timeout=DEADLINE_S)
        if start:
            await self.operations.StartRun(operations_pb2.StartRunRequest(name=f"runs/{run_id}"), timeout=DEADLINE_S)

    async def run(self, run_id: str) -> resources_pb2.Run:
        response = await self.operations.GetRun(operations_pb2.GetRunRequest(name=f"runs/{run_id}"), timeout=DEADLINE_S)
        return response.run

    async def member(
        self,
        name: str,
        role: MemberRole,
        group: str = "",
        group_role: GroupRole = GroupRole.TRAIN,
        runs: tuple[str, ...] = (ALL_RUNS,),
        max_examples: int = 0,
    ) -> Identity:
        """Returns the identity of a member; invites and joins it on the first call, without the enrolment port.

        runs: the runs that an observer may read; other roles have none.

        The key stays in the folder, so the member is the same after the coordinator restarts.
        """
        folder = self.identities / name
        if (folder / "credentials.pem").exists():
            return load_identity(folder, "test").at(self.address)
        order = InviteOrder(
            name=name,
            role=role,
            group=group,
            group_role=group_role if role is MemberRole.CLIENT else None,
            max_examples=max_examples,
            runs=runs if role is MemberRole.OBSERVER else (),
        )
        _, token = await self.registry.invite(BOOTSTRAP, order)
        key = new_key()
        member, chain = await self.registry.join(name, token, make_request(key, name))
        return keep_identity(folder, self.registry, member, key, chain, self.address)

    def channel_of(self, identity: Identity) -> grpc.aio.Channel:
        """Returns the member's channel, one for each member; it is closed with the coordinator."""
        name = identity.membership.name
        if name not in self.channels:
            self.channels[name] = secure_channel(identity)
        return self.channels[name]

    async def client(self, name: str, role: GroupRole = GroupRole.TRAIN, group: str = "") -> "HandClient":
        group = group or f"group of {name}"
        identity = await self.member(name, MemberRole.CLIENT, group, role)
        client = HandClient(self.channel_of(identity), name, role, group)
        await client.hello()
        return client


def keep_identity(
    folder: Path, registry: Registry, member: Member, key: PrivateKey, chain: bytes, address: str
) -> Identity:
    is_client = member.role is MemberRole.CLIENT
    membership = Membership(
        federation=registry.authority.federation,
        name=member.name,
        role=member.role,
        group=member.group,
        group_role=member.group_role if is_client else None,
        coordinator=address,
        enrolment=address,
        record_key=base64.b64encode(RecordSigner("", record_key_of(registry.authority.folder)).public_der).decode(),
    )
    return save_identity(folder, membership, registry.authority.root_pem, key, chain)


class HandClient:
    """A client whose calls, which a daemon would make by itself, the test makes one by one."""

    def __init__(self, channel: grpc.aio.Channel, name: str, role: GroupRole, group: str) -> None:
        self.name = name
        self.stub: Any = federation_pb2_grpc.FederationServiceStub(channel)
        self.role = role
        self.group = group
        self.questions = QUESTIONS
        self.instance = "first"
        self.generation = ""
        self.chunks_sent = 0

    async def call(self, method: str, request: Any, timeout_s: float = DEADLINE_S) -> Any:
        """Makes one unary or client-stream call. Raises the error from the tree that the coordinator answered with."""
        try:
            return await getattr(self.stub, method)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, "the coordinator") from error

    async def hello(self) -> pb.HelloResponse:
        request = pb.HelloRequest(
            protocol=pb.ProtocolRange(min=PROTOCOL_MIN, max=PROTOCOL_MAX),
            software_version="test",
            instance_id=self.instance,
            group=self.group,
            role=ROLES[self.role],
            training_questions=self.questions,
        )
        response: pb.HelloResponse = await self.call("Hello", request)
        self.generation = response.generation
        return response

    async def poll(self, held: str = "", following: Iterable[str] = (), hold_s: float = 0.0) -> pb.PollResponse:
        request = pb.PollRequest(
            protocol=PROTOCOL_MAX,
            generation=self.generation,
            instance_id=self.instance,
            held_task=held,
            following=following,
            hold=duration(hold_s),
        )
        response: pb.PollResponse = await self.call("Poll", request)
        return response

    async def task(self, hold_s: float = 10.0) -> pb.Task:
        """Polls until the coordinator gives a task: at least twenty times, and at least for some seconds."""
        until_s = time.monotonic() + PATIENCE_S
        for polls in itertools.count(1):
            answer = await self.poll(hold_s=hold_s)
            if answer.WhichOneof("answer") == "task":
                return answer.task
            if polls >= 20 and time.monotonic() >= until_s:
                break
        raise AssertionError("no task came")

    async def begin(
        self,
        task: pb.Task,
        manifest: Manifest,
        examples: int = QUESTIONS,
        metrics: Mapping[str, float] | None = None,
        **changes: Any,
    ) -> pb.BeginUpdateResponse:
        request = pb.BeginUpdateRequest(
            task=task.name,
            spec_sha256=task.spec_sha256,
            base_digest=task.base_digest,
            manifest=manifest_message(manifest),
            examples=examples,
            metrics=metrics or {},
        )
        for field, value in changes.items():
            setattr(request, field, value)
        response: pb.BeginUpdateResponse = await self.call("BeginUpdate", request)
        return response

    async def put(self, task: pb.Task, path: Path, manifest: Manifest, chunks: Iterable[int]) -> pb.PutChunksResponse:
        content = await asyncio.to_thread(path.read_bytes)

        async def messages() -> AsyncIterator[pb.PutChunksRequest]:
            for index in chunks:
                data = content[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                self.chunks_sent += 1
                yield pb.PutChunksRequest(task=task.name, digest=manifest.digest, index=index, data=data)

        response: pb.PutChunksResponse = await self.call("PutChunks", messages())
        return response

    async def commit(self, task: pb.Task, manifest: Manifest) -> resources_pb2.Receipt:
        request = pb.CommitUpdateRequest(task=task.name, digest=manifest.digest)
        response: pb.CommitUpdateResponse = await self.call("CommitUpdate", request)
        return response.receipt

    async def push(
        self, task: pb.Task, path: Path, manifest: Manifest, examples: int = QUESTIONS, **metrics: float
    ) -> resources_pb2.Receipt:
        """Sends a whole update: begins it, puts the missing chunks, commits it."""
        begun = await self.begin(task, manifest, examples, metrics)
        missing = [index for piece in begun.missing for index in range(piece.first, piece.last + 1)]
        if missing:
            await self.put(task, path, manifest, missing)
        return await self.commit(task, manifest)

    async def evaluate(self, task: pb.Task, score: float = 0.7, gain: float | None = None) -> None:
        request = pb.ReportEvaluationRequest(
            task=task.name, alignment_score=score, alignment_score_base2=score / 2, questions=9, context_gain=gain
        )
        await self.call("ReportEvaluation", request)

    async def keep_scores(self, task: pb.Task, reason: "resources_pb2.NotReported.ValueType", **numbers: Any) -> None:
        """Answers an evaluation with the reason why the client does not report its scores."""
        await self.call("ReportEvaluation", pb.ReportEvaluationRequest(task=task.name, not_reported=reason, **numbers))


def delta(layout: Layout, seed: int) -> NDArray[np.float32]:
    """A small random update, shape [layout.values]."""
    return np.random.default_rng(seed).normal(0, 0.01, layout.values).astype(np.float32)


def write_delta(path: Path, spec: RunSpec, seed: int, base_version: int = 0) -> Manifest:
    """Writes a well-formed update of a version."""
    layout = update_layout(spec, base_version)
    return write_weights(path, layout, [delta(layout, seed)])


@contextlib.asynccontextmanager
async def serving(
    state_dir: Path, clock: Clock | None = None, wall_s: Callable[[], float] = time.time, **settings: Any
) -> AsyncIterator[Served]:
    """Runs a coordinator over this state directory until the block ends; hand-driven clients may be silent for long."""
    clock = clock or FakeClock()
    values = {"listen": "127.0.0.1:0", "enrolment_listen": "127.0.0.1:0", "silence_s": 10_000}
    config = ServerConfig(**{"state_dir": state_dir, **values, **settings})
    if not (state_dir / "authority" / "federation.json").exists():
        create_authority(state_dir / "authority", "test", ["127.0.0.1"], None, time.time())
    async with contextlib.AsyncExitStack() as stack:
        coordinator = await stack.enter_async_context(running(config, clock, wall_s))
        assert coordinator.registry is not None
        identities = state_dir.parent / f"{state_dir.name}-identities"
        admin = await administrator(coordinator.registry, identities / "admin", coordinator.address)
        channel = await stack.enter_async_context(secure_channel(admin))
        operations: Any = operations_pb2_grpc.OperationsServiceStub(channel)
        served = Served(
            coordinator.address,
            coordinator.parts,
            coordinator.registry,
            clock,
            channel,
            operations,
            identities,
            coordinator.enrolment_address,
        )
        stack.push_async_callback(close_all, served.channels)
        yield served


async def close_all(channels: dict[str, grpc.aio.Channel]) -> None:
    for channel in channels.values():
        await channel.close()


async def administrator(registry: Registry, folder: Path, address: str) -> Identity:
    if (folder / "credentials.pem").exists():
        return load_identity(folder, "test").at(address)
    key = new_key()
    chain = await registry.make_admin(ClientId("admin"), key.public_key())
    member = next(member for member in registry.members() if member.name == "admin")
    return keep_identity(folder, registry, member, key, chain, address)


async def until_phase(
    served: Served, run: str, phase: "resources_pb2.RunPhase.ValueType", number: int | None = None
) -> resources_pb2.Run:
    """Waits until the coordinator's own loop brings the run into this phase, at most 200 times."""
    for _ in range(200):
        run_message = await served.run(run)
        if run_message.phase == phase and number in (None, run_message.round):
            return run_message
        rings_before = served.parts.run_bell.rings
        await served.parts.run_bell.wait(rings_before, 0.05)
    raise AssertionError(
        f"{resources_pb2.RunPhase.Name(run_message.phase)} in round {run_message.round}: {run_message.next}"
    )


async def pass_first_evaluation(*clients: HandClient) -> None:
    for client in clients:
        task = await client.task()
        assert task.kind == pb.TASK_KIND_EVALUATE
        await client.evaluate(task)


async def evaluated(served: Served, **answers: "float | resources_pb2.NotReported.ValueType") -> None:
    """Plays the first evaluation of the run r. Each client, by its name, answers with its score or why it reports none."""
    clients = [await served.client(name) for name in answers]
    await served.create("r", small_spec(round={"target_clients": len(clients)}))
    for client, answer in zip(clients, answers.values(), strict=True):
        task = await client.task()
        await (client.evaluate(task, answer) if isinstance(answer, float) else client.keep_scores(task, answer))
    await until_phase(served, "r", resources_pb2.RUN_PHASE_COLLECTING, 1)


async def advance(served: Served, seconds: float) -> None:
    """Moves the fake clock in steps shorter than a lease, so that silent clients keep their slots."""
    assert isinstance(served.clock, FakeClock)
    served.clock.advance(seconds)
    served.coordinator.wake()
