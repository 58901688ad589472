"""The usual embedding model is filled in where a spec names none, and nowhere else."""

import pytest

from pluralllm.cli.new_spec import new_spec
from pluralllm.common.words.spec import spec_from_values, spec_values
from pluralllm.common.words.usual_embedding import MODEL, WIDTH, with_usual_embedding


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_spec_that_names_no_embedding_model_gets_the_usual_one(preset: str) -> None:
    values = with_usual_embedding({"preset": preset, "rounds": 5})
    spec = spec_from_values(values, "run.toml")
    assert (spec.rounds, spec.embedding.model) == (5, MODEL)
    assert spec.embedding == spec_from_values(spec_values(new_spec(preset=preset), ""), "").embedding


@pytest.mark.parametrize("embedding", [{"model": "another"}, {"dimension": 12}, "none"])
def test_half_an_embedding_model_is_not_filled_up(embedding: object) -> None:
    assert with_usual_embedding({"embedding": embedding}) == {"embedding": embedding}


@pytest.mark.parametrize("kind", [list, tuple])
def test_the_dimension_follows_the_templates_of_the_spec(kind: type) -> None:
    templates = kind(["{question}", "{options}", "{option}"])
    spec = spec_from_values(with_usual_embedding({"preset": "paper", "embedding": {"templates": templates}}), "")
    assert spec.embedding.dimension == 3 * WIDTH


def test_a_preset_that_is_none_is_left_to_the_check_of_the_spec() -> None:
    assert with_usual_embedding({"preset": "nice"}) == {"preset": "nice"}
