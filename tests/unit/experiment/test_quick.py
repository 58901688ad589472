"""The quick form of an experiment: every method and every part, in less time."""

from pathlib import Path

from pluralllm.experiment.spec import load_experiment

PAPER = Path(__file__).parents[3] / "benchmarks" / "experiments" / "paper.toml"


def test_the_quick_form_keeps_every_method_and_every_part_with_fewer_groups_questions_rounds_and_seeds() -> None:
    whole = load_experiment(PAPER)
    quick = whole.quick()
    assert [method.name for method in quick.methods] == [method.name for method in whole.methods]
    assert quick.data.train == whole.data.train[:3]
    assert quick.data.validation == whole.data.validation[:3]
    assert quick.data.test == whole.data.test[:3]
    assert (quick.data.max_questions, quick.rounds, quick.seeds) == (30, 2, (0,))
    assert {method.steps for method in quick.methods} == {None, 12}


def test_a_smaller_limit_of_questions_stays() -> None:
    data = load_experiment(PAPER).data
    assert data.model_copy(update={"max_questions": 7}).quick().max_questions == 7
