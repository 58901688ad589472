"""A hostile member claims most of the examples, sends an enormous update, or a tiny one; the others still decide the model."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs
from support.coordinator_harness import HandClient, Served, serving, small_spec, until_phase, write_delta

from pluralllm.common.errors.tree import InvalidArgument, OverLimit
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.weights.layout import flat_values, read_layout, write_weights
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RunId
from pluralllm.common.words.names import TaskName
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import RunSpec
from pluralllm.v1 import resources_pb2 as rpb

HONEST = ("ann", "ben", "cem", "dan", "eva", "fay", "gus")
EVIL = "mallory"
LIMIT = 10_000  # questions that a member may state if its invite says nothing
STEP = 0.001  # of each value in an honest update


def spec_of(clients: int, run_format: str = "pluralllm.run/2") -> RunSpec:
    policy = {"min_clients": clients, "target_clients": clients, "evaluate_every": 100}
    return small_spec(format=run_format, rounds=2, round=policy)


async def together(served: Served, *names: str) -> dict[str, HandClient]:
    return {name: await served.client(name) for name in names}


async def open_round(served: Served, clients: Mapping[str, HandClient], spec: RunSpec) -> None:
    """Starts the run "r". The clients evaluate version 0, and then round 1 is open."""
    await served.create("r", spec)
    for client in clients.values():
        await client.evaluate(await client.task())


async def values_of(served: Served, digest: Digest) -> NDArray[np.float32]:
    path = await served.parts.blobs.path(digest)
    return flat_values(path, read_layout(path))


async def one_round(
    served: Served, spec: RunSpec, clients: Mapping[str, HandClient], steps: Mapping[str, float], folder: Path
) -> tuple[VersionRecord, float]:
    """Averages one update of each client. Returns the record of version 1, and the mean change of a value of the model.

    steps: the number that each value of a client's update has; the others have STEP.
    """
    layout = layout_for(spec)
    await open_round(served, clients, spec)
    for name, client in clients.items():
        path = folder / name
        values = np.full(layout.values, steps.get(name, STEP), np.float32)
        await client.push(await client.task(), path, write_weights(path, layout, [values]), client.questions)
    await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING, 2)
    before, after = [await served.parts.store.version(RunId("r"), ModelVersion(number)) for number in (0, 1)]
    assert before is not None
    assert after is not None
    change = await values_of(served, after.digest) - await values_of(served, before.digest)
    return after, float(change.mean(dtype=np.float64))


async def claim(client: HandClient, questions: int) -> None:
    client.questions = questions
    await client.hello()


async def test_a_member_states_at_most_as_many_questions_as_its_invite_allows(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        mallory = await served.client(EVIL)
        await claim(mallory, LIMIT)
        with pytest.raises(OverLimit, match=r"mallory.*--max-examples.* is 10001, the limit is 10000"):
            await claim(mallory, LIMIT + 1)
        with pytest.raises(OverLimit, match="is 100000, the limit is 10000"):
            await claim(mallory, 100_000)
        assert served.parts.sessions.of(ClientId(EVIL)).training_questions == LIMIT
        await served.member("small", MemberRole.CLIENT, "small", max_examples=60)
        small = await served.client("small", group="small")
        with pytest.raises(OverLimit, match="is 61, the limit is 60"):
            await claim(small, 61)
        await claim(small, 60)


async def test_an_update_states_at_most_as_many_examples_as_its_hello(tmp_path: Path) -> None:
    spec = spec_of(2)
    async with serving(tmp_path / "state") as served:
        clients = await together(served, "ann", EVIL)
        await open_round(served, clients, spec)
        mallory, task = clients[EVIL], await clients[EVIL].task()
        manifest = write_delta(tmp_path / "u", spec, 1)
        for examples in (51, LIMIT):
            with pytest.raises(InvalidArgument, match=f"is {examples}, must be at most 50"):
                await mallory.begin(task, manifest, examples)
        for examples in (LIMIT + 1, 100_000, 2**62):
            with pytest.raises(OverLimit, match=f"is {examples}, the limit is {LIMIT}"):
                await mallory.begin(task, manifest, examples)
        served.parts.sessions.close(ClientId(EVIL))
        with pytest.raises(InvalidArgument, match="is 51, must be at most 50"):  # after a restart the database knows it
            await mallory.begin(task, manifest, 51)
        await mallory.begin(task, manifest, 50)


async def test_a_file_that_grows_or_shrinks_keeps_the_weight_of_the_first_update(tmp_path: Path) -> None:
    spec = spec_of(2)
    async with serving(tmp_path / "state") as served:
        clients = await together(served, "ann", EVIL)
        await open_round(served, clients, spec)
        for client in clients.values():
            manifest = write_delta(tmp_path / client.name, spec, 1)
            await client.push(await client.task(), tmp_path / client.name, manifest, 50)
        ann, task = clients["ann"], await clients["ann"].task()
        for questions in (30, 90):
            await claim(ann, questions)
            for examples in (questions, 49, 51):
                with pytest.raises(InvalidArgument, match="must be 50 as in this client's first update"):
                    await ann.begin(task, manifest, examples)
            await ann.begin(task, manifest, 50)
        name, metrics = TaskName.parse(task.name), dict[str, float]()
        facts = (spec.sha256(), task.base_digest, manifest, 50, metrics)
        with pytest.raises(OverLimit, match="is 50, the limit is 49"):  # it was invited anew with a lower limit
            await served.parts.intake.begin(name, *facts, max_examples=49)
        await served.parts.intake.begin(name, *facts, max_examples=50)


@pytest.mark.parametrize("run_format", ["pluralllm.run/1", "pluralllm.run/2"])
async def test_who_claims_nearly_all_examples_of_eight_moves_the_model_by_at_most_three_even_shares(
    tmp_path: Path, run_format: str
) -> None:
    spec = spec_of(8, run_format)
    async with serving(tmp_path / "state") as served:
        clients = await together(served, *HONEST, EVIL)
        await claim(clients[EVIL], LIMIT)
        record, change = await one_round(served, spec, clients, {EVIL: -STEP}, tmp_path)
        run = await served.run("r")
    share = (1 - change / STEP) / 2  # the honest updates are +STEP, the hostile one is -STEP
    shown = {person.client: person.weight for person in run.participants}
    assert shown[EVIL] == pytest.approx(share, abs=1e-3)
    if run_format == "pluralllm.run/1":  # older runs keep their bits
        assert share > 0.96
        assert (record.weights, record.scales) == ((), ())
    else:
        assert share == pytest.approx(3 / 8, abs=1e-3)
        assert record.weights[-1] == pytest.approx(3 / 8)


async def test_in_a_cohort_of_three_the_other_two_keep_a_part_of_the_model(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        clients = await together(served, "ann", "ben", EVIL)
        await claim(clients[EVIL], LIMIT)
        record, change = await one_round(served, spec_of(3), clients, {EVIL: -STEP}, tmp_path)
    assert record.weights == pytest.approx([1 / 9, 1 / 9, 7 / 9])
    assert change == pytest.approx(STEP * (2 - 7) / 9, rel=1e-3)


async def test_honest_cohorts_have_the_weights_that_follow_from_their_examples(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        clients = await together(served, *HONEST)
        await claim(clients["ann"], 140)  # 2.5 even shares
        record, change = await one_round(served, spec_of(7), clients, {"ann": -STEP}, tmp_path)
    assert (record.weights, record.scales) == ((), ())
    assert change == pytest.approx(STEP * (300 - 140) / 440, rel=1e-3)


async def test_an_update_a_thousand_times_as_long_as_the_others_is_shortened_to_three_times(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        clients = await together(served, *HONEST, EVIL)
        with capture_logs() as log:
            record, change = await one_round(served, spec_of(8), clients, {EVIL: -1000 * STEP}, tmp_path)
    assert record.scales == pytest.approx((*(1.0,) * 7, 3 / 1000))
    (line,) = (entry for entry in log if entry["event"] == "update.shortened")
    assert (line["run"], line["round"], line["client"], line["scale"]) == ("r", 1, EVIL, record.scales[-1])
    assert change == pytest.approx(STEP * (7 - 3) / 8, rel=1e-3)


async def test_who_claims_nearly_all_examples_and_sends_a_long_update_moves_the_model_three_times_as_far_as_an_even_member(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "state") as served:
        clients = await together(served, *HONEST, EVIL)
        await claim(clients[EVIL], LIMIT)
        record, change = await one_round(served, spec_of(8), clients, {EVIL: -1000 * STEP}, tmp_path)
    assert record.weights[-1] == pytest.approx(3 / 8)
    assert record.scales == pytest.approx((*(1.0,) * 7, 1 / 1000))
    assert change == pytest.approx(STEP * (5 - 3) / 8, rel=1e-3)  # with both limits on their own it were (5 - 9) / 8


async def test_half_of_the_members_together_do_not_lift_the_limit(tmp_path: Path) -> None:
    evil = dict.fromkeys(("dan", "eva", "fay", EVIL), -1000 * STEP)
    async with serving(tmp_path / "state") as served:
        clients = await together(served, "ann", "ben", "cem", *evil)
        clients["gus"] = await served.client("gus")
        record, change = await one_round(served, spec_of(8), dict(sorted(clients.items())), evil, tmp_path)
    assert [scale < 1 for scale in record.scales] == [client in evil for client, _, _ in record.updates]
    assert change == pytest.approx(STEP * (4 - 4 * 3) / 8, rel=1e-3)


async def test_less_than_half_of_the_members_cannot_shorten_the_others_with_tiny_updates(tmp_path: Path) -> None:
    evil = {"ann": 0.0, "ben": 1e-30, EVIL: 1e-9}
    async with serving(tmp_path / "state") as served:
        clients = await together(served, *HONEST, EVIL)
        record, change = await one_round(served, spec_of(8), clients, evil, tmp_path)
    assert record.scales == ()
    assert change == pytest.approx(STEP * 5 / 8, rel=1e-3)


async def test_an_update_of_a_lonely_member_keeps_its_length(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        clients = await together(served, "ann")
        record, change = await one_round(served, spec_of(1), clients, {}, tmp_path)
    assert (record.weights, record.scales) == ((), ())
    assert math.isclose(change, STEP, rel_tol=1e-3)
