"""A federation in one process limits weights and lengths of updates exactly as the service does."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from support.small_survey import small_group, small_spec

from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment import passes
from pluralllm.experiment.federated import LocalTraining, aggregate, federate, first_values
from pluralllm.experiment.stacked import Flat
from pluralllm.server.rounds import events as ev

NAMES = ("a", "b", "c", "d")
STEP = np.float32(0.001)


def spec_of(**changes: Any) -> RunSpec:
    policy = {"min_clients": len(NAMES), "target_clients": len(NAMES)}
    return small_spec({"rounds": 1, "groups": {"train": list(NAMES)}, "round": policy, **changes})


def step_of_one_round(spec: RunSpec, monkeypatch: pytest.MonkeyPatch, steps: dict[str, float], questions: int) -> float:
    """Returns the mean change of a parameter. steps: the clients' changes of each parameter, in units of STEP.

    questions: number of the questions of the last client; the others have 20.
    """

    def pretend(
        _self: LocalTraining, base: Flat, _number: RoundNumber, _cohort: tuple[ClientId, ...]
    ) -> tuple[dict[ClientId, Flat], dict[ClientId, float | None]]:
        clients = {ClientId(f"client-{index}"): steps[name] for index, name in enumerate(NAMES)}
        return {c: np.full_like(base, STEP * np.float32(step)) for c, step in clients.items()}, dict.fromkeys(
            clients, 0.3
        )

    monkeypatch.setattr(LocalTraining, "train_round", pretend)
    groups = {name: small_group(name, questions=questions if name == NAMES[-1] else 20) for name in NAMES}
    first, last = federate(spec, groups, torch.device("cpu"))
    return float((last.values - first.values).mean(dtype=np.float64) / STEP)


@pytest.mark.parametrize(("run_format", "expected"), [("pluralllm.run/1", 1001 / 4), ("pluralllm.run/2", 0.0)])
def test_an_update_much_longer_than_the_others_is_shortened(
    monkeypatch: pytest.MonkeyPatch, run_format: str, expected: float
) -> None:
    steps = dict.fromkeys(NAMES, -1.0) | {NAMES[-1]: 1004.0}
    assert step_of_one_round(spec_of(format=run_format), monkeypatch, steps, 20) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("run_format", "expected"), [("pluralllm.run/1", 0.8), ("pluralllm.run/2", 0.5)])
def test_a_group_with_nearly_all_questions_gets_three_even_shares(
    monkeypatch: pytest.MonkeyPatch, run_format: str, expected: float
) -> None:
    spec = spec_of(format=run_format, evaluation={"context_questions": 6, "draws": 1, "holdout_share": 0.0})
    steps = dict.fromkeys(NAMES, -1.0) | {NAMES[-1]: 1.0}  # 540 of 600 questions
    assert step_of_one_round(spec, monkeypatch, steps, 540) == pytest.approx(expected, abs=1e-3)


def test_only_the_cohort_trains_and_every_group_gets_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    cohorts: list[tuple[ClientId, ...]] = []
    train_round = LocalTraining.train_round

    def watched(
        self: LocalTraining, base: Flat, number: RoundNumber, cohort: tuple[ClientId, ...]
    ) -> tuple[Mapping[ClientId, Flat], dict[ClientId, float | None]]:
        cohorts.append(cohort)
        deltas, distances = train_round(self, base, number, cohort)
        assert tuple(deltas) == tuple(distances) == cohort
        return deltas, distances

    monkeypatch.setattr(LocalTraining, "train_round", watched)
    spec = spec_of(rounds=8, round={"min_clients": 2, "target_clients": 2, "evaluate_every": 3})
    groups = {name: small_group(name, questions=20) for name in NAMES}
    *_, before, last = federate(spec, groups, torch.device("cpu"))
    assert [len(cohort) for cohort in cohorts] == [2] * 8
    assert {client for cohort in cohorts for client in cohort} == {f"client-{number}" for number in range(len(NAMES))}
    assert last.moved_bytes - before.moved_bytes == 2 * 2 * last.values.nbytes  # two clients, down and up
    assert last.episodes == 8 * 2 * spec.training.local_steps


def test_a_client_trains_the_same_whoever_is_in_its_cohort_and_in_its_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of()
    clients = {ClientId(name): small_group(name, questions=20, seed=seed) for seed, name in enumerate(NAMES)}
    base = first_values(spec)
    whole, _ = LocalTraining(spec, clients, base, torch.device("cpu")).train_round(base, RoundNumber(1))
    monkeypatch.setattr(passes, "QUESTIONS_PER_PASS", 24)  # two clients in a pass
    few = LocalTraining(spec, clients, base, torch.device("cpu"))
    for cohort in (("b", "d"), ("a", "b", "d"), ("b", "c")):
        deltas, _ = few.train_round(base, RoundNumber(1), [ClientId(name) for name in cohort])
        assert tuple(deltas) == cohort
        for client, delta in deltas.items():
            assert np.linalg.norm(delta - whole[client]) < 0.02 * np.linalg.norm(whole[client])


def test_a_point_knows_the_longest_update_of_all_rounds_before_any_is_shortened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pretend(
        _self: LocalTraining, base: Flat, number: RoundNumber, _cohort: tuple[ClientId, ...]
    ) -> tuple[dict[ClientId, Flat], dict[ClientId, float]]:
        clients = [ClientId(f"client-{index}") for index in range(len(NAMES))]
        lengths = (1.0, 1.0, 1.0, {1: 2.0, 2: 50.0, 3: 3.0}[number])
        return {
            client: np.full_like(base, length / np.sqrt(base.size))
            for client, length in zip(clients, lengths, strict=True)
        }, dict.fromkeys(clients, 0.3)

    monkeypatch.setattr(LocalTraining, "train_round", pretend)
    groups = {name: small_group(name, questions=20) for name in NAMES}
    points = federate(spec_of(rounds=3, format="pluralllm.run/2"), groups, torch.device("cpu"))
    assert [point.longest_update for point in points] == pytest.approx([0.0, 2.0, 50.0, 50.0])


@pytest.mark.parametrize(
    ("rule", "expected"), [("mean", 24.0), ("trimmed_mean", 3.0), ("median", 3.0), ("multi_krum", 2.5)]
)
def test_an_experiment_follows_the_rule_of_its_spec(
    monkeypatch: pytest.MonkeyPatch, rule: str, expected: float
) -> None:
    names = [f"client-{number}" for number in range(5)]
    aggregation = {"rule": rule, "weighting": "uniform"}
    policy = {"min_clients": 5, "target_clients": 5}
    spec = small_spec({"rounds": 1, "groups": {"train": names}, "round": policy, "aggregation": aggregation})

    def pretend(
        _self: LocalTraining, base: Flat, _number: RoundNumber, cohort: tuple[ClientId, ...]
    ) -> tuple[dict[ClientId, Flat], dict[ClientId, float | None]]:
        steps = zip(cohort, (1.0, 2.0, 3.0, 4.0, 110.0), strict=True)
        # No update is so long that it is shortened, because all of them move another value by far more.
        deltas = {
            client: np.append(np.full(base.size - 1, STEP * np.float32(step)), np.float32(9)) for client, step in steps
        }
        return deltas, dict.fromkeys(cohort, 0.3)

    monkeypatch.setattr(LocalTraining, "train_round", pretend)
    first, last = federate(spec, {name: small_group(name, questions=20) for name in names}, torch.device("cpu"))
    assert float((last.values - first.values)[0] / STEP) == pytest.approx(expected, rel=1e-4)


def test_factors_are_applied_before_the_mean() -> None:
    spec = spec_of()
    clients = [ClientId("a"), ClientId("b")]
    deltas = {client: np.full(5, value, np.float32) for client, value in zip(clients, (1.0, 100.0), strict=True)}
    receipts = tuple(ev.Receipt(client, Digest("x"), 10) for client in clients)
    average = ev.Average(RoundNumber(1), ModelVersion(0), receipts, (), (1.0, 0.03))
    values, _ = aggregate(spec, np.zeros(5, np.float32), np.empty((0, 5), np.float32), average, deltas)
    assert values.tolist() == [2.0] * 5
    assert deltas[clients[1]].tolist() == [100.0] * 5  # the update itself stays as it was
