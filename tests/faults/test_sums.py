"""A run of sums with real processes: a killed coordinator ends with the bits of the same run played in one process."""

from functools import partial
from pathlib import Path

import pytest
import torch
from support.process_harness import federation, free_port, process_spec, tiny_embedding_model, until

from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.predictor.architecture import version_layout
from pluralllm.common.weights.layout import write_weights
from pluralllm.common.words.spec import Groups, RunSpec
from pluralllm.experiment.federated import federate
from pluralllm.experiment.groups import embed_groups
from pluralllm.operator.remote import Remote

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("forked_workers")]
LIMIT_S = 250.0  # of a machine that does much else
GROUPS = dict(zip(("ann", "ben"), sample_groups(2, 60, 0).values(), strict=True))
SPEC = process_spec(
    rounds=8,
    predictor={"architecture": "kernel-sums/1", "features": 256, "group_rank": 3, "subspace_rounds": 2},
    aggregation={"weighting": "uniform", "max_delta_norm": 1000.0},
)


def digest_in_one_process(folder: Path, spec: RunSpec, model: Path) -> str:
    """Returns the digest of the last version of the same run, played as an experiment."""
    embedded = [  # each group by itself, as its own daemon embeds it
        embed_groups(spec, {name: questions}, model, folder / name / "cache", torch.device("cpu"), lambda *_: None)
        for name, questions in GROUPS.items()
    ]
    groups = {name: data for group in embedded for name, data in group.items()}
    named = spec.model_copy(update={"groups": Groups(train=tuple(GROUPS))})
    *_, last = federate(named, groups, torch.device("cpu"))
    return write_weights(folder / "last", version_layout(spec, spec.rounds), [last.values]).digest


def facts(remote: Remote) -> dict[str, object]:
    try:
        return dict(remote.get_run("r"))
    except PluralError:
        return {"sequence": 0, "phase": ""}  # the coordinator is down for a moment


def has_version(remote: Remote, version: int) -> bool:
    return int(str(facts(remote).get("version", 0))) >= version


def test_a_killed_coordinator_ends_with_the_bits_of_the_same_run_in_one_process(tmp_path: Path) -> None:
    model = tiny_embedding_model(tmp_path / "model")
    with federation(tmp_path / "run", model, free_port()) as running:
        remote = running.start_coordinator()
        for name, questions in GROUPS.items():
            running.start_client(name, questions)
        remote.create_run("r", SPEC.canonical_json())
        remote.start_run("r")
        for version in (2, 7):  # one kill in each stage
            until(partial(has_version, remote, version), "a version", running, LIMIT_S)
            running.coordinator.kill()
            running.coordinator.start()
        until(lambda: facts(remote)["phase"] == "ended", "the run ends", running, LIMIT_S)
        run = facts(remote)
        assert (run["outcome"], run["version"]) == ("completed", SPEC.rounds), run["outcome_reason"]
        remote.close()
        running.coordinator.stop()
        verified = running.verify()
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert run["version_digest"] == digest_in_one_process(tmp_path, SPEC, model)
