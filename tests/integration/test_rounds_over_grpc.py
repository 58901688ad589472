"""Every rule of the round machine again, over real gRPC with a real store and a fake clock."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs
from support.coordinator_harness import (
    HandClient,
    Served,
    advance,
    evaluated,
    pass_first_evaluation,
    serving,
    small_spec,
    until_phase,
    write_delta,
)

from pluralllm.common.errors.grpc_status import CLIENT_STOPPED
from pluralllm.common.errors.membership import IdentityMismatch
from pluralllm.common.errors.tree import (
    AlreadyCommitted,
    ChunksMissing,
    DigestMismatch,
    InvalidArgument,
    NormTooLarge,
    NotFinite,
    ProtocolUnsupported,
    RoundClosed,
    SessionReplaced,
    SpecMismatch,
    StaleSession,
    WrongBase,
    WrongLayout,
)
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.weights.layout import layout_of, write_weights
from pluralllm.common.words.ids import ClientId, RoundNumber, RunId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole, RunSpec
from pluralllm.server.aggregation.next_version import NextVersion, write_next
from pluralllm.server.commands.verify import verify_state
from pluralllm.server.rounds import events as ev
from pluralllm.server.storage.blobs import LocalBlobs
from pluralllm.server.storage.sql_membership import SqlMembership
from pluralllm.server.storage.sql_store import open_store
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1 import operations_pb2
from pluralllm.v1 import resources_pb2 as rpb

SPEC = small_spec()


async def two_clients(served: Served, spec: RunSpec = SPEC) -> tuple[HandClient, HandClient]:
    ann, ben = await served.client("ann"), await served.client("ben")
    await served.create("r", spec)
    await pass_first_evaluation(ann, ben)
    return ann, ben


async def test_two_clients_train_two_rounds_and_hear_that_the_run_is_over(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        clients = await two_clients(served)
        for number in (1, 2):
            for seed, client in enumerate(clients):
                task = await client.task()
                assert (task.round, task.base_version, task.cohort_size) == (number, number - 1, 2)
                path = tmp_path / f"{client.name}-{number}"
                receipt = await client.push(task, path, write_delta(path, SPEC, seed))
                assert (receipt.client, receipt.round) == (client.name, number)
        await pass_first_evaluation(*clients)
        run = await until_phase(served, "r", rpb.RUN_PHASE_ENDED)
        assert (run.version, run.outcome) == (2, rpb.RUN_OUTCOME_COMPLETED)
        for client in clients:
            over = await client.poll(following=["r"], hold_s=5)
            assert over.run_over.version_digest == run.version_digest


def blob_names(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("blobs/??/*")]


async def blobs_become(folder: Path, count: int) -> list[str]:
    """Waits until there are `count` blobs; returns the names of the blobs seen last."""
    for _ in range(200):
        names = blob_names(folder)
        if len(names) == count:
            break
        await asyncio.sleep(0.02)
    return names


async def test_updates_of_rounds_past_retention_are_gone_while_the_run_goes_on(tmp_path: Path) -> None:
    spec = small_spec(rounds=9)
    async with serving(tmp_path / "state", keep_updates=1) as served:
        clients = await two_clients(served, spec)
        for number in range(1, 6):
            await push_round(served, clients, spec, tmp_path, number)
        names = await blobs_become(tmp_path / "state", 6 + 2)  # versions 0 to 5, and the last round's two updates
        assert len(names) == 8


async def test_moments_that_nothing_goes_on_from_go_when_the_run_ends(tmp_path: Path) -> None:
    spec = small_spec(rounds=9, aggregation={"optimizer": "fedadam", "server_learning_rate": 0.01})
    async with serving(tmp_path / "state", keep_updates=1) as served:
        clients = await two_clients(served, spec)
        await push_round(served, clients, spec, tmp_path, 1)
        moments = set(served.parts.runs.get("r").newest.moments)
        assert moments
        assert moments <= set(await blobs_become(tmp_path / "state", 6))  # besides two versions and two updates
        await served.operations.CancelRun(operations_pb2.CancelRunRequest(name="runs/r"), timeout=10)
        versions = {version.digest for version in await served.parts.store.versions(RunId("r"))}
        assert set(await blobs_become(tmp_path / "state", 2)) == versions


async def test_what_a_stop_left_between_stored_and_on_record_goes_at_the_next_start(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await two_clients(served)
        stray = tmp_path / "stray"
        stray.write_bytes(b"never on record")
        digest = manifest_of(stray).digest
        await served.parts.blobs.put(digest, stray)
        assert digest in await blobs_become(tmp_path / "state", 2)
    async with serving(tmp_path / "state"):
        assert digest not in await blobs_become(tmp_path / "state", 1)


async def test_a_run_cancelled_while_it_averages_leaves_no_version_that_nothing_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, go_on = asyncio.Event(), asyncio.Event()

    async def write_and_wait(*given: Any) -> NextVersion:
        made = await write_next(*given)
        written.set()
        await go_on.wait()
        return made

    monkeypatch.setattr("pluralllm.server.runs.coordinator.write_next", write_and_wait)
    async with serving(tmp_path / "state") as served:
        for seed, client in enumerate(await two_clients(served)):
            path = tmp_path / client.name
            await client.push(await client.task(), path, write_delta(path, SPEC, seed))
        await asyncio.wait_for(written.wait(), 20)
        await served.operations.CancelRun(operations_pb2.CancelRunRequest(name="runs/r"), timeout=10)
        averaged = served.coordinator.until_averaged(served.parts.runs.get("r"))
        go_on.set()
        await asyncio.wait_for(averaged, 20)  # the averaging raises nothing
        assert len(list((tmp_path / "state" / "blobs").glob("??/*"))) == 1 + 2  # version 0 and the round's updates


async def test_fedadam_with_adaptive_weights_goes_on_after_a_restart_and_ends_and_verifies_clean(
    tmp_path: Path,
) -> None:
    spec = small_spec(
        rounds=3,
        aggregation={"optimizer": "fedadam", "server_learning_rate": 0.01, "weighting": "adaptive", "fairness": 10.0},
    )
    digests = []
    for name, restarted in (("whole", False), ("restarted", True)):
        state = tmp_path / name
        async with serving(state) as served:
            clients = await two_clients(served, spec)
            for number in (1, 2) if restarted else (1, 2, 3):
                await push_round(served, clients, spec, tmp_path, number)
        if restarted:
            async with serving(state) as served:
                clients = (await served.client("ann"), await served.client("ben"))
                await push_round(served, clients, spec, tmp_path, 3)
        async with contextlib.AsyncExitStack() as stack:
            store = await open_store(f"sqlite+aiosqlite:///{state / 'coordinator.sqlite3'}")
            stack.push_async_callback(store.close)
            report = await verify_state(store, SqlMembership(store), LocalBlobs(state / "blobs"), state / "scratch")
            assert report.is_clean, report.lines()
            assert report.aggregates_repeated == 3
            versions = await store.versions(RunId("r"))
            assert [len(version.moments) for version in versions] == [0, 2, 2, 2]
            # Ben's group is predicted worse.
            assert all(version.weights[1] > version.weights[0] for version in versions[1:])
            rows = await store.receipts(RunId("r"), RoundNumber(1))
            assert [row.receipt.distance for row in rows] == [0.2, 0.35]
        digests.append([version.record_sha256 for version in versions])
    assert digests[0] == digests[1]


async def push_round(
    served: Served, clients: tuple[HandClient, HandClient], spec: RunSpec, folder: Path, number: int
) -> None:
    """Lets both clients deliver and report their distance; ends when the round's version is published."""
    for seed, client in enumerate(clients):
        path = folder / "u"
        manifest = write_delta(path, spec, 10 * number + seed)
        await client.push(await client.task(), path, manifest, base_distance=0.2 + 0.15 * seed)
    for _ in range(200):
        if (await served.run("r")).version == number:
            return
        await served.parts.run_bell.wait(served.parts.run_bell.rings, 0.05)
    raise AssertionError(f"version {number} was not published")


async def test_the_model_does_not_depend_on_the_order_of_arrival(tmp_path: Path) -> None:
    digests = []
    for order in ((0, 1), (1, 0)):
        async with serving(tmp_path / f"state{order}") as served:
            clients = await two_clients(served, small_spec(rounds=1))
            for index in order:
                path = tmp_path / f"u{index}"
                task = await clients[index].task()
                await clients[index].push(task, path, write_delta(path, SPEC, index), examples=10 + index)
            run = await until_phase(served, "r", rpb.RUN_PHASE_EVALUATING)
            digests.append(run.version_digest)
    assert digests[0] == digests[1]


async def test_the_deadline_with_a_quorum_closes_the_round(tmp_path: Path) -> None:
    spec = small_spec(round={"min_clients": 1, "grace_after_quorum_s": 1_000})
    async with serving(tmp_path / "state", lease_s=10_000) as served:
        ann, ben = await two_clients(served, spec)
        task = await ann.task()
        await ben.task()
        await ann.push(task, tmp_path / "u", write_delta(tmp_path / "u", spec, 1))
        assert (await served.run("r")).phase == rpb.RUN_PHASE_COLLECTING
        await advance(served, 101)
        assert (await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING, 2)).version == 1


async def test_over_selection_closes_at_the_quorum_and_the_late_update_is_refused(tmp_path: Path) -> None:
    spec = small_spec(round={"min_clients": 1, "grace_after_quorum_s": 0})
    async with serving(tmp_path / "state") as served:
        ann, ben = await two_clients(served, spec)
        fast, slow = await ann.task(), await ben.task()
        await ann.push(fast, tmp_path / "u", write_delta(tmp_path / "u", spec, 1))
        await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING, 2)
        with pytest.raises(RoundClosed):
            await ben.push(slow, tmp_path / "u", write_delta(tmp_path / "u", spec, 2))


@pytest.mark.parametrize("missed", ["extend", "skip", "abort"])
async def test_a_missed_quorum_does_what_the_run_spec_says(tmp_path: Path, missed: str) -> None:
    spec = small_spec(round={"on_missed_quorum": missed})
    async with serving(tmp_path / "state", lease_s=10_000) as served:
        ann, _ = await two_clients(served, spec)
        await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING)
        await ann.push(await ann.task(), tmp_path / "u", write_delta(tmp_path / "u", spec, 1))
        await advance(served, 101)
        if missed == "extend":
            for _ in range(5):
                await served.coordinator.advance(served.parts.runs.get("r"))
            run = await served.run("r")
            assert (run.phase, run.round) == (rpb.RUN_PHASE_COLLECTING, 1)
            assert run.phase_deadline.ToSeconds() == 1_000 + 101 + 100
        elif missed == "skip":
            assert (await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING, 2)).version == 0
            request = operations_pb2.GetRoundRequest(name="runs/r/rounds/1")
            abandoned = (await served.operations.GetRound(request, timeout=10)).round
            assert abandoned.outcome == rpb.ROUND_OUTCOME_ABANDONED
            assert abandoned.reason == "1 of 2 updates at the deadline"
            assert [receipt.client for receipt in abandoned.receipts] == ["ann"]
        else:
            run = await until_phase(served, "r", rpb.RUN_PHASE_ENDED)
            assert run.outcome == rpb.RUN_OUTCOME_ABORTED
            assert (await ann.poll(following=["r"])).run_over.reason == run.outcome_reason


async def test_a_late_joiner_waits_with_a_reason(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await two_clients(served)
        await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING)
        late = await served.client("zoe")
        answer = await late.poll()
        assert answer.wait.reason == "r: round 1 is under way, the next one may have a slot"


async def test_an_expired_lease_frees_the_place_for_another_in_the_same_round(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", lease_s=20, silence_s=5) as served:
        ann, ben = await two_clients(served)
        held = await ann.task()
        await ben.task()
        zoe = await served.client("zoe")
        await advance(served, 15)
        await ann.poll(held=held.name)
        await zoe.poll()
        await advance(served, 10)
        task = await zoe.task()
        assert (task.round, task.name) == (1, "runs/r/rounds/1/tasks/train-zoe")
        run = await served.run("r")
        lost = {
            person.client: person.reason for person in run.participants if person.state == rpb.PARTICIPANT_STATE_LOST
        }
        assert lost == {"ben": "lease expired after 20 s of silence"}


async def test_a_duplicate_commit_gets_the_same_receipt_for_ever(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann, ben = await two_clients(served)
        task = await ann.task()
        manifest = write_delta(tmp_path / "u", SPEC, 1)
        first = await ann.push(task, tmp_path / "u", manifest)
        assert await ann.commit(task, manifest) == first
        begun = await ann.begin(task, manifest)
        assert (begun.receipt, list(begun.missing)) == (first, [])
        await ben.push(await ben.task(), tmp_path / "u", manifest)
        await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING, 2)
        assert await ann.commit(task, manifest) == first
        receipts = (
            await served.operations.GetRound(operations_pb2.GetRoundRequest(name="runs/r/rounds/1"))
        ).round.receipts
        assert [receipt.client for receipt in receipts] == ["ann", "ben"]


async def test_simultaneous_commits_of_one_update_count_once(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann, _ = await two_clients(served)
        task = await ann.task()
        manifest = write_delta(tmp_path / "u", SPEC, 1)
        begun = await ann.begin(task, manifest)
        await ann.put(task, tmp_path / "u", manifest, range(begun.missing[0].first, begun.missing[-1].last + 1))
        receipts = await asyncio.gather(*(ann.commit(task, manifest) for _ in range(20)))
        assert all(receipt == receipts[0] for receipt in receipts)
        found = await served.operations.GetRound(operations_pb2.GetRoundRequest(name="runs/r/rounds/1"))
        assert len(found.round.receipts) == 1


async def test_of_two_simultaneous_events_the_one_that_changes_nothing_leaves_no_trace(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", small_spec())
        run, pause = served.parts.runs.get("r"), ev.RunPaused(1.0)
        with capture_logs() as logs:
            await asyncio.gather(*(served.coordinator.dispatch(run, pause) for _ in range(2)))
        assert [entry["kind"] for entry in logs if entry["event"] == "run.event"] == ["RunPaused"]


async def test_another_update_of_the_same_client_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann, _ = await two_clients(served)
        task = await ann.task()
        await ann.push(task, tmp_path / "u", write_delta(tmp_path / "u", SPEC, 1))
        with pytest.raises(AlreadyCommitted):
            await ann.push(task, tmp_path / "v", write_delta(tmp_path / "v", SPEC, 2))


async def test_a_broken_upload_resumes_with_the_missing_chunks_only(tmp_path: Path) -> None:
    spec = small_spec(predictor={"d_model": 256, "layers": 4, "feedforward": 256, "heads": 4})
    async with serving(tmp_path / "state") as served:
        ann, _ = await two_clients(served, spec)
        task = await ann.task()
        manifest = write_delta(tmp_path / "u", spec, 1)
        assert manifest.chunks > 4
        await ann.begin(task, manifest)
        left = await ann.put(task, tmp_path / "u", manifest, [0, 3])
        assert [(piece.first, piece.last) for piece in left.missing] == [(1, 2), (4, manifest.chunks - 1)]
        with pytest.raises(ChunksMissing):
            await ann.commit(task, manifest)
        ann.chunks_sent = 0
        await ann.push(task, tmp_path / "u", manifest)
        assert ann.chunks_sent == manifest.chunks - 2


async def test_an_upload_survives_a_restart_of_the_coordinator(tmp_path: Path) -> None:
    spec = small_spec(predictor={"d_model": 256, "layers": 4, "feedforward": 256, "heads": 4})
    manifest = write_delta(tmp_path / "u", spec, 1)
    async with serving(tmp_path / "state") as served:
        ann, ben = await two_clients(served, spec)
        task = await ann.task()
        receipt = await ben.push(await ben.task(), tmp_path / "u", manifest)
        await ann.begin(task, manifest)
        await ann.put(task, tmp_path / "u", manifest, [1, 2])
    async with serving(tmp_path / "state") as served:
        again = await served.client("ann")
        with pytest.raises(StaleSession):
            await HandClient(served.channels["ann"], "ann", GroupRole.TRAIN, "g").poll()
        same = await again.task()
        assert same.name == task.name
        assert same.seed == task.seed
        await again.push(same, tmp_path / "u", manifest)
        assert again.chunks_sent == manifest.chunks - 2
        await until_phase(served, "r", rpb.RUN_PHASE_WAITING)
        found = await served.operations.GetRound(operations_pb2.GetRoundRequest(name="runs/r/rounds/1"))
        assert receipt in found.round.receipts
        assert found.round.version == 1


async def test_a_bad_update_is_refused_by_its_typed_reason_and_seen_in_the_status(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann, ben = await two_clients(served)
        task = await ann.task()
        layout = layout_for(SPEC)
        good = write_delta(tmp_path / "good", SPEC, 1)
        values = [float(index % 7) for index in range(layout.values)]
        array = np.array(values, dtype=np.float32)
        array[3] = np.nan
        poisoned = write_weights(tmp_path / "nan", layout, [array])
        with pytest.raises(NotFinite):
            await ann.push(task, tmp_path / "nan", poisoned)
        huge = write_weights(tmp_path / "huge", layout, [np.full(layout.values, 1e6, dtype=np.float32)])
        with pytest.raises(NormTooLarge):
            await ann.push(task, tmp_path / "huge", huge)
        names = [(name.replace("embedder", "embeddex"), shape) for name, shape in layout.tensors]
        other = layout_of(names)
        renamed = write_weights(tmp_path / "renamed", other, [np.zeros(other.values, dtype=np.float32)])
        with pytest.raises(WrongLayout, match="embedde"):
            await ann.push(task, tmp_path / "renamed", renamed)
        with pytest.raises(WrongBase):
            await ann.begin(task, good, base_digest="0" * 64)
        with pytest.raises(SpecMismatch):
            await ann.begin(task, good, spec_sha256="0" * 64)
        with pytest.raises(InvalidArgument, match="examples"):
            await ann.begin(task, good, examples=0)
        for distance in (-0.01, 0.84, float("nan"), float("inf")):
            with pytest.raises(InvalidArgument, match="metrics"):
                await ann.begin(task, good, metrics={"base_distance": distance})
        await ann.begin(task, good)
        (tmp_path / "garbled").write_bytes(bytes(good.size_bytes))
        with pytest.raises(DigestMismatch):
            await ann.put(task, tmp_path / "garbled", good, [0])
        with pytest.raises(IdentityMismatch):
            await ben.begin(task, good)
        run = await served.run("r")
        assert (run.phase, run.round) == (rpb.RUN_PHASE_COLLECTING, 1)
        refused = {refusal.reason for refusal in run.refusals}
        assert {"NOT_FINITE", "NORM_TOO_LARGE", "WRONG_LAYOUT", "WRONG_BASE"} <= refused
        await ann.push(task, tmp_path / "good", good)
        await ben.push(await ben.task(), tmp_path / "good", good)
        assert (await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING, 2)).version == 1


async def test_example_counts_are_constant_over_a_run(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann, ben = await two_clients(served)
        manifest = write_delta(tmp_path / "u", SPEC, 1)
        for client in (ann, ben):
            await client.push(await client.task(), tmp_path / "u", manifest, examples=50)
        with pytest.raises(InvalidArgument, match="must be 50"):
            await ann.push(await ann.task(), tmp_path / "u", manifest, examples=5_000)


async def test_a_held_out_group_evaluates_and_never_trains(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        unseen = await served.client("zoe", GroupRole.HELD_OUT)
        ann, ben = await served.client("ann"), await served.client("ben")
        await served.create("r", SPEC)
        await pass_first_evaluation(ann, ben, unseen)
        await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING)
        assert (await unseen.poll()).WhichOneof("answer") == "wait"
        run = await served.run("r")
        assert {score.client: score.role for score in run.evaluations}["zoe"] == rpb.GROUP_ROLE_HELD_OUT


async def test_a_group_that_keeps_its_scores_is_shown_with_the_reason_and_does_not_count_in_the_fairness(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "state") as served:
        kept = {"ben": rpb.NOT_REPORTED_TOO_FEW_QUESTIONS, "zoe": rpb.NOT_REPORTED_BUDGET_SPENT}
        await evaluated(served, ann=0.8, **kept)
        before = await served.run("r")
    async with serving(tmp_path / "state") as served:
        after = await served.run("r")
        request = operations_pb2.ListEvaluationsRequest(parent="runs/r")
        listed = (await served.operations.ListEvaluations(request, timeout=10)).evaluations
    for run in (before, after):
        shown = [(e.client, e.alignment_score, e.questions, e.not_reported) for e in run.evaluations]
        assert shown == [
            ("ann", 0.8, 9, rpb.NOT_REPORTED_UNSPECIFIED),
            ("ben", 0.0, 0, rpb.NOT_REPORTED_TOO_FEW_QUESTIONS),
            ("zoe", 0.0, 0, rpb.NOT_REPORTED_BUDGET_SPENT),
        ]
        assert (run.fairness.index, run.fairness.min_group) == (1.0, "group of ann")
    assert list(listed) == list(after.evaluations)


async def test_the_status_shows_the_weight_of_each_member_in_the_newest_version(tmp_path: Path) -> None:
    spec = small_spec(round={"min_clients": 1, "deadline_s": 50, "evaluate_every": 100}, rounds=3)
    async with serving(tmp_path / "state") as served:
        clients = await two_clients(served, spec)
        assert not any(person.HasField("weight") for person in (await served.run("r")).participants)
        for client, examples in zip(clients, (10, 30), strict=True):
            path = tmp_path / client.name
            await client.push(await client.task(), path, write_delta(path, spec, 1), examples=examples)
        run = await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING, 2)
        assert {person.client: person.weight for person in run.participants} == {"ann": 0.25, "ben": 0.75}
        ann, path = clients[0], tmp_path / "ann"
        await ann.push(await ann.task(), path, write_delta(path, spec, 1), examples=10)
        await advance(served, 60)
        run = await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING, 3)
        assert {person.client: person.weight for person in run.participants if person.HasField("weight")} == {
            "ann": 1.0
        }


async def test_where_no_group_reports_its_score_there_is_no_fairness(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann, ben = await served.client("ann"), await served.client("ben")
        await served.create("r", SPEC)
        for client in (ann, ben):
            await client.keep_scores(await client.task(), rpb.NOT_REPORTED_TOO_FEW_QUESTIONS)
        run = await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING, 1)
        assert len(run.evaluations) == 2
        assert not run.HasField("fairness")


@pytest.mark.parametrize(
    ("reason", "numbers"),
    [
        (rpb.NOT_REPORTED_UNSPECIFIED, {}),
        (rpb.NOT_REPORTED_UNSPECIFIED, {"alignment_score": 0.5}),
        (rpb.NOT_REPORTED_TOO_FEW_QUESTIONS, {"alignment_score": 0.5}),
        (rpb.NOT_REPORTED_TOO_FEW_QUESTIONS, {"alignment_score_base2": 0.5}),
        (rpb.NOT_REPORTED_TOO_FEW_QUESTIONS, {"alignment_score": float("nan")}),
        (rpb.NOT_REPORTED_TOO_FEW_QUESTIONS, {"wasserstein_score": 0.0}),
        (rpb.NOT_REPORTED_TOO_FEW_QUESTIONS, {"context_gain": 0.0}),
        (rpb.NOT_REPORTED_UNSPECIFIED, {"alignment_score": 0.5, "questions": 9, "context_gain": 1.01}),
        (rpb.NOT_REPORTED_UNSPECIFIED, {"alignment_score": 0.5, "questions": 9, "context_gain": float("nan")}),
        (rpb.NOT_REPORTED_TOO_FEW_QUESTIONS, {"questions": 1}),
        (4, {}),
        (-1, {}),
    ],
)
async def test_an_evaluation_has_all_of_its_numbers_or_a_known_reason_and_none(
    tmp_path: Path, reason: "rpb.NotReported.ValueType", numbers: dict[str, float]
) -> None:
    async with serving(tmp_path / "state") as served:
        ann = await served.client("ann")
        await served.client("ben")
        await served.create("r", SPEC)
        task = await ann.task()
        with pytest.raises(InvalidArgument):
            await ann.keep_scores(task, reason, **numbers)
        assert (await served.run("r")).participants[0].state == rpb.PARTICIPANT_STATE_WORKING
        await ann.keep_scores(task, rpb.NOT_REPORTED_TOO_FEW_QUESTIONS)


async def test_a_group_the_run_spec_does_not_name_has_no_part(tmp_path: Path) -> None:
    spec = small_spec(groups={"train": ["group of ann", "group of ben"]})
    async with serving(tmp_path / "state") as served:
        zoe = await served.client("zoe")
        ann, ben = await served.client("ann"), await served.client("ben")
        await served.create("r", spec)
        await pass_first_evaluation(ann, ben)
        assert "group of zoe is not named" in (await zoe.poll()).wait.reason


async def test_two_runs_share_clients_one_task_at_a_time(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann, ben = await served.client("ann"), await served.client("ben")
        await served.create("one", small_spec(rounds=1))
        await served.create("two", small_spec(rounds=1, seed=9))
        manifest = write_delta(tmp_path / "u", SPEC, 1)
        for _ in range(40):
            if all(run.is_over for run in served.parts.runs.all()):
                break
            for client in (ann, ben):
                answer = await client.poll(hold_s=0.2)
                if answer.WhichOneof("answer") != "task":
                    continue
                again = await client.poll()
                assert again.task.name == answer.task.name, "a second task at the same time"
                if answer.task.kind == pb.TASK_KIND_EVALUATE:
                    await client.evaluate(answer.task)
                else:
                    await client.push(answer.task, tmp_path / "u", manifest)
        assert [run.state.version for run in served.parts.runs.all()] == [1, 1]


async def test_a_cancelled_run_takes_the_task_back_and_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann, _ = await two_clients(served)
        task = await ann.task()
        polling = asyncio.create_task(ann.poll(held=task.name, following=["r"], hold_s=20))
        request = operations_pb2.CancelRunRequest(name="runs/r", reason="wrong data")
        await served.operations.CancelRun(request, timeout=10)
        answer = await asyncio.wait_for(polling, 5)
        assert (answer.run_over.outcome, answer.run_over.reason) == (rpb.RUN_OUTCOME_CANCELLED, "wrong data")
        with pytest.raises(RoundClosed):
            await ann.push(task, tmp_path / "u", write_delta(tmp_path / "u", SPEC, 1))


async def test_a_failed_client_is_named_with_its_reason_and_left_out_until_it_returns(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann, _ = await two_clients(served)
        task = await ann.task()
        request = pb.ReportFailureRequest(
            task=task.name, kind=pb.FAILURE_KIND_PERMANENT, reason="EMBEDDING_MISMATCH", message="cosine 0.2"
        )
        await ann.call("ReportFailure", request)
        run = await served.run("r")
        lost = next(person for person in run.participants if person.client == "ann")
        assert lost.state == rpb.PARTICIPANT_STATE_LOST
        assert lost.reason.startswith("takes no part: EMBEDDING_MISMATCH: cosine 0.2. Its owner mends that")
        assert "left out" in (await ann.poll()).wait.reason
        await ann.hello()
        assert (await ann.task()).name == task.name


async def test_a_daemon_that_stops_has_no_session_and_no_place_any_more(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann, _ = await two_clients(served)
        task = await ann.task()
        stopped = pb.ReportFailureRequest(
            task=task.name, reason=CLIENT_STOPPED, message="bye", instance_id=ann.instance
        )
        await ann.call("ReportFailure", stopped)
        for _ in range(3):  # the coordinator looks for clients that can get a slot
            served.coordinator.wake()
            await asyncio.sleep(0)
        person = next(person for person in (await served.run("r")).participants if person.client == "ann")
        assert (person.state, person.reason) == (rpb.PARTICIPANT_STATE_LOST, "CLIENT_STOPPED: bye")
        with pytest.raises(StaleSession):
            await ann.poll()


async def test_what_a_replaced_daemon_says_of_its_task_is_not_heard(tmp_path: Path) -> None:
    """The replaced daemon has the same name, so the task belongs to the newer one now."""
    async with serving(tmp_path / "state") as served:
        ann, _ = await two_clients(served)
        task, older = await ann.task(), ann.instance
        ann.instance = "second"
        await ann.hello()
        assert (await ann.task()).name == task.name
        stopped = pb.ReportFailureRequest(task=task.name, reason=CLIENT_STOPPED, message="bye", instance_id=older)
        await ann.call("ReportFailure", stopped)
        assert (await ann.poll(held=task.name)).task.name == task.name


async def test_a_newer_instance_replaces_the_older_one(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        old = await served.client("ann")
        waiting = asyncio.create_task(old.poll(hold_s=20))
        new = HandClient(served.channels["ann"], "ann", GroupRole.TRAIN, "group of ann")
        new.instance = "second"
        await new.hello()
        await new.poll()
        with pytest.raises(SessionReplaced):
            await asyncio.wait_for(waiting, 10)


async def test_an_administrator_sees_an_identity_that_two_daemons_use_in_turn(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann = await served.client("ann")
        await served.create("r", small_spec(), start=False)
        with capture_logs() as logs:
            for instance in ("second", "first", "second"):
                waiting = asyncio.create_task(ann.poll(hold_s=20))
                async with asyncio.timeout(10):
                    while served.parts.sessions.of(ClientId("ann")).polls_open == 0:
                        await served.parts.run_bell.wait(served.parts.run_bell.rings, 0.01)
                ann.instance = instance
                await ann.hello()
                with pytest.raises(SessionReplaced):
                    await asyncio.wait_for(waiting, 10)
        [person] = (await served.run("r")).participants
    assert "identity used from two places: 3 takeovers in 10 minutes" in person.reason
    assert [line["takeovers"] for line in logs if line["event"] == "client.taken_over"] == [1, 2, 3]


async def test_versions_of_the_protocol_are_negotiated(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        identity = await served.member("ann", MemberRole.CLIENT, "g")
        ann = HandClient(served.channel_of(identity), "ann", GroupRole.TRAIN, "g")
        old = pb.HelloRequest(protocol=pb.ProtocolRange(min=0, max=0), instance_id="i", group="g")
        with pytest.raises(ProtocolUnsupported):
            await ann.call("Hello", old)
        answer = await ann.call("Poll", pb.PollRequest(protocol=99))
        assert (answer.upgrade.protocol.min, answer.upgrade.protocol.max) == (1, 1)


async def test_creating_a_run_twice_is_free_and_with_another_spec_refused(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", SPEC, start=False)
        await served.create("r", SPEC, start=False)
        request = operations_pb2.CreateRunRequest(run_id="r", spec_json=small_spec(seed=6).canonical_json())
        with pytest.raises(Exception, match="was created with spec"):
            await served.operations.CreateRun(request, timeout=10)


async def test_watching_a_run_replays_its_events_and_ends_with_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", SPEC)
        await served.operations.CancelRun(operations_pb2.CancelRunRequest(name="runs/r"), timeout=10)
        stream = served.operations.WatchRun(operations_pb2.WatchRunRequest(name="runs/r"), timeout=10)
        events = [message.event async for message in stream]
        assert [(event.sequence, event.kind) for event in events] == [(1, "RunStarted"), (2, "RunCancelled")]
        again = served.operations.WatchRun(operations_pb2.WatchRunRequest(name="runs/r", after_sequence=1), timeout=10)
        assert [message.event.sequence async for message in again] == [2]


async def test_health_and_reflection_answer(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        health: object = await health_pb2_grpc.HealthStub(served.channel).Check(
            health_pb2.HealthCheckRequest(), timeout=10
        )
        assert "SERVING" in str(health)
        stream = reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10
        )
        names = [service.name async for answer in stream for service in answer.list_services_response.service]
        assert "pluralllm.v1.FederationService" in names


async def test_a_stopping_coordinator_lets_held_calls_answer(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann = await served.client("ann")
        held = asyncio.create_task(ann.poll(hold_s=20))
        await asyncio.wait_for(_polling(served), 5)
        served.coordinator.drain()
        assert (await asyncio.wait_for(held, 2)).wait.reason == "the coordinator is stopping"


async def _polling(served: Served) -> None:
    while not any(session.polls_open for session in served.parts.sessions.live(served.clock.now_s())):
        await served.parts.run_bell.wait(served.parts.run_bell.rings, 0.02)
