"""A hostile member hides a bad score, or claims most of the model: everybody sees both."""

import datetime
import io
from pathlib import Path

import pytest
from rich.console import Console
from support.coordinator_harness import HandClient, Served, serving, small_spec, until_phase, write_delta

from pluralllm.cli.status_screen import status_screen
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.operator.plain_values import plain
from pluralllm.server.composition import gauges_of
from pluralllm.v1 import operations_pb2
from pluralllm.v1 import resources_pb2 as rpb

SPEC = small_spec(rounds=1, round={"target_clients": 8, "evaluate_every": 1})
HONEST = ("ann", "ben", "cem", "dan", "eva", "fay", "gus")
EVIL = "mallory"


async def members(served: Served) -> dict[str, HandClient]:
    clients = {name: await served.client(name) for name in (*HONEST, EVIL)}
    await served.create("r", SPEC)
    return clients


async def screen_of(served: Served) -> str:
    """Returns what `pluralllm status` prints."""
    out = io.StringIO()
    now = datetime.datetime.now(tz=datetime.UTC)
    Console(file=out, width=100).print(status_screen(plain(await served.run("r")), now))
    return out.getvalue()


async def test_who_hides_a_bad_score_is_named_and_makes_no_mean_look_complete(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        clients = await members(served)
        for name in HONEST:
            await clients[name].evaluate(await clients[name].task(), 0.8)
        await clients[EVIL].keep_scores(await clients[EVIL].task(), rpb.NOT_REPORTED_TOO_FEW_QUESTIONS)
        await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING, 1)
        screen = await screen_of(served)
        drawn = await gauges_of(served.parts, served.registry, lambda: 0.0).read()
    assert f"not reported: too few questions: group of {EVIL}" in screen
    assert "mean alignment 0.8000 over 7 of 8 groups" in screen
    counts = {
        sample.labels["reason"]: sample.value
        for family in drawn
        if family.name == "pluralllm_groups_not_reported"
        for sample in family.samples
    }
    assert counts == {"too_few_questions": 1, "budget_spent": 0, "kept_back": 0}


async def test_numbers_cannot_come_beside_a_reason_nor_a_reason_after_the_numbers(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        clients = await members(served)
        task = await clients[EVIL].task()
        with pytest.raises(InvalidArgument, match="not_reported"):
            await clients[EVIL].keep_scores(
                task, rpb.NOT_REPORTED_BUDGET_SPENT, alignment_score=1.0, alignment_score_base2=1.0, questions=9
            )
        await clients[EVIL].evaluate(task, 0.2)
        await clients[EVIL].keep_scores(task, rpb.NOT_REPORTED_BUDGET_SPENT)  # a repetition, which changes nothing
        request = operations_pb2.ListEvaluationsRequest(parent="runs/r")
        (only,) = (await served.operations.ListEvaluations(request, timeout=10)).evaluations
    assert (only.alignment_score, only.not_reported) == (0.2, rpb.NOT_REPORTED_UNSPECIFIED)


async def test_who_claims_most_of_the_examples_is_shown_with_its_weight(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        clients = await members(served)
        clients[EVIL].questions = 10_000  # as many as its membership allows
        await clients[EVIL].hello()
        for client in clients.values():
            await client.evaluate(await client.task(), 0.8)
        for name, client in clients.items():
            path = tmp_path / name
            manifest = write_delta(path, SPEC, 1)
            await client.push(await client.task(), path, manifest, examples=client.questions)
        run = await until_phase(served, "r", rpb.RUN_PHASE_EVALUATING)
        screen = await screen_of(served)
    weights = {person.client: person.weight for person in run.participants}
    assert sum(weights.values()) == pytest.approx(1)
    line = next(line for line in screen.splitlines() if line.startswith(f"group of {EVIL}"))
    assert f"{weights[EVIL]:.1%}" in line.split()
    assert weights[EVIL] == max(weights.values())
