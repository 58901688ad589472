"""Experiments with parts of other packages: the run spec of a method names them, as that of a service does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.installed_package import METHODS, VECTORS, Site, of_page
from support.small_experiment import small_plan
from support.small_survey import SMALL, small_group, small_spec

from pluralllm.common.errors.tree import InvalidSpec, PluginMissing
from pluralllm.common.process.plugins import AGGREGATORS
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment import federated, runner
from pluralllm.experiment.federated import federate
from pluralllm.experiment.groups import embed_groups
from pluralllm.experiment.runner import run_experiment
from pluralllm.experiment.spec import Experiment

CPU = torch.device("cpu")
NAMES = ("a", "b", "c")
OF_RULE = of_page("aggregation")
CHOOSING = """
from pluralllm.server.aggregation.aggregator import Aggregator
def make(**_):
    return Aggregator(choose=lambda distances: [0])
"""


def spec_of(**changes: Any) -> RunSpec:
    policy = {"min_clients": len(NAMES), "target_clients": len(NAMES)}
    return small_spec({"rounds": 1, "groups": {"train": list(NAMES)}, "round": policy, **changes})


def last_values(spec: RunSpec) -> bytes:
    groups = {name: small_group(name, seed=seed) for seed, name in enumerate(NAMES)}
    *_, last = federate(spec, groups, CPU)
    return last.values.tobytes()


def test_a_federation_in_one_process_is_made_by_the_packages_aggregator(site: Site) -> None:
    with pytest.raises(PluginMissing, match=METHODS):
        last_values(spec_of(aggregation=OF_RULE))
    site.install("town_hall_methods")
    clamped = last_values(spec_of(aggregation={**OF_RULE, "weighting": "uniform"}))
    assert clamped != last_values(spec_of(aggregation={"weighting": "uniform"})), "it is not the mean"
    median = np.frombuffer(last_values(spec_of(aggregation={"rule": "median", "weighting": "uniform"})), np.float32)
    assert np.frombuffer(clamped, np.float32) == pytest.approx(median, abs=1e-7), (
        "of three, the ends move to the middle"
    )


def test_an_experiment_without_its_package_ends_before_any_work(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(tmp_path, monkeypatch)
    method = plan.experiment.methods[0]
    changed = method.model_copy(update={"spec": {**method.spec, "aggregation": OF_RULE}})
    experiment = plan.experiment.model_copy(update={"methods": (*plan.experiment.methods[1:], changed)})
    stages: list[str] = []
    with pytest.raises(PluginMissing, match=r"pip install 'town-hall-methods==1\.0'"):
        run_experiment(replace(plan, experiment=experiment), lambda stage, *_: stages.append(stage))
    assert stages == []
    assert not plan.out.exists()


def experiment(**method: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "data": {"files": "/nowhere", "train": NAMES, "test": ["d"], **method.pop("data", {})},
            "methods": [{"name": "one", "preset": "attention", "spec": {"training": SMALL["training"], **method}}],
        }
    )


def test_the_vectors_of_a_method_can_be_made_by_another_package(site: Site, tmp_path: Path) -> None:
    site.install("town_hall_methods")
    made = experiment(embedding=of_page("embedding"))
    spec = made.run_spec(made.methods[0], 0)
    assert spec.embedding.model == VECTORS
    questions = {"a": small_group().questions}
    groups = embed_groups(spec, questions, None, tmp_path, CPU, lambda *_: None)
    assert groups["a"].embeddings.shape[1] == 64


def test_virtual_clients_need_an_aggregator_that_looks_at_no_distances(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(tmp_path, monkeypatch, {"data": {"virtual": {"clients": 9}}})
    method = plan.experiment.methods[0]
    changed = method.model_copy(update={"spec": {**method.spec, "aggregation": OF_RULE}})
    experiment = plan.experiment.model_copy(update={"methods": (changed,)})
    site.install("town_hall_methods")
    runner._check_aggregator(experiment, changed)
    site.uninstall()
    site.install_module(AGGREGATORS, CHOOSING)
    with pytest.raises(InvalidSpec, match="an aggregator that looks at no distances between updates"):
        run_experiment(replace(plan, experiment=experiment), lambda *_: None)


def test_updates_that_wait_in_a_file_give_the_bits_of_those_in_memory(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("town_hall_methods")
    monkeypatch.setattr(federated, "VALUES_AT_ONCE", 1)
    spec = spec_of(aggregation={**OF_RULE, "weighting": "uniform"})
    groups = {name: small_group(name, seed=seed) for seed, name in enumerate(NAMES)}
    everybody = {ClientId(f"client-{number}"): name for number, name in enumerate(NAMES)}
    *_, last = federate(spec, groups, CPU, everybody)
    assert last.values.tobytes() == last_values(spec)
