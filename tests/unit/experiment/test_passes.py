"""Passes of a round: cut by the spec, with the same bits wherever and in whatever order they are trained."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from support.small_experiment import small_plan
from support.small_survey import small_group, small_spec

from pluralllm.common.words.ids import ClientId, RoundNumber
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment import passes
from pluralllm.experiment.federated import Federation, LocalTraining, federate, first_values
from pluralllm.experiment.passes import Clients, PassesHere, Trained, cut
from pluralllm.experiment.play import Player, Setting
from pluralllm.experiment.records import Provenance
from pluralllm.experiment.spec import Virtual
from pluralllm.experiment.stacked import Flat
from pluralllm.experiment.virtual import groups_of_clients

NAMES = ("a", "b", "c")
CPU = torch.device("cpu")
GROUPS = {name: small_group(name, questions=20, seed=seed) for seed, name in enumerate(NAMES)}
CLIENTS = groups_of_clients(Virtual(clients=12, alpha=1.0), NAMES, 0)


@pytest.fixture(autouse=True)
def two_clients_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "QUESTIONS_PER_PASS", 24)


def spec_of(**training: object) -> RunSpec:
    policy = {"min_clients": 5, "target_clients": 5}
    predictor = {"dropout": 0.2}  # clients of one pass share the stream of random numbers
    changes = {"groups": {"held_out": ["d"]}, "round": policy, "training": {"keep_optimizer_state": False} | training}
    return small_spec({"format": "pluralllm.run/2", "rounds": 3, "predictor": predictor, **changes})


class Backwards:
    """Trains the last pass first, each on a worker of its own, and yields them in order. A round costs it 1,000 seconds."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self.elsewhere_s = 0.0

    def train(self, cut_passes: Sequence[Clients], base: Flat, number: RoundNumber) -> Iterator[Trained]:
        trained = [next(PassesHere(self._spec, CPU).train([one], base, number)) for one in reversed(cut_passes)]
        self.elsewhere_s += 1_000
        yield from reversed(trained)


def test_passes_have_the_same_bits_in_any_order_and_on_any_worker() -> None:
    spec = spec_of()
    here = [point.values for point in federate(spec, GROUPS, CPU, CLIENTS)]
    backwards = Backwards(spec)
    elsewhere = [point.values for point in federate(spec, GROUPS, CPU, CLIENTS, backwards)]
    assert len(here) == 4
    assert backwards.elsewhere_s == 3_000, "its workers trained all three rounds"
    assert all(np.array_equal(one, other) for one, other in zip(here, elsewhere, strict=True))


def test_the_seconds_of_a_unit_are_those_of_the_workers_that_train_its_passes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(tmp_path, monkeypatch, {"rounds": 2, "data": {"virtual": {"clients": 5}}})
    training = {"training": plan.experiment.methods[0].spec["training"] | {"keep_optimizer_state": False}}
    method = plan.experiment.methods[0].model_copy(update={"spec": plan.experiment.methods[0].spec | training})
    experiment = plan.experiment.model_copy(update={"methods": (method,)})
    workers = Backwards(experiment.run_spec(method, 0))
    setting = Setting(experiment, {}, Provenance(experiment, "digest"), None, plan.cache, CPU, workers)
    records = Player(setting).play(method, 0, lambda *_: None, lambda *_: None)[method.name]
    seconds = [record["seconds"] for record in records if record["kind"] == "point"]
    assert [round(value, -3) for value in seconds] == [0, 2_000]


def test_a_round_is_cut_into_passes_in_sorted_order_whatever_the_order_of_its_cohort() -> None:
    clients = {ClientId(name): GROUPS["a"] for name in "ebdca"}
    assert [list(one) for one in cut(spec_of(), CPU, clients)] == [["a", "b"], ["c", "d"], ["e"]]
    assert all(data is GROUPS["a"] for one in cut(spec_of(), CPU, clients) for data in one.values())
    assert [list(one) for one in cut(spec_of(), torch.device("cuda"), clients)] == [list("abcde")]


def test_distances_and_deltas_of_all_passes_come_back() -> None:
    spec = spec_of()
    base, trainers = first_values(spec), {client: GROUPS[name] for client, name in CLIENTS.items()}
    deltas, distances = LocalTraining(spec, trainers, base, CPU).train_round(base, RoundNumber(1), list(CLIENTS)[:5])
    assert list(deltas) == list(distances) == sorted(list(CLIENTS)[:5])
    assert len({delta.tobytes() for delta in deltas.values()}) == 5
    assert all(distance is not None and 0 < distance < 1 for distance in distances.values())


def test_groups_with_other_questions_train_on_their_own_ones() -> None:
    spec, base = spec_of(), first_values(spec_of())
    few, many = small_group("few", questions=12), small_group("many", questions=40)
    one = PassesHere(spec, CPU)
    trained = [next(one.train([{ClientId("x"): data}], base, RoundNumber(1))) for data in (few, many, few)]
    alone = next(PassesHere(spec, CPU).train([{ClientId("x"): few}], base, RoundNumber(1)))
    assert np.array_equal(trained[0].deltas[ClientId("x")], alone.deltas[ClientId("x")])
    assert np.array_equal(trained[2].deltas[ClientId("x")], alone.deltas[ClientId("x")])
    assert not np.array_equal(trained[1].deltas[ClientId("x")], alone.deltas[ClientId("x")])


@pytest.mark.parametrize("optimizer", ["fedavg", "fedadam"])
def test_a_federation_goes_on_from_its_standing_with_the_same_bits(optimizer: str) -> None:
    spec = spec_of()
    spec = spec.model_copy(update={"aggregation": spec.aggregation.model_copy(update={"optimizer": optimizer})})
    whole = Federation(spec, GROUPS, CPU, CLIENTS)
    whole.play_round()
    after_one = whole.standing()
    while not whole.is_over:
        whole.play_round()
    other = Federation(spec, GROUPS, CPU, CLIENTS)
    other.go_on_from(after_one)
    while not other.is_over:
        other.play_round()
    assert (other.point.rounds, whole.point.rounds, after_one.point.rounds) == (3, 3, 1)
    assert np.array_equal(other.point.values, whole.point.values)
    rest = [field.name for field in fields(whole.point) if field.name != "values"]
    assert [getattr(other.point, name) for name in rest] == [getattr(whole.point, name) for name in rest]
    assert (after_one.moments.size > 0) == (optimizer != "fedavg")


def test_clients_that_keep_something_have_no_standing() -> None:
    keeping = spec_of(keep_optimizer_state=True)
    rounding = spec_of().model_copy(update={"updates": spec_of().updates.model_copy(update={"encoding": "int8"})})
    for spec in (keeping, rounding):
        with pytest.raises(AssertionError, match="the clients keep"):
            Federation(spec, GROUPS, CPU, CLIENTS).standing()
