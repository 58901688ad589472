"""A run spec from keyword arguments."""

from typing import Any

import pytest

from pluralllm.api import RunSpec, run_spec, sample_groups
from pluralllm.api.simulation import spec_for
from pluralllm.api.specs import MODEL, WIDTH
from pluralllm.cli import new_spec
from pluralllm.common.errors.tree import InvalidSpec
from pluralllm.common.words.spec import spec_from_values

EMBEDDING = {"model": MODEL, "dimension": 2 * WIDTH}
FIVE = {"min_clients": 4, "target_clients": 5}


def test_arguments_are_the_keys_of_a_spec_file_over_the_preset() -> None:
    values: dict[str, Any] = {"rounds": 5, "training": {"local_steps": 3}}
    assert run_spec(**values) == spec_from_values({**values, "embedding": EMBEDDING}, "")
    paper = run_spec("paper", plain_rounds=True, embedding={"model": "m", "dimension": 8})
    assert paper == spec_from_values({"preset": "paper", "embedding": {"model": "m", "dimension": 8}}, "")


@pytest.mark.parametrize("preset", ["default", "attention", "paper", "fourier", "sums"])
def test_the_embedding_model_is_that_of_a_new_spec(preset: str) -> None:
    assert (MODEL, WIDTH) == (new_spec.MODEL, new_spec.WIDTH)
    parts = len(run_spec(preset).embedding.templates)
    assert run_spec(preset).embedding.dimension == WIDTH * parts


def test_rounds_are_private_as_with_the_command() -> None:
    assert run_spec(round=FIVE).private_rounds is not None
    assert run_spec(round=FIVE, plain_rounds=True).private_rounds is None
    assert run_spec().private_rounds is None  # three clients


@pytest.mark.parametrize(
    ("preset", "values", "words"),
    [("nice", {}, "allowed: default, attention"), ("default", {"roundz": 3}, "roundz: unknown key")],
)
def test_a_preset_or_a_key_that_is_none_is_refused(preset: str, values: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        run_spec(preset, **values)


def test_a_simulation_takes_it_and_adds_the_groups_if_it_names_none() -> None:
    answers = {str(name): given for name, given in sample_groups(5, 60, 0).items()}
    spec = run_spec("attention", rounds=3, seed=7, round=FIVE, plain_rounds=True)
    filled = spec_for(answers, spec, list(answers)[4:])
    assert set(filled.groups.train) == set(list(answers)[:4])
    assert set(filled.groups.held_out) == set(list(answers)[4:])
    assert (filled.round.min_clients, filled.round.target_clients) == (4, 4)
    kept = {"groups", "round"}
    assert filled.model_dump(exclude=kept) == spec.model_dump(exclude=kept)
    assert spec_for(answers, filled, ()) is filled
    with pytest.raises(InvalidSpec, match=r"spec \(RunSpec\) is not valid"):
        spec_for(dict(list(answers.items())[:2]), run_spec(round=FIVE), ())


def test_the_result_is_the_class_that_a_run_is_created_with() -> None:
    assert isinstance(run_spec(), RunSpec)
