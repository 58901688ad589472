"""A private round over a real gRPC server: members with the real steps of a client, and a coordinator with the real store."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray
from private.evil_coordinator import CONFIRM, KEYS, REVEAL, SHARES, STEPS, UPDATE, Client, pins_of
from support.coordinator_harness import HandClient, Served, serving, small_spec
from support.private_members import NAMES, member_key

from pluralllm.client.private_rounds.masking import MaskingSecrets
from pluralllm.client.private_rounds.membership import Myself
from pluralllm.client.work.masking import mask_update
from pluralllm.client.work.orders import Mask
from pluralllm.common.errors.grpc_status import from_rpc_error
from pluralllm.common.errors.private_rounds import WrongStep
from pluralllm.common.errors.tree import (
    AlreadyCommitted,
    InvalidArgument,
    LeaseLost,
    NotFound,
    PluralError,
    StoreFailed,
    WrongLayout,
)
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.private_rounds.messages import (
    Confirmation,
    Reveal,
    Share,
    Shares,
    UpdateStatement,
    digest_of_members,
)
from pluralllm.common.private_rounds.peer_keys import endorsed, public_der
from pluralllm.common.private_rounds.ring import Ring
from pluralllm.common.private_rounds.round_view import RoundView
from pluralllm.common.private_rounds.statements import RoundTerms, dealers_digest
from pluralllm.common.private_rounds.transcript import Transcript
from pluralllm.common.process.files import publish
from pluralllm.common.trust.certificates import key_from_pem
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.weights.layout import Layout, write_weights
from pluralllm.common.weights.stored_weights import StoredWeights, read_values
from pluralllm.common.wire.messages import PRIVATE_ROUNDS
from pluralllm.common.wire.round_steps import StepBody, step_request, view_of
from pluralllm.common.words.ids import ClientId, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.names import TaskKind, TaskName
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.commands.verify import verify_state
from pluralllm.server.storage.sql_membership import SqlMembership
from pluralllm.server.storage.sql_store import SqlStore
from pluralllm.server.storage.store import Change
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1 import resources_pb2 as rpb

MEMBERS = NAMES[:4]
CLIP_NORM = 4.0
MOST_WEIGHT = 100
SPEC = small_spec(
    rounds=3,
    private_rounds={"colluders": 1, "clip_norm": CLIP_NORM, "step_s": 1000.0, "closing_scores": False},
    round={"min_clients": 3, "target_clients": 4, "gather_s": 0.001, "grace_after_quorum_s": 1e6, "evaluate_every": 9},
    aggregation={"max_examples": MOST_WEIGHT},
)
LAYOUT: Layout = layout_for(SPEC)


class SmallClient(Client):
    """A client whose update has the layout of SPEC."""

    def delta(self) -> NDArray[np.float32]:
        rng = np.random.default_rng(list(self.seed.encode()))
        return rng.normal(0, 0.01, LAYOUT.values).astype(np.float32)

    def _mask(self, secrets: MaskingSecrets, members: int) -> None:
        write_weights(self.folder / "delta.safetensors", LAYOUT, [self.delta()])
        order: Mask = replace(self.order(secrets, members), clip_norm=CLIP_NORM)
        order = replace(order, most_weight=MOST_WEIGHT, most_metric_weight=MOST_WEIGHT)
        mask_update(order, lambda done, total: None)
        publish(order.out, self.outbox)


class Member:
    """A member of the federation: its calls, and its steps."""

    def __init__(self, hand: HandClient, folder: Path) -> None:
        self.hand, self.name, self.folder = hand, hand.name, folder
        self.task = pb.Task()
        self.view: RoundView | None = None  # as it was shown last
        self.client: SmallClient | None = None

    async def go(self, phase: int) -> None:
        """Asks for the task until it names this step, and takes it. Enough others may have ended the step already."""
        for _ in range(100):
            self.task = await self.hand.task()
            if self.task.phase >= phase:
                break
            await asyncio.sleep(0.02)
        if self.task.phase == phase:
            await self.send(await self.answer())

    async def answer(self) -> StepBody | UpdateStatement:
        phase = self.task.phase
        request = pb.GetRoundStepRequest(task=self.task.name, phase=phase)
        self.view = view_of(await self.hand.call("GetRoundStep", request))
        return self.ready(self.view.terms).answer(phase, self.view)

    def ready(self, terms: RoundTerms) -> SmallClient:
        if self.client is None or self.client.me.terms != terms:
            me = Myself(self.name, member_key(self.name), terms, pins_of(MEMBERS), 1, 2, checked=True)
            self.client = SmallClient(self.name, self.folder, me)
        return self.client

    async def send(self, message: StepBody | UpdateStatement) -> None:
        if not isinstance(message, UpdateStatement):
            assert self.client is not None
            put = step_request(self.task.name, self.client.me.terms.sha256, message)
            await self.hand.call("PutRoundStep", put)
            return
        assert self.client is not None
        manifest = manifest_of(self.client.outbox)
        begun = await self.hand.begin(self.task, manifest, 1, {})
        if not begun.HasField("receipt"):
            await self.hand.put(self.task, self.client.outbox, manifest, range(manifest.chunks))
        request = pb.CommitUpdateRequest(task=self.task.name, digest=manifest.digest, statement=message.signature)
        await self.hand.call("CommitUpdate", request)
        self.client.has_receipt = True


async def hello(hand: HandClient, served: Served, *, knows_private_rounds: bool = True) -> None:
    """Says Hello with a peer key."""
    identity = await served.member(hand.name, MemberRole.CLIENT, hand.group, hand.role)
    federation, key = identity.membership.federation, member_key(hand.name)
    der = public_der(key)
    request = pb.HelloRequest(
        protocol=pb.ProtocolRange(min=1, max=1),
        software_version="test",
        instance_id=hand.instance,
        group=hand.group,
        role=rpb.GROUP_ROLE_TRAIN,
        training_questions=50,
        capabilities=[PRIVATE_ROUNDS] if knows_private_rounds else [],
        peer_key=pb.PeerKey(
            key_der=der,
            endorsement=endorsed(key_from_pem(identity.key_pem), federation, hand.name, der),
            proof=endorsed(key, federation, hand.name, der),
        ),
    )
    hand.generation = (await hand.call("Hello", request)).generation


async def members_of(
    served: Served, folder: Path, names: Sequence[str] = MEMBERS, others: Sequence[HandClient] = ()
) -> list[Member]:
    """Returns members whose first evaluation is done, so that the first round is open."""
    members: list[Member] = []
    hands = [await served.client(name) for name in names]  # all are known before a run could start without them
    for name, hand in zip(names, hands, strict=True):
        await hello(hand, served)
        (folder / name).mkdir(parents=True, exist_ok=True)
        members.append(Member(hand, folder / name))
    if others:  # fewer members than target_clients: the run waits for more
        for _ in range(100):
            if served.parts.runs.get("r").state.gathered_s is not None:
                break
            await asyncio.sleep(0.02)
        served.clock.advance(1.0)  # type: ignore[attr-defined]
    if (await served.run("r")).phase in (rpb.RUN_PHASE_WAITING, rpb.RUN_PHASE_EVALUATING):
        for hand in (*(member.hand for member in members), *others):
            await hand.evaluate(await hand.task())
    return members


async def play(members: Sequence[Member], *phases: int) -> None:
    """Lets all members take some steps."""
    for phase in phases:
        for member in members:
            await member.go(phase)


async def stored(served: Served, version: int) -> NDArray[np.float32]:
    record = await served.parts.store.version(RunId("r"), ModelVersion(version))
    assert record is not None
    return read_values(StoredWeights(await served.parts.blobs.path(record.digest), record.digest))


async def clean(served: Served, folder: Path) -> int:
    """Runs `verify`. Returns how many versions it has computed again."""
    store = served.parts.store
    assert isinstance(store, SqlStore)
    report = await verify_state(store, SqlMembership(store), served.parts.blobs, folder)
    assert report.is_clean, report.lines()
    return report.aggregates_repeated


async def until_version(served: Served, version: int) -> None:
    for _ in range(400):
        if (await served.run("r")).version >= version:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"no version {version}: {await served.run('r')}")


def plain_mean(members: Sequence[Member]) -> NDArray[np.float64]:
    """Returns the mean of the members' deltas, weighted as they weigh themselves."""
    clients = [member.client for member in members if member.client is not None]
    total = sum(len(client.name) * client.delta().astype(np.float64) for client in clients)
    return np.asarray(total / sum(len(client.name) for client in clients))


async def test_a_private_round_makes_the_mean_of_updates_that_the_coordinator_has_not_read(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", SPEC)
        members = await members_of(served, tmp_path / "clients")
        await play(members, KEYS, SHARES, UPDATE, CONFIRM)
        await play(members[:3], REVEAL)
        await until_version(served, 1)
        step = (await stored(served, 1)).astype(np.float64) - await stored(served, 0)
        ring = Ring(4, CLIP_NORM, MOST_WEIGHT)
        tolerance = 2 * 4 * MOST_WEIGHT / ring.scale / 15 + 1e-7  # the roundings of four members, and of float32
        assert np.abs(step - plain_mean(members)).max() < tolerance
        record = await served.parts.store.version(RunId("r"), ModelVersion(1))
        assert record is not None
        assert record.transcript
        assert [client for client, *_ in record.updates] == sorted(MEMBERS)
        assert not await served.parts.store.round_messages(RunId("r"))
        assert await clean(served, tmp_path) == 1
        store = served.parts.store
        assert isinstance(store, SqlStore)
        async with store.writing() as connection:
            await connection.execute(sa.text("UPDATE rounds SET tail = '[2]'"))
        report = await verify_state(store, SqlMembership(store), served.parts.blobs, tmp_path)
        assert {finding.invariant for finding in report.findings} == {6, 9}, "another tail than the sum's"


async def test_a_member_that_goes_after_it_has_dealt_is_left_out_and_the_others_mean_is_exact(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", replace_round(grace_after_quorum_s=0.0))
        members = await members_of(served, tmp_path / "clients")
        await play(members, KEYS, SHARES)
        await play(members[:3], UPDATE, CONFIRM, REVEAL)
        await until_version(served, 1)
        step = (await stored(served, 1)).astype(np.float64) - await stored(served, 0)
        assert np.abs(step - plain_mean(members[:3])).max() < 1e-5
        assert await clean(served, tmp_path) == 1


def replace_round(**changes: float) -> RunSpec:
    return SPEC.model_copy(update={"round": SPEC.round.model_copy(update=changes)})


async def test_a_coordinator_that_is_stopped_between_any_two_steps_goes_on(tmp_path: Path) -> None:
    for step in STEPS:
        async with serving(tmp_path / "state") as served:
            if step == KEYS:
                await served.create("r", SPEC)
            members = await members_of(served, tmp_path / "clients")
            await play(members[: 3 if step in (CONFIRM, REVEAL) else 4], step)
    async with serving(tmp_path / "state") as served:
        await until_version(served, 1)
        assert await clean(served, tmp_path) == 1


async def test_a_message_that_cannot_be_written_takes_no_message_of_others_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", SPEC)
        members = await members_of(served, tmp_path / "clients")
        await play(members, KEYS, SHARES, UPDATE)
        for member in members:
            member.task = await member.hand.task()
        confirmations = [await member.answer() for member in members]
        store, arriving = served.parts.store, asyncio.Event()
        write = store.apply

        async def fails_at_first(changes: Sequence[Change]) -> None:
            if not arriving.is_set():
                arriving.set()
                await asyncio.sleep(0.3)  # the others' messages arrive and wait
                raise StoreFailed(problem="database is locked")
            request = pb.GetRoundStepRequest(task=members[3].task.name, phase=CONFIRM)
            await members[3].hand.call("GetRoundStep", request)  # while their messages are not durable
            await write(changes)

        monkeypatch.setattr(store, "apply", fails_at_first)
        failing = asyncio.create_task(refused(members[3], confirmations[3]))
        await arriving.wait()
        await asyncio.gather(*(member.send(sent) for member, sent in zip(members[:3], confirmations[:3], strict=True)))
        assert isinstance(await failing, StoreFailed)
        monkeypatch.undo()
        await play(members[:3], REVEAL)
        await until_version(served, 1)
        assert await clean(served, tmp_path) == 1


async def refused(member: Member, message: StepBody | UpdateStatement) -> PluralError:
    with pytest.raises(PluralError) as caught:
        await member.send(message)
    return caught.value


async def test_messages_that_do_not_fit_the_round_are_refused_and_change_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", SPEC)
        members = await members_of(served, tmp_path / "clients")
        ann, bob = members[:2]
        ann.task, bob.task = await ann.hand.task(), await bob.hand.task()
        keys = await ann.answer()
        of_bob = await bob.answer()
        assert not isinstance(keys, UpdateStatement)
        assert not isinstance(of_bob, UpdateStatement)
        assert isinstance(await refused(ann, of_bob), InvalidArgument), "signed by somebody else"
        await ann.send(keys)
        await ann.send(keys)
        assert isinstance(await refused(ann, of_bob), AlreadyCommitted)
        assert ann.client is not None
        confirmation = Confirmation(bytes(32)).signed(member_key("ann"))
        assert isinstance(await refused(ann, confirmation), WrongStep)
        other_terms = step_request(ann.task.name, bytes(32), keys)
        with pytest.raises(WrongStep):
            await ann.hand.call("PutRoundStep", other_terms)
        with pytest.raises(WrongStep):
            await ann.hand.call("GetRoundStep", pb.GetRoundStepRequest(task=ann.task.name, phase=2))


def demanding(member: Member, shares: Shares, least: int) -> Shares:
    """Returns a member's boxes, signed, with another number of updates that a sum must have."""
    assert member.view is not None
    r1 = digest_of_members(member.view.terms.sha256, member.view.members)
    pairs = zip(shares.boxes, member.view.members, strict=True)
    key = member_key(member.name)
    return Shares(tuple(replace(box, least=least).signed(key, r1, member.name, to.name) for box, to in pairs))


async def test_an_update_without_its_statement_or_with_facts_in_plain_text_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", SPEC)
        members = await members_of(served, tmp_path / "clients")
        await play(members, KEYS)
        ann = members[0]
        ann.task = await ann.hand.task()
        shares = await ann.answer()
        assert isinstance(shares, Shares)
        assert isinstance(await refused(ann, demanding(ann, shares, 5)), InvalidArgument), "more than there are members"
        await play(members, SHARES)
        assert {sent.least for sent in served.parts.runs.get("r").state.dealt} == {3}
        ann.task = await ann.hand.task()
        statement = await ann.answer()
        assert isinstance(statement, UpdateStatement)
        assert ann.client is not None
        manifest = manifest_of(ann.client.outbox)
        with pytest.raises(InvalidArgument, match="examples is 1"):
            await ann.hand.begin(ann.task, manifest, 50, {})
        with pytest.raises(InvalidArgument, match="no metrics"):
            await ann.hand.begin(ann.task, manifest, 1, {"loss": 0.5})
        await ann.hand.begin(ann.task, manifest, 1, {})
        await ann.hand.put(ann.task, ann.client.outbox, manifest, range(manifest.chunks))
        with pytest.raises(InvalidArgument, match="statement"):
            await ann.hand.commit(ann.task, manifest)
        await ann.send(statement)
        await ann.send(statement)


async def test_a_file_of_another_form_is_refused_although_its_member_has_signed_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", SPEC)
        members = await members_of(served, tmp_path / "clients")
        await play(members, KEYS, SHARES)
        ann = members[0]
        ann.task = await ann.hand.task()
        request = pb.GetRoundStepRequest(task=ann.task.name, phase=UPDATE)
        view = view_of(await ann.hand.call("GetRoundStep", request))
        assert isinstance(await ann.answer(), UpdateStatement)
        assert ann.client is not None
        other = ann.client.outbox.with_name("other")
        other.write_bytes(ann.client.outbox.read_bytes().replace(b'"tail"', b'"tale"'))
        manifest = manifest_of(other)
        dealers = dealers_digest(digest_of_members(view.terms.sha256, view.members), view.dealers)
        statement = UpdateStatement("ann", bytes.fromhex(manifest.digest)).signed(member_key("ann"), dealers)
        await ann.hand.begin(ann.task, manifest, 1, {})
        await ann.hand.put(ann.task, other, manifest, range(manifest.chunks))
        commit = pb.CommitUpdateRequest(task=ann.task.name, digest=manifest.digest, statement=statement.signature)
        with pytest.raises(WrongLayout):
            await ann.hand.call("CommitUpdate", commit)


async def test_a_reveal_with_a_changed_share_is_refused_and_the_round_waits_for_a_good_one(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", SPEC)
        members = await members_of(served, tmp_path / "clients")
        await play(members, KEYS, SHARES, UPDATE)
        await play(members[:3], CONFIRM)
        ann = members[0]
        ann.task = await ann.hand.task()
        reveal = await ann.answer()
        assert isinstance(reveal, Reveal)
        first = reveal.shares[0]
        changed = Share(first.index, first.value[:-1] + bytes([first.value[-1] ^ 1]))
        lie = Reveal(reveal.sum_sha256, (changed, *reveal.shares[1:])).signed(member_key("ann"))
        assert isinstance(await refused(ann, lie), InvalidArgument)
        await ann.send(reveal)
        await play(members[1:3], REVEAL)
        await until_version(served, 1)


async def test_everybody_computes_the_round_again_from_its_transcript_and_the_masked_updates(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", SPEC)
        members = await members_of(served, tmp_path / "clients")
        await play(members, KEYS, SHARES, UPDATE, CONFIRM)
        await play(members[1:], REVEAL)
        await until_version(served, 1)
        ann = members[0]
        request = pb.GetTranscriptRequest(run="r", round=1)
        body = b"".join([chunk.data async for chunk in ann.hand.stub.GetTranscript(request, timeout=10)])
        transcript = Transcript.from_json(body)
        transcript.opened()
        assert [update.name for update in transcript.updates] == sorted(MEMBERS)
        for update in transcript.updates:
            chunks = pb.GetMaskedChunksRequest(run="r", round=1, member=update.name)
            file = tmp_path / update.name
            file.write_bytes(
                b"".join([chunk.data async for chunk in ann.hand.stub.GetMaskedChunks(chunks, timeout=10)])
            )
            assert manifest_of(file).digest == update.digest.hex()
        for wrong in (pb.GetTranscriptRequest(run="r", round=2), pb.GetTranscriptRequest(run="r", round=0)):
            with pytest.raises(grpc.RpcError) as caught:
                [chunk async for chunk in ann.hand.stub.GetTranscript(wrong, timeout=10)]
            assert isinstance(from_rpc_error(caught.value, "the coordinator"), NotFound)


async def test_a_client_without_a_peer_key_or_of_an_earlier_release_is_not_drawn(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        stranger, older = await served.client("zoe"), await served.client(MEMBERS[3])
        await hello(older, served, knows_private_rounds=False)  # an earlier release came back: its key is on record
        await served.create("r", SPEC)
        await members_of(served, tmp_path / "clients", MEMBERS[:3], others=[stranger, older])
        run = served.parts.runs.get("r")
        for _ in range(100):
            if run.state.gathered_s is not None:
                break
            await asyncio.sleep(0.02)
        served.clock.advance(1.0)  # type: ignore[attr-defined]
        for _ in range(100):
            if run.state.round == 1:
                break
            await asyncio.sleep(0.02)
        assert run.state.cohort == tuple(ClientId(name) for name in sorted(MEMBERS[:3]))
        name = str(TaskName(run.id, RoundNumber(1), TaskKind.TRAIN, ClientId("zoe")))
        with pytest.raises(LeaseLost):
            await stranger.call("GetRoundStep", pb.GetRoundStepRequest(task=name, phase=1))
