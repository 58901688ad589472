"""The metrics of a coordinator and of a client daemon, as Prometheus reads them over HTTP."""

import asyncio
import re
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.coordinator_harness import (
    advance,
    evaluated,
    pass_first_evaluation,
    serving,
    small_spec,
    until_phase,
    write_delta,
)

from pluralllm.common.errors.tree import InUse, RoundClosed, WrongBase
from pluralllm.server.composition import gauges_of
from pluralllm.v1 import resources_pb2 as rpb

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read_text(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def read(address: str) -> Samples:
    families = text_string_to_metric_families(read_text(address))
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


async def scraped(state: Path) -> Samples:
    return await asyncio.to_thread(read, (state / "metrics-address").read_text())


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


async def test_a_coordinators_rounds_updates_refusals_and_scores_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pluralllm.server.observe.gauges.READ_EVERY_S", 0.05)
    state = tmp_path / "state"
    spec = small_spec(rounds=2, round={"evaluate_every": 1})
    async with serving(state, metrics_listen="127.0.0.1:0") as served:
        before = await scraped(state)
        ann, ben = await served.client("ann"), await served.client("ben")
        await served.create("r", spec)
        await pass_first_evaluation(ann, ben)
        path = tmp_path / "delta"
        manifest = write_delta(path, spec, 1)
        task = await ann.task()
        with pytest.raises(WrongBase):
            await ann.begin(task, manifest, base_digest="0" * 64)
        await ann.push(task, path, manifest)
        await ben.push(await ben.task(), path, manifest)
        for client, score, gain in ((ann, 0.8, 0.03), (ben, 0.6, None)):
            await client.evaluate(await client.task(), score, gain)
        await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING, 2)
        await asyncio.sleep(0.3)  # time for one or two refreshes
        after = await scraped(state)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("pluralllm_rounds_total", outcome="published") == 1
    assert grown("pluralllm_updates_accepted_total") == 2
    assert grown("pluralllm_updates_refused_total", reason="WRONG_BASE") == 1
    assert grown("pluralllm_calls_total", rpc="BeginUpdate", code="WRONG_BASE") == 1
    assert grown("pluralllm_calls_total", rpc="CommitUpdate", code="OK") == 2
    assert grown("pluralllm_phase_seconds_count", phase="collecting") == 1
    assert grown("pluralllm_aggregation_seconds_count") == 1
    assert grown("pluralllm_store_seconds_count", kind="write") > 5
    assert grown("pluralllm_blob_seconds_count", call="put") >= 4
    assert grown("pluralllm_event_loop_lag_seconds_count") >= 1
    assert value(after, "pluralllm_received_bytes_total") == 2 * manifest.size_bytes
    assert value(after, "pluralllm_runs", phase="collecting") == 1
    assert value(after, "pluralllm_run_round", run="r") == 2
    assert value(after, "pluralllm_alignment_score", run="r", group="group of ann") == 0.8
    gains = [labels for name, labels in after if name == "pluralllm_context_gain"]
    assert gains == [(("group", "group of ann"), ("run", "r"))]  # ben reports none
    assert value(after, "pluralllm_context_gain", run="r", group="group of ann") == 0.03
    assert value(after, "pluralllm_fairness_index", run="r") == pytest.approx(1.4**2 / 2 / (0.64 + 0.36))
    assert value(after, "pluralllm_clients", state="assigned") + value(after, "pluralllm_clients", state="working") == 2
    assert value(after, "pluralllm_leases") == 2
    for which in ("issuer", "server", "member"):
        assert value(after, "pluralllm_certificate_left_seconds", certificate=which) > 86_400


async def test_an_update_that_comes_when_its_round_is_over_counts_as_late(tmp_path: Path) -> None:
    state = tmp_path / "state"
    spec = small_spec(rounds=2, round={"min_clients": 1, "target_clients": 2, "grace_after_quorum_s": 1.0})
    async with serving(state, metrics_listen="127.0.0.1:0") as served:
        ann, ben = await served.client("ann"), await served.client("ben")
        await served.create("r", spec)
        await pass_first_evaluation(ann, ben)
        path = tmp_path / "delta"
        manifest = write_delta(path, spec, 1)
        late = await ben.task()
        await ann.push(await ann.task(), path, manifest)
        before = await scraped(state)
        await advance(served, 5)
        await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING, 2)
        with pytest.raises(RoundClosed):
            await ben.begin(late, manifest)
        after = await scraped(state)
    assert value(after, "pluralllm_updates_late_total") - value(before, "pluralllm_updates_late_total") == 1


async def test_a_coordinator_has_the_metrics_of_the_reference_and_no_others(tmp_path: Path) -> None:
    reference = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `(pluralllm_\w+)`", reference.partition("## Client daemon")[0], re.MULTILINE))
    async with serving(tmp_path / "state", metrics_listen="127.0.0.1:0"):
        await asyncio.sleep(0.3)  # time for the first refresh
        address = (tmp_path / "state" / "metrics-address").read_text()
        text = await asyncio.to_thread(read_text, address)
    assert set(re.findall(r"^# TYPE (pluralllm_\w+) ", text, re.MULTILINE)) == documented


async def test_a_port_that_is_taken_is_told_before_anything_serves(tmp_path: Path) -> None:
    async with serving(tmp_path / "one", metrics_listen="127.0.0.1:0"):
        taken = (tmp_path / "one" / "metrics-address").read_text()
        with pytest.raises(InUse, match=taken):
            async with serving(tmp_path / "two", metrics_listen=taken):
                pass


async def test_a_drawing_has_a_bounded_number_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pluralllm.server.observe.gauges.MAX_RUNS", 2)
    async with serving(tmp_path / "state") as served:
        for name in ("a", "b", "c"):
            await served.create(name, small_spec(), start=False)
        drawn = await gauges_of(served.parts, served.registry, lambda: 0.0).read()
    rounds = next(family for family in drawn if family.name == "pluralllm_run_round")
    assert [sample.labels["run"] for sample in rounds.samples] == ["b", "c"]


async def test_a_version_that_half_of_the_groups_have_scored_is_not_drawn_yet(tmp_path: Path) -> None:
    spec = small_spec(rounds=1, round={"evaluate_every": 1})
    async with serving(tmp_path / "state") as served:
        ann, ben = await served.client("ann"), await served.client("ben")
        await served.create("r", spec)
        await pass_first_evaluation(ann, ben)  # each scores 0.7
        manifest = write_delta(tmp_path / "delta", spec, 1)
        for client in (ann, ben):
            await client.push(await client.task(), tmp_path / "delta", manifest)
        await ann.evaluate(await ann.task(), 0.9)
        drawn = await gauges_of(served.parts, served.registry, lambda: 0.0).read()
    scores = next(family for family in drawn if family.name == "pluralllm_alignment_score")
    assert [sample.value for sample in scores.samples] == [0.7, 0.7]


async def test_a_group_that_keeps_its_score_has_none_in_the_metrics_and_is_counted_by_its_reason(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "state") as served:
        await evaluated(served, ann=0.8, ben=0.6, zoe=rpb.NOT_REPORTED_TOO_FEW_QUESTIONS)
        drawn = await gauges_of(served.parts, served.registry, lambda: 0.0).read()
    samples = {family.name: {tuple(s.labels.values()): s.value for s in family.samples} for family in drawn}
    assert samples["pluralllm_alignment_score"] == {("r", "group of ann"): 0.8, ("r", "group of ben"): 0.6}
    assert samples["pluralllm_groups_not_reported"] == {
        ("r", "too_few_questions"): 1,
        ("r", "budget_spent"): 0,
        ("r", "kept_back"): 0,
    }
    assert samples["pluralllm_fairness_index"] == {("r",): pytest.approx(1.4**2 / 2 / (0.64 + 0.36))}
