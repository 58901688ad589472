"""A run that asks groups for rewards over a real gRPC server: batches go in, rewards come out."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from support.coordinator_harness import HandClient, Served, serving, small_spec, write_delta

from pluralllm.common.errors.grpc_status import from_rpc_error
from pluralllm.common.errors.tree import (
    InvalidArgument,
    InvalidSpec,
    LeaseLost,
    NotFound,
    OverLimit,
    PluralError,
    RoundClosed,
    WrongLayout,
    WrongPhase,
)
from pluralllm.common.process.clock import FakeClock
from pluralllm.common.rewards.rollout_batch import Candidates, read_rollouts, write_rollouts
from pluralllm.common.weights.layout import layout_of, write_weights
from pluralllm.common.words.ids import RoundNumber, RunId
from pluralllm.common.words.spec import GroupRole, RunSpec
from pluralllm.server.commands.verify import verify_state
from pluralllm.server.storage.sql_membership import SqlMembership
from pluralllm.server.storage.sql_store import SqlStore
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1 import operations_pb2
from pluralllm.v1 import resources_pb2 as rpb

SPEC = small_spec()
BATCH = write_rollouts(
    [Candidates("Which?", ("this", "that"), (3, 1)), Candidates("How?", ("so", "thus", "not at all"))]
)
OTHER = write_rollouts([Candidates("Why?", ("because", "never"))])
QUICK = {
    "min_clients": 2,
    "target_clients": 3,
    "deadline_s": 100,
    "grace_after_quorum_s": 5,
    "on_missed_quorum": "skip",
}


async def reward_spec(served: Served, rule: str = "mean", rounds: int = 10, **numbers: float) -> RunSpec:
    """Returns the spec of a reward run that scores with version 0 of run s, which it creates."""
    await served.create("s", SPEC, start=False)
    first = (await served.parts.store.versions(RunId("s")))[0]
    rewards = {"source": "runs/s/models/0", "model_digest": first.digest, "aggregation": {"rule": rule, **numbers}}
    return small_spec(rounds=rounds, round=QUICK, rewards=rewards)


async def ask(served: Served, rollouts: bytes = BATCH) -> str:
    request = operations_pb2.AskRewardsRequest(name="runs/r", rollouts_json=rollouts)
    return str((await call(served.operations.AskRewards(request, timeout=10))).round)


async def rewards(served: Served, name: str, hold_s: int = 5) -> operations_pb2.GetRewardsResponse:
    request = operations_pb2.GetRewardsRequest(name=name)
    request.hold.seconds = hold_s
    found: operations_pb2.GetRewardsResponse = await call(served.operations.GetRewards(request, timeout=20))
    return found


async def call(pending: Any) -> Any:
    try:
        return await pending
    except grpc.RpcError as error:
        raise from_rpc_error(error, "the coordinator") from error


async def push_rewards(client: HandClient, task: pb.Task, folder: Path, values: list[float]) -> rpb.Receipt:
    path = folder / f"{client.name}-{task.round}"
    layout = layout_of([("rewards", (len(values),))])
    manifest = write_weights(path, layout, [np.array(values, np.float32)])
    return await client.push(task, path, manifest)


async def three(served: Served) -> list[HandClient]:
    """Returns three clients; the last one is of a group that never trains."""
    roles = {"ann": GroupRole.TRAIN, "ben": GroupRole.TRAIN, "cem": GroupRole.HELD_OUT}
    return [await served.client(name, role) for name, role in roles.items()]


async def clean(served: Served, folder: Path) -> bool:
    store = served.parts.store
    assert isinstance(store, SqlStore)
    report = await verify_state(store, SqlMembership(store), served.parts.blobs, folder)
    assert report.is_clean, report.lines()
    return report.aggregates_repeated > 0


async def test_a_batch_is_scored_by_every_group_and_the_aggregate_says_whose_rewards_it_holds(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", await reward_spec(served))
        clients = await three(served)
        name = await ask(served)
        assert await ask(served) == name == "runs/r/rounds/1"
        group_rewards = {
            "ann": [0.8, 0.2, 0.5, 0.3, 0.2],
            "ben": [0.6, 0.4, 0.1, 0.1, 0.8],
            "cem": [0.1, 0.9, 0.3, 0.3, 0.4],
        }
        for client in clients:
            task = await client.task()
            assert (task.kind, task.base_version) == (pb.TASK_KIND_REWARD, 0)
            sent = await client.call("GetRollouts", pb.GetRolloutsRequest(task=task.name))
            assert read_rollouts(sent.rollouts_json, 100) == read_rollouts(BATCH, 100)
            await push_rewards(client, task, tmp_path, group_rewards[client.name])
        answer = await rewards(served, name)
        assert answer.outcome == rpb.ROUND_OUTCOME_CLOSED
        assert list(answer.rewards) == pytest.approx(np.mean(list(group_rewards.values()), 0))
        assert {group.group: list(group.rewards) for group in answer.groups} == {
            f"group of {client}": pytest.approx(values) for client, values in group_rewards.items()
        }
        assert [group.role for group in answer.groups].count(rpb.GROUP_ROLE_HELD_OUT) == 1
        assert sum(group.weight for group in answer.groups) == pytest.approx(1)
        assert await clean(served, tmp_path)


async def test_who_does_not_answer_is_not_waited_for_beyond_the_grace(tmp_path: Path) -> None:
    clock = FakeClock()
    async with serving(tmp_path / "state", clock) as served:
        await served.create("r", await reward_spec(served))
        ann, ben, cem = await three(served)
        name = await ask(served)
        await cem.task()
        for client in (ann, ben):
            await push_rewards(client, await client.task(), tmp_path, [0.5] * 5)
        assert (await rewards(served, name, 0)).outcome == rpb.ROUND_OUTCOME_OPEN
        clock.advance(6)
        found = await rewards(served, name)
        assert [each.group for each in found.groups] == ["group of ann", "group of ben"]
        late = await cem.poll()
        assert late.WhichOneof("answer") == "wait"
        assert await clean(served, tmp_path)


async def test_a_batch_that_too_few_answer_is_abandoned_with_its_reason_and_the_next_one_is_taken(
    tmp_path: Path,
) -> None:
    clock = FakeClock()
    async with serving(tmp_path / "state", clock) as served:
        await served.create("r", await reward_spec(served))
        ann, *_ = await three(served)
        name = await ask(served)
        await push_rewards(ann, await ann.task(), tmp_path, [0.5] * 5)
        clock.advance(101)
        answer = await rewards(served, name)
        assert answer.outcome == rpb.ROUND_OUTCOME_ABANDONED
        assert "1 of 2" in answer.reason
        assert list(answer.rewards) == []
        assert await ask(served, OTHER) == "runs/r/rounds/2"


async def test_adaptive_weights_follow_how_well_each_group_was_served_and_survive_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", await reward_spec(served, "adaptive", decay=0.5, temperature=0.2))
        for client, share in zip(await three(served), (0.9, 0.5, 0.1), strict=True):
            name = await ask(served, OTHER)
            await push_rewards(client, await client.task(), tmp_path, [share, 1 - share])
        before = await rewards(served, name)
    async with serving(tmp_path / "state") as served:
        answer = await rewards(served, name)
        assert answer == before
        means = {"group of ann": 0.5, "group of ben": 0.5, "group of cem": 0.5}  # both candidates sampled alike
        assert {group.group: group.weight for group in answer.groups} == pytest.approx(dict.fromkeys(means, 1 / 3))
        skewed = write_rollouts([Candidates("Why?", ("because", "never"), (9, 1))])
        name = await ask(served, skewed)
        for client, share in zip(await three(served), (0.9, 0.5, 0.1), strict=True):
            await push_rewards(client, await client.task(), tmp_path, [share, 1 - share])
        weights = {group.group: group.weight for group in (await rewards(served, name)).groups}
        newest = {"ann": 0.9 * 0.9 + 0.1 * 0.1, "ben": 0.5, "cem": 0.1 * 0.9 + 0.9 * 0.1}
        raised = {name: np.exp(-(0.5 * 0.5 + 0.5 * mean) / 0.2) for name, mean in newest.items()}
        total = sum(raised.values())
        assert weights == pytest.approx({f"group of {name}": value / total for name, value in raised.items()}, rel=1e-4)
        assert await clean(served, tmp_path)


async def test_a_round_goes_on_after_a_restart_with_the_rewards_that_have_come(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", await reward_spec(served))
        ann, ben, _ = await three(served)
        name = await ask(served)
        receipt = await push_rewards(ann, await ann.task(), tmp_path, [0.1] * 5)
        held = await ben.task()
    async with serving(tmp_path / "state") as served:
        _, ben, cem = await three(served)
        again = await ben.task()
        assert again.name == held.name
        for client, task in ((ben, again), (cem, await cem.task())):
            await push_rewards(client, task, tmp_path, [0.4] * 5)
        found = await rewards(served, name)
        assert list(found.rewards) == pytest.approx([0.3] * 5)
        kept = await served.parts.store.receipts(RunId("r"), RoundNumber(1))
        assert receipt.update_digest in {row.receipt.digest for row in kept}


async def test_rewards_that_are_none_are_refused_by_type_and_the_round_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", await reward_spec(served))
        ann, *_ = await three(served)
        await ask(served)
        task = await ann.task()
        wrong: list[tuple[list[float], type[PluralError]]] = [
            ([0.5] * 4, WrongLayout),
            ([0.5, 0.5, 0.5, 0.5, 1.5], InvalidArgument),
        ]
        for values, leaf in wrong:
            with pytest.raises(leaf):
                await push_rewards(ann, task, tmp_path, values)
        manifest = write_delta(tmp_path / "delta", SPEC, 1)
        with pytest.raises(OverLimit):
            await ann.push(task, tmp_path / "delta", manifest)
        await push_rewards(ann, task, tmp_path, [0.5] * 5)
        refusals = (await served.run("r")).refusals
        assert {note.reason for note in refusals} == {"WRONG_LAYOUT", "INVALID_ARGUMENT"}


async def test_what_cannot_be_asked_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        spec = await reward_spec(served)
        await served.create("r", spec, start=False)
        with pytest.raises(WrongPhase, match="created"):
            await ask(served)
        await served.operations.StartRun(operations_pb2.StartRunRequest(name="runs/r"), timeout=10)
        for rollouts, leaf in ((b"{", InvalidArgument), (b'[["p",["a"]]]', InvalidArgument), (b"[]", InvalidArgument)):
            with pytest.raises(leaf):
                await ask(served, rollouts)
        many = write_rollouts([Candidates(f"p{n}", ("a", "b")) for n in range(2100)])
        with pytest.raises(OverLimit, match="4096"):
            await ask(served, many)
        with pytest.raises(NotFound):
            await rewards(served, "runs/r/rounds/1")
        await ask(served)
        with pytest.raises(WrongPhase, match="another batch"):
            await ask(served, OTHER)
        await served.create("t", small_spec(seed=9))
        request = operations_pb2.AskRewardsRequest(name="runs/t", rollouts_json=BATCH)
        with pytest.raises(WrongPhase, match="trains"):
            await call(served.operations.AskRewards(request, timeout=10))
        stranger = await served.client("dan")
        with pytest.raises(LeaseLost):
            await stranger.call("GetRollouts", pb.GetRolloutsRequest(task="runs/t/rounds/1/tasks/reward-dan"))


async def test_a_run_of_rewards_needs_a_version_that_is_there_and_fits(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        spec = await reward_spec(served)
        assert spec.rewards is not None
        other = spec.model_copy(update={"rewards": spec.rewards.model_copy(update={"source": "runs/s/models/7"})})
        with pytest.raises(NotFound):
            await call(create(served, other))
        digest = spec.rewards.model_copy(update={"model_digest": "0" * 64})
        with pytest.raises(InvalidSpec, match="model_digest"):
            await call(create(served, spec.model_copy(update={"rewards": digest})))
        wider = spec.predictor.model_copy(update={"d_model": 16})
        with pytest.raises(InvalidSpec, match="predictor"):
            await call(create(served, spec.model_copy(update={"predictor": wider})))


def create(served: Served, spec: RunSpec) -> Any:
    request = operations_pb2.CreateRunRequest(run_id="r", spec_json=spec.canonical_json())
    return served.operations.CreateRun(request, timeout=10)


async def test_the_run_ends_after_its_last_batch_and_a_cancelled_one_abandons_what_is_open(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", keep_updates=1) as served:
        await served.create("r", await reward_spec(served, rounds=2))
        clients = await three(served)
        for rollouts in (OTHER, BATCH):
            name = await ask(served, rollouts)
            for number, client in enumerate(clients):
                values = [0.1 * number] * (2 if rollouts == OTHER else 5)
                await push_rewards(client, await client.task(), tmp_path, values)
            assert (await rewards(served, name)).outcome == rpb.ROUND_OUTCOME_CLOSED
        for client in clients:
            assert (await client.poll(following=["r"], hold_s=5)).run_over.outcome == rpb.RUN_OUTCOME_COMPLETED
        first = await rewards(served, "runs/r/rounds/1")
        assert list(first.rewards) == pytest.approx(
            [0.1, 0.1]
        )  # the aggregate is kept; single rewards are older than the retention time
        # The model, two aggregates, and the last round's rewards (one of them equals its aggregate) and batch.
        await until(lambda: list_blobs(tmp_path) == 1 + 2 + 2 + 1)
        await served.create("q", (await reward_spec(served)).model_copy(update={"title": "another"}))
        await call(
            served.operations.AskRewards(
                operations_pb2.AskRewardsRequest(name="runs/q", rollouts_json=BATCH), timeout=10
            )
        )
        task = await clients[0].task()
        await served.operations.CancelRun(operations_pb2.CancelRunRequest(name="runs/q", reason="enough"), timeout=10)
        with pytest.raises(RoundClosed):
            await push_rewards(clients[0], task, tmp_path, [0.5] * 5)


def list_blobs(folder: Path) -> int:
    return len(list((folder / "state" / "blobs").glob("??/*")))


async def until(holds: Any) -> None:
    for _ in range(200):
        if holds():
            return
        await asyncio.sleep(0.02)
    assert holds()
