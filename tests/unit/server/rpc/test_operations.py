"""Lists and states of runs: what they have of the clients, and what they cost."""

from pathlib import Path
from typing import Any, cast

import pytest
from support.counted_calls import counted_calls
from support.memory_coordinator import Hooks, MemoryCoordinator, as_caller
from support.memory_store import nothing

from pluralllm.common.errors.tree import InvalidArgument, RunNotEnded
from pluralllm.common.words.ids import ClientId, Digest, GroupName
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.access import Principal
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.rpc.operations import Operations
from pluralllm.server.rpc.signatures import Signatures
from pluralllm.v1 import operations_pb2 as pb
from pluralllm.v1 import resources_pb2

ADMIN = Principal(ClientId("root"), MemberRole.ADMIN)


class NoSignatures:
    """Signs nothing, for answers whose signature does not matter."""

    def audit_head(self) -> Any:
        return resources_pb2.AuditHead()


def names(number: int) -> list[str]:
    return [f"client-{position:03}" for position in range(number)]


def operations_of(place: MemoryCoordinator) -> Operations:
    parts, unused = place.parts, cast("Any", None)
    return Operations(
        coordinator=parts.coordinator,
        runs=parts.runs,
        status=parts.status,
        evaluations=parts.evaluations,
        sums=parts.sums,
        store=parts.store,
        models=parts.models,
        rewards=parts.rewards,
        members=unused,
        audit=unused,
        clock=parts.clock,
        run_bell=parts.run_bell,
        signatures=cast("Signatures", NoSignatures()),
    )


async def listed(operations: Operations, **fields: Any) -> Any:
    with as_caller(ADMIN):
        return await operations.ListRuns(pb.ListRunsRequest(**fields), None)


async def state_of(operations: Operations, **fields: Any) -> Any:
    with as_caller(ADMIN):
        return await operations.GetRun(pb.GetRunRequest(**{"name": "runs/r", **fields}), None)


async def test_archived_runs_are_listed_only_if_they_are_asked_for_and_pages_count_those_that_are_listed(
    tmp_path: Path,
) -> None:
    place = MemoryCoordinator(tmp_path)
    for name in ("first", "second", "third"):
        await place.new_run(name)
    operations = operations_of(place)
    request = pb.ArchiveRunRequest(name="runs/second")
    with as_caller(ADMIN):
        with pytest.raises(RunNotEnded):
            await operations.ArchiveRun(request, None)
        await operations.CancelRun(pb.CancelRunRequest(name="runs/second"), None)
        archived = (await operations.ArchiveRun(request, None)).run
    assert (archived.name, archived.archived, archived.phase) == ("runs/second", True, resources_pb2.RUN_PHASE_ENDED)

    async def pages(**fields: Any) -> list[list[tuple[str, bool]]]:
        rows, token = [], ""
        while True:
            answer = await listed(operations, page_size=1, page_token=token, **fields)
            rows.append([(run.name, run.archived) for run in answer.runs])
            if not (token := answer.next_page_token):
                return rows

    third, second, first = (("runs/third", False), ("runs/second", True), ("runs/first", False))
    assert await pages() == [[third], [first]]
    assert await pages(show_archived=True, summary=True) == [[third], [second], [first]]
    with as_caller(ADMIN):
        back = (await operations.UnarchiveRun(pb.UnarchiveRunRequest(name="runs/second"), None)).run
    assert not back.archived
    assert await pages() == [[third], [("runs/second", False)], [first]]
    await place.stop()


async def test_a_list_of_summaries_has_no_clients_and_the_mean_of_their_scores(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting("ann", "ben")
    refused = ev.UpdateRefused(1.0, run.state.round, ClientId("ann"), "NOT_FINITE", "NaN")
    await place.coordinator.dispatch(run, refused)
    operations = operations_of(place)
    (full,) = (await listed(operations)).runs
    (summary,) = (await listed(operations, summary=True)).runs
    assert [len(full.participants), len(full.evaluations), len(full.refusals)] == [2, 2, 1]
    fairness = summary.fairness
    assert [fairness.mean_alignment_score, fairness.reporting_groups, fairness.groups] == [0.5, 2, 2]
    for field in ("participants", "evaluations", "previous_evaluations", "refusals"):
        full.ClearField(field)
    assert summary == full


async def test_a_list_reads_two_numbers_of_each_run_once_and_evaluations_of_a_few_runs_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pluralllm.server.runs.ended_evaluations.KEPT_RUNS", 2)
    place = MemoryCoordinator(tmp_path)
    for number in range(3):
        run = await place.collecting("ann", "ben", run_id=f"r{number}")
        await place.coordinator.dispatch(run, ev.RunCancelled(place.clock.now_s(), "enough"))
    operations = operations_of(place)
    place.before = hooks = Hooks()
    for _ in range(2):
        assert len((await listed(operations, summary=True)).runs) == 3
    assert [operation for operation, _ in hooks.calls] == ["store.alignment_scores"] * 3
    for name, reads in (("r0", 1), ("r1", 2), ("r0", 2), ("r2", 3), ("r0", 3), ("r1", 4)):
        assert len((await state_of(operations, name=f"runs/{name}")).run.evaluations) == 2
        assert [operation for operation, _ in hooks.calls].count("store.latest_evaluations") == reads
    await place.stop()


async def test_summaries_of_rounds_have_the_numbers_of_their_clients(
    tmp_path: Path,
) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting("ann", "ben")
    arrived = ev.UpdateArrived(1.0, run.state.round, run.state.version, ev.Receipt(ClientId("ann"), Digest("u"), 10))
    await place.coordinator.dispatch(run, arrived)
    operations = operations_of(place)
    with as_caller(ADMIN):
        (full,) = (await operations.ListRounds(pb.ListRoundsRequest(parent="runs/r"), cast("Any", None))).rounds
        (summary,) = (
            await operations.ListRounds(pb.ListRoundsRequest(parent="runs/r", summary=True), cast("Any", None))
        ).rounds
    assert (full.cohort_size, full.updates) == (len(full.cohort), len(full.receipts)) == (2, 1)
    full.ClearField("cohort")
    full.ClearField("receipts")
    assert summary == full


async def test_a_summary_costs_the_same_for_twice_as_many_clients(tmp_path: Path) -> None:
    async def cost(number: int) -> int:
        place = MemoryCoordinator(tmp_path)
        await place.new_run(round={"min_clients": 1, "target_clients": 2})
        for name in names(number):
            await place.hello(name)
        operations = operations_of(place)
        await place.look(run := place.parts.runs.get("r"))
        for name in run.state.active:
            score = ev.Score(name, GroupName(name), place.parts.sessions.of(name).role, 0, 0.5, 0.5, None, 9)  # type: ignore[arg-type]
            await place.coordinator.dispatch(run, ev.EvaluationArrived(1.0, score))
        await place.look(run)
        await listed(operations, summary=True)
        with counted_calls() as counted:
            await listed(operations, summary=True)
        return counted.calls

    few = await cost(20)
    assert await cost(40) < few + 300, "only the mean is taken over the clients"


async def test_participants_come_in_pages(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    await place.collecting(*names(5))
    operations = operations_of(place)
    whole = await state_of(operations)
    assert (len(whole.run.participants), whole.next_participants_page_token) == (5, "")
    people, token = [], ""
    for expected in (2, 2, 1):
        answer = await state_of(operations, participants_page_size=2, participants_page_token=token)
        assert len(answer.run.participants) == expected
        people += answer.run.participants
        token = answer.next_participants_page_token
    assert token == ""
    assert people == list(whole.run.participants)
    with pytest.raises(InvalidArgument):
        await state_of(operations, participants_page_token="mine")


async def test_evaluations_that_have_ended_are_read_once(tmp_path: Path) -> None:
    place, hooks = MemoryCoordinator(tmp_path), Hooks()
    run = await place.collecting("ann", "ben")
    operations = operations_of(place)
    place.before = hooks
    answers = [(await state_of(operations)).run.evaluations for _ in range(3)]
    assert [operation for operation, _ in hooks.calls] == ["store.latest_evaluations"]
    assert [len(evaluations) for evaluations in answers] == [2, 2, 2]
    assert run.state.evaluated == 0


async def test_the_scores_of_an_open_evaluation_are_not_kept(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.new_run()
    for name in ("ann", "ben"):
        await place.hello(name)
    await place.look(run)
    operations = operations_of(place)
    for name in run.state.active:
        assert list((await state_of(operations)).run.evaluations) == []
        score = ev.Score(
            name, GroupName(name), place.parts.sessions.of(name).role, run.state.version, 0.5, 0.5, None, 9
        )
        await place.coordinator.dispatch(run, ev.EvaluationArrived(1.0, score))
    assert len((await state_of(operations)).run.evaluations) == 2


async def test_an_evaluation_that_ends_while_the_run_is_read_is_in_the_answer(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting("ann", "ben", rounds=3, round={"evaluate_every": 1})
    for seed, name in enumerate(("ann", "ben")):
        await place.deliver(run, name, place.update(run, seed))
    await place.coordinator.until_averaged(run)
    await place.look(run)
    assert (run.state.phase, run.state.active) == (Phase.EVALUATING, ("ann", "ben"))

    async def evaluate(operation: str, _: object) -> None:
        if operation == "store.latest_evaluations":
            place.before = nothing
            for name in run.state.active:
                role = place.parts.sessions.of(name).role
                score = ev.Score(name, GroupName(name), role, run.state.version, 0.6, 0.5, None, 9)
                await place.coordinator.dispatch(run, ev.EvaluationArrived(1.0, score))

    operations, place.before = operations_of(place), evaluate
    state = (await state_of(operations)).run
    assert state.phase != resources_pb2.RUN_PHASE_EVALUATING
    assert [(row.client, row.version) for row in state.evaluations] == [("ann", 1), ("ben", 1)]
    assert [(row.client, row.version) for row in state.previous_evaluations] == [("ann", 0), ("ben", 0)]
    await place.stop()


async def test_the_scores_of_a_newer_version_replace_those_that_were_read(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting("ann", "ben", rounds=3, round={"evaluate_every": 1})
    operations = operations_of(place)
    assert [row.version for row in (await state_of(operations)).run.evaluations] == [0, 0]
    for seed, name in enumerate(("ann", "ben")):
        await place.deliver(run, name, place.update(run, seed))
    await place.coordinator.until_averaged(run)
    await place.look(run)
    for name in run.state.active:
        role = place.parts.sessions.of(name).role
        score = ev.Score(name, GroupName(name), role, run.state.version, 0.6, 0.5, None, 9)
        await place.coordinator.dispatch(run, ev.EvaluationArrived(1.0, score))
    assert [row.version for row in (await state_of(operations)).run.evaluations] == [1, 1]
    await place.stop()
