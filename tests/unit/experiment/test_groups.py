"""The groups of an experiment: read from private files, checked before any training, and scored as the experiment says."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_survey import DIMENSION, KERNEL, SMALL, small_group

from pluralllm.client.data.importers import import_globalopinionqa_groups
from pluralllm.client.data.private_data import write_group
from pluralllm.client.data.tables import table_rows
from pluralllm.common.errors.tree import AnswersProtected, InvalidData, TooFewQuestions
from pluralllm.common.words.questions import HoldOut
from pluralllm.common.words.spec import merge
from pluralllm.experiment import play
from pluralllm.experiment.groups import check_sizes, data_digest, read_groups
from pluralllm.experiment.records import Provenance
from pluralllm.experiment.spec import Experiment, load_experiment

GROUPS_TOML = Path(__file__).parents[3] / "benchmarks" / "experiments" / "groups.toml"
TRAIN, VALIDATION = ("north", "south", "east"), ("west", "far")


def experiment_of(folder: Path, over: dict[str, Any] | None = None, method: dict[str, Any] | None = None) -> Experiment:
    spec = {"training": SMALL["training"], "embedding": {"dimension": DIMENSION}, "predictor": KERNEL, "rounds": 2}
    values: dict[str, Any] = {
        "model": "m",
        "width": DIMENSION,
        "seeds": [0],
        "data": {"files": folder, "train": TRAIN, "validation": VALIDATION},
        "scoring": {"contexts": [6], "main_context": 6, "draws": 2, "holdout_share": 0.25},
        "methods": [{"name": "one", "preset": "fourier", "spec": spec} | (method or {})],
    }
    return Experiment.model_validate(merge(values, over or {}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate((*TRAIN, *VALIDATION)):
        suffix = "parquet" if name == "south" else "jsonl"
        write_group(tmp_path / f"{name}.{suffix}", small_group(name, questions=30, seed=seed).questions)
    (tmp_path / "notes.txt").write_text("not a group")
    return tmp_path


def test_groups_are_read_from_a_folder_of_private_files_or_from_a_table_of_them(folder: Path) -> None:
    questions = read_groups(experiment_of(folder))
    assert {name: len(own) for name, own in questions.items()} == dict.fromkeys((*TRAIN, *VALIDATION), 30)
    ids = [question.id for question in questions["north"]]
    assert ids == sorted(ids)
    table = {name: folder / f"{name}.{'parquet' if name == 'south' else 'jsonl'}" for name in (*TRAIN, *VALIDATION)}
    experiment = experiment_of(folder)
    listed = experiment.model_copy(update={"data": experiment.data.model_copy(update={"files": table})})
    assert data_digest(read_groups(listed)) == data_digest(questions)
    fewer = experiment_of(folder, {"data": {"max_questions": 7}})
    assert [question.id for question in read_groups(fewer)["north"]] == ids[:7]


def test_a_group_without_a_file_is_named_with_the_files_that_are_near(folder: Path) -> None:
    (folder / "north.jsonl").rename(folder / "norths.jsonl")
    with pytest.raises(
        InvalidData, match=r"no north\.jsonl or north\.parquet for the group 'north'; near: norths"
    ) as raised:
        read_groups(experiment_of(folder))
    assert "(5 in all)" in str(raised.value)
    with pytest.raises(InvalidData, match=r"no such folder; the experiment's data\.files names it"):
        read_groups(experiment_of(folder / "elsewhere"))


def test_a_file_of_the_table_that_is_missing_is_named_with_its_group(folder: Path) -> None:
    experiment = experiment_of(folder)
    table = {name: folder / f"{name}.jsonl" for name in experiment.data.groups}
    listed = experiment.model_copy(update={"data": experiment.data.model_copy(update={"files": table})})
    with pytest.raises(InvalidData, match=r"no such file; .*data\.files names it for the group 'south'"):
        read_groups(listed)


def test_a_faulty_row_of_a_private_file_is_named_with_its_line(folder: Path) -> None:
    with (folder / "east.jsonl").open("a") as file:
        file.write('{"question": "q", "options": ["a"], "shares": [1]}\n')
    with pytest.raises(InvalidData, match="line 31"):
        read_groups(experiment_of(folder))


def test_answers_that_were_released_with_noise_are_not_read(folder: Path) -> None:
    (folder / "north.jsonl.ledger").touch()
    with pytest.raises(AnswersProtected):
        read_groups(experiment_of(folder))


def test_a_training_group_needs_withheld_questions_only_if_it_is_scored(folder: Path) -> None:
    experiment = experiment_of(folder)
    questions = read_groups(experiment)
    trained = tuple(question for question in questions["north"] if not HoldOut(0.25, by_key=False).includes(question))
    without = questions | {"north": trained}
    with pytest.raises(TooFewQuestions):
        check_sizes(experiment, without)
    unscored = experiment_of(folder, {"scoring": {"train_groups": False}})
    check_sizes(unscored, without)
    with pytest.raises(TooFewQuestions):  # it still trains
        check_sizes(unscored, without | {"north": trained[:7]})
    two = {"groups": 2}
    check_sizes(experiment_of(folder, method=two), questions | {"east": trained[:2]})  # the third group takes no part


@pytest.mark.parametrize("train_groups", [True, False])
def test_a_method_is_scored_on_the_groups_that_it_trains_on_and_on_those_that_nobody_trains_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, train_groups: bool
) -> None:
    experiment = experiment_of(folder, {"scoring": {"train_groups": train_groups}}, {"groups": 2, "cohort": 1})
    questions = read_groups(experiment)
    embedded = {name: small_group(name, questions=30, seed=seed) for seed, name in enumerate(questions)}
    monkeypatch.setattr(play, "embed_groups", lambda *_: embedded)
    provenance = Provenance(experiment, data_digest(questions))
    setting = play.Setting(experiment, questions, provenance, None, folder, torch.device("cpu"))

    def quiet(_done: int, _of: int) -> None:
        pass

    (records,) = play.Player(setting).play(experiment.methods[0], 0, quiet, quiet).values()
    scored = {*VALIDATION, *(TRAIN[:2] if train_groups else ())}
    assert {record["group"] for record in records if record["kind"] == "final"} == scored
    assert {record["group"] for record in records if record["kind"] == "context_gain"} == scored
    points = [record for record in records if record["kind"] == "point"]
    assert all(set(point["alignment"]) == scored for point in points)
    steps = records[0]["spec"]["training"]["local_steps"]
    assert points[-1]["episodes"] == 2 * steps  # one of two groups in each of two rounds
    assert records[0]["spec"]["groups"]["train"] == list(TRAIN[:2])


def test_the_groups_of_groups_toml_follow_its_rule(survey: Path) -> None:
    """The paper's eight first, then the others by number of questions; groups that cannot train are left out."""
    experiment, paper = load_experiment(GROUPS_TOML), load_experiment(GROUPS_TOML.with_name("paper.toml")).data
    namesakes = {"China (Non-national sample)", "Brazil (Non-national sample)", "South Korea"}
    selections = [row["selections"] for _, row in table_rows(survey, {"selections"})]
    named = {name for text in selections for name in re.findall(r"'([^']+)': \[", text)}
    assert len(named) == 130
    questions = import_globalopinionqa_groups(survey, sorted(named - {*paper.validation, *paper.test} - namesakes))
    assert len(questions) == 115
    rest = sorted(set(questions) - set(paper.train), key=lambda name: (-len(questions[name]), name))
    trained = {name: sum(not HoldOut(0.1, by_key=False).includes(q) for q in own) for name, own in questions.items()}
    episodes = experiment.run_spec(experiment.methods[0], 0).training.episodes
    least = episodes.min_context + episodes.min_targets
    assert experiment.data.train == tuple(name for name in (*paper.train, *rest) if trained[name] >= least)
    assert (experiment.data.validation, experiment.data.test) == (paper.validation, ())
    assert {method.groups for method in experiment.methods} == {4, 8, 16, 32, 64, len(experiment.data.train)}
    assert {method.cohort for method in experiment.methods} == {16}
