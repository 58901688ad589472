"""A run spec from keyword arguments."""

from pathlib import Path
from typing import Any, cast

import pytest

from pluralllm.api import Federation, RunSpec, run_spec, sample_groups
from pluralllm.api.simulation import spec_for
from pluralllm.common.errors.tree import InvalidSpec
from pluralllm.common.words.spec import parse_spec, spec_from_values
from pluralllm.common.words.usual_embedding import MODEL, WIDTH

EMBEDDING = {"model": MODEL, "dimension": 2 * WIDTH}
FIVE = {"min_clients": 4, "target_clients": 5}


def test_arguments_are_the_keys_of_a_spec_file_over_the_preset() -> None:
    values: dict[str, Any] = {"rounds": 5, "training": {"local_steps": 3}}
    assert run_spec(**values) == spec_from_values({**values, "embedding": EMBEDDING}, "")
    paper = run_spec("paper", plain_rounds=True, embedding={"model": "m", "dimension": 8})
    assert paper == spec_from_values({"preset": "paper", "embedding": {"model": "m", "dimension": 8}}, "")


@pytest.mark.parametrize("preset", ["default", "attention", "paper", "fourier", "sums"])
def test_the_embedding_model_is_that_of_a_new_spec(preset: str) -> None:
    parts = len(run_spec(preset).embedding.templates)
    assert run_spec(preset).embedding.dimension == WIDTH * parts
    assert run_spec(preset).embedding.model == MODEL


class Recording:
    """A connection that keeps the spec of the run that is created."""

    def create_run(self, _name: str, spec_json: bytes) -> None:
        self.spec = parse_spec(spec_json, "")


def test_a_spec_without_an_embedding_model_gets_the_usual_one_wherever_it_is_given(tmp_path: Path) -> None:
    file, connection = tmp_path / "run.toml", Recording()
    file.write_text("rounds = 5\n")
    answers = {str(group): given for group, given in sample_groups(3, 60, 0).items()}
    for spec in ({"rounds": 5}, file, str(file)):
        Federation(cast(Any, connection)).create("r", spec)
        assert connection.spec == run_spec(rounds=5)
        assert spec_for(answers, spec, ()).embedding == run_spec().embedding
    three = run_spec("paper", embedding={"templates": ("{question}",) * 3})
    assert (three.embedding.model, three.embedding.dimension) == (MODEL, 3 * WIDTH)


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
