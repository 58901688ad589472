"""Virtual clients: drawn by the seed, trained as other clients are, and averaged to the same bits without lying in memory."""

import contextlib
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_survey import small_group, small_spec

from pluralllm.common.errors.tree import InvalidSpec, StorageFull
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment import federated, passes
from pluralllm.experiment.federated import LocalTraining, federate, first_values
from pluralllm.experiment.passes import TrainingQuestions, training_questions
from pluralllm.experiment.spec import Experiment, Virtual
from pluralllm.experiment.stacked import Learners
from pluralllm.experiment.virtual import WaitingUpdates, groups_of_clients
from pluralllm.server.rounds import events as ev

NAMES = ("a", "b", "c")
CPU = torch.device("cpu")


def counts(drawn: dict[ClientId, str]) -> list[int]:
    return [list(drawn.values()).count(name) for name in NAMES]


def test_every_group_gets_clients_by_even_or_drawn_shares() -> None:
    even = groups_of_clients(Virtual(clients=31, per_group="even"), NAMES, 0)
    assert sorted(counts(even)) == [10, 10, 11]
    assert list(even)[:2] == ["client-0", "client-1"]
    drawn = groups_of_clients(Virtual(clients=1000, alpha=0.1), NAMES, 0)
    assert sum(counts(drawn)) == 1000
    assert min(counts(drawn)) >= 1
    assert max(counts(drawn)) > 500, "a small alpha is uneven"
    assert groups_of_clients(Virtual(clients=1000, alpha=0.1), NAMES[::-1], 0) == drawn
    assert groups_of_clients(Virtual(clients=1000, alpha=0.1), NAMES, 1) != drawn
    assert counts(groups_of_clients(Virtual(clients=3, alpha=0.1), NAMES, 0)) == [1, 1, 1]


def test_updates_that_wait_in_a_file_are_read_as_they_were_written() -> None:
    updates = WaitingUpdates(5)
    rows = {ClientId(name): np.arange(5, dtype=np.float32) + number for number, name in enumerate("xyz")}
    for client, row in rows.items():
        updates[client] = row
    updates[ClientId("y")] = rows[ClientId("y")] = np.full(5, 7, np.float32)
    assert list(updates) == list(rows)
    assert all(np.array_equal(updates[name], row) for name, row in rows.items())
    assert updates.read(ClientId("z"), 1, 3).tolist() == [3.0, 4.0]
    assert len(updates) == 3
    updates[ClientId("w")] = np.zeros(5, np.float32)
    assert np.array_equal(updates[ClientId("z")], rows[ClientId("z")]), "a new update takes the place of no other one"


def test_a_full_disk_under_waiting_updates_is_said_with_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = WaitingUpdates(2)
    with Path("/dev/full").open("w+b") as full:
        monkeypatch.setattr(updates, "_file", full)
        with pytest.raises(StorageFull, match=f"{re.escape(tempfile.gettempdir())}.*TMPDIR"):
            updates[ClientId("x")] = np.zeros(2, np.float32)
        with contextlib.suppress(OSError):
            full.close()


def spec_of(**changes: Any) -> RunSpec:
    policy = {"min_clients": 5, "target_clients": 5}
    training = {"keep_optimizer_state": False}
    values = {"rounds": 2, "groups": {"held_out": ["d"]}, "round": policy, "training": training, **changes}
    return small_spec({"format": "pluralllm.run/2", **values})


@pytest.mark.parametrize("rule", ["mean", "trimmed_mean"])
def test_a_cohort_of_virtual_clients_has_the_bits_of_clients_in_memory(
    monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    spec = spec_of(aggregation={"rule": rule})
    drawn = groups_of_clients(Virtual(clients=12, alpha=1.0), NAMES, 0)
    groups = {name: small_group(name, questions=20, seed=seed) for seed, name in enumerate(NAMES)}
    monkeypatch.setattr(passes, "QUESTIONS_PER_PASS", 24)  # two clients in a pass
    monkeypatch.setattr(federated, "VALUES_AT_ONCE", 1)  # the narrowest slices
    monkeypatch.setattr(federated, "COLUMNS", 1000)
    waiting = [point.values for point in federate(spec, groups, CPU, drawn)]
    monkeypatch.setattr(federated, "WaitingUpdates", InMemory)
    monkeypatch.setattr(federated, "VALUES_AT_ONCE", 10**8)  # one slice
    in_memory = [point.values for point in federate(spec, groups, CPU, drawn)]
    assert len(waiting) == 3
    assert all(np.array_equal(one, other) for one, other in zip(waiting, in_memory, strict=True))
    assert not np.array_equal(waiting[1], waiting[2])


class InMemory(dict[ClientId, Any]):
    """Updates in memory, of which `aggregate` reads slices as from a file."""

    def __init__(self, _values: int) -> None:
        super().__init__()

    def read(self, client: ClientId, start: int, stop: int) -> Any:
        return self[client][start:stop]


def test_passes_without_a_state_share_their_learners_and_keep_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of()
    groups = {ClientId(str(number)): small_group("a", questions=20, seed=number) for number in range(5)}
    monkeypatch.setattr(passes, "QUESTIONS_PER_PASS", 24)
    base, made = first_values(spec), list[int]()

    def counted(*arguments: Any) -> Any:
        made.append(len(arguments[1]))
        return Learners(*arguments)

    monkeypatch.setattr(passes, "Learners", counted)
    shared = LocalTraining(spec, groups, base, CPU)
    deltas, _ = shared.train_round(base, RoundNumber(1))
    assert made == [2, 1], "one set for the passes of two clients, one for the last client"
    for pair in (("2", "3"), ("4",)):
        alone, _ = LocalTraining(spec, groups, base, CPU).train_round(
            base, RoundNumber(1), [ClientId(name) for name in pair]
        )
        assert all(np.array_equal(alone[client], deltas[client]) for client in alone)
    keeping = spec.model_copy(update={"training": spec.training.model_copy(update={"keep_optimizer_state": True})})
    made.clear()
    LocalTraining(keeping, groups, base, CPU).train_round(base, RoundNumber(1))
    assert made == [2, 2, 1]


def test_clients_with_the_same_questions_share_the_numbers_of_those_that_they_train_on() -> None:
    spec, one = spec_of(), small_group("a", questions=20)
    other, elsewhere = replace(one, group="b", shares=one.shares[::-1].copy()), small_group("a", questions=30)
    usable = training_questions(spec, {ClientId(str(n)): data for n, data in enumerate((one, other, elsewhere))})
    assert usable[ClientId("0")] is usable[ClientId("1")]
    assert usable == {ClientId(str(n)): data.split(spec.held_out)[0] for n, data in enumerate((one, one, elsewhere))}


def test_a_group_that_nobody_else_holds_any_more_is_not_taken_for_a_later_one() -> None:
    spec = spec_of()
    questions = TrainingQuestions(spec)
    expected = {size: small_group("a", questions=size).split(spec.held_out)[0] for size in range(20, 30)}
    for size in (*expected, *reversed(expected)):
        assert questions.of(small_group("a", questions=size)) == expected[size]


def experiment_of(spec: dict[str, Any], clients: int = 50, **method: Any) -> Experiment:
    data = {"files": "none", "train": NAMES, "test": ("d",), "virtual": {"clients": clients}}
    methods = [{"name": "one", "spec": {"training": {"keep_optimizer_state": False}} | spec, **method}]
    return Experiment.model_validate({"data": data, "methods": methods})


def test_the_run_spec_of_virtual_clients_has_the_cohort_and_names_no_training_group() -> None:
    experiment = experiment_of({}, cohort=20)
    spec = experiment.run_spec(experiment.methods[0], 0)
    assert (spec.round.target_clients, spec.groups.train, spec.groups.held_out) == (20, (), ("d",))
    assert experiment.run_spec(experiment_of({}).methods[0], 0).round.target_clients == 50
    assert experiment_of({}).sha256() != experiment_of({}, clients=51).sha256()
    without = Experiment.model_validate(
        experiment_of({}).model_dump() | {"data": {"files": "none", "train": NAMES, "test": ("d",)}}
    )
    assert "virtual" not in without.portable()["data"], "the digests of earlier releases stay"


@pytest.mark.parametrize(
    ("experiment", "problem"),
    [
        (experiment_of({"training": {"keep_optimizer_state": True}}), "keep_optimizer_state = false"),
        (experiment_of({"updates": {"encoding": "int8"}}), 'encoding = "fp32"'),
        (experiment_of({}, adapt_steps=1), "no adapt_steps"),
        (experiment_of({}, clients=2), "clients = 3 or more"),
    ],
)
def test_what_virtual_clients_cannot_do_is_refused_with_the_setting(experiment: Experiment, problem: str) -> None:
    with pytest.raises(InvalidSpec, match=problem):
        experiment.run_spec(experiment.methods[0], 0)


def test_updates_that_wait_in_a_file_are_shortened_as_those_in_memory() -> None:
    spec = spec_of()
    base, updates = np.zeros(4, np.float32), WaitingUpdates(4)
    in_memory = {ClientId(name): np.full(4, step, np.float32) for name, step in (("x", 1.0), ("y", 8.0))}
    for client, delta in in_memory.items():
        updates[client] = delta
    receipts = tuple(ev.Receipt(client, Digest(client), 10, None, 1.0) for client in in_memory)
    average = ev.Average(RoundNumber(1), ModelVersion(0), receipts, scales=(1.0, 0.25))
    moments = np.zeros((0, 4), np.float32)
    shortened, _ = federated.aggregate(spec, base, moments, average, updates)
    assert shortened.tolist() == [1.5] * 4
    assert np.array_equal(shortened, federated.aggregate(spec, base, moments, average, in_memory)[0])
