"""The quick form of an experiment: every method and every part, in less time; and the file of data that a call names."""

import subprocess
from pathlib import Path

import pytest

from pluralllm.common.errors.tree import InvalidArgument, InvalidData
from pluralllm.experiment.commands import experiment
from pluralllm.experiment.groups import read_groups
from pluralllm.experiment.runner import Plan
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


def test_the_paper_is_repeated_on_the_file_that_make_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make = ["make", "-n", "experiment", "DATA=a b.csv"]
    typed = subprocess.run(make, check=True, cwd=PAPER.parents[2], capture_output=True, text=True)
    assert 'experiment run benchmarks/experiments/paper.toml --data "a b.csv"' in typed.stdout
    played: list[Plan] = []
    monkeypatch.setattr(experiment, "_run_with_progress", played.append)
    experiment.run(PAPER, out=tmp_path, data=Path("a b.csv"), device="cpu", quick=True)
    assert played[0].experiment.data.file == Path("a b.csv")
    with pytest.raises(InvalidData, match=r"no such file\n .*GlobalOpinionQA .*\n.*make experiment DATA=FILE"):
        read_groups(played[0].experiment)


def test_a_file_of_all_groups_does_not_replace_the_files_of_single_groups() -> None:
    paper = load_experiment(PAPER)
    private = paper.model_copy(update={"data": paper.data.model_copy(update={"file": None, "files": Path("folder")})})
    with pytest.raises(InvalidArgument, match=r"--data.*names a file for each group in data\.files"):
        private.on_file(Path("other.csv"))
