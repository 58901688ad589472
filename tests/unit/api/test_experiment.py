"""An experiment's results as tables, and how its plan is read and run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.synthetic_results import SMALL, TEST, VALIDATION, write_results

from pluralllm.api import Experiment, Results
from pluralllm.common.errors.tree import InvalidArgument, InvalidResults, InvalidSpec
from pluralllm.experiment import runner
from pluralllm.experiment.summary import Selection, table

VALUES: dict[str, Any] = {
    "seeds": [1, 2],
    "rounds": 4,
    "data": {"files": "survey", "train": ["a", "b", "c"], "test": ["d"]},
    "methods": [{"name": "one"}, {"name": "two"}],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results.read(write_results(tmp_path_factory.mktemp("results"), SMALL[:3], questions=40))


def test_the_frame_is_the_commands_table(results: Results) -> None:
    frame, lines = results.frame(), table(results.results, Selection("test", 20))
    assert list(frame.method) == [line.method for line in lines]
    assert list(frame["mean"]) == [line.mean.value for line in lines]
    assert (list(frame.mean_low), list(frame.mean_high)) == ([x.mean.low for x in lines], [x.mean.high for x in lines])
    assert list(frame.worst_group) == [line.worst_group for line in lines]
    assert list(frame.context_gain) == [line.context_gain for line in lines]
    assert list(frame.moved_bytes) == [line.cost["moved_bytes"] for line in lines]


def test_other_groups_and_contexts_are_chosen_by_name(results: Results) -> None:
    frame = results.groups_frame("validation", 5)
    assert set(frame.group) == set(VALIDATION)
    expected = {line.method: line.groups for line in table(results.results, Selection("validation", 5))}
    assert all(row.alignment_score == expected[row.method][row.group].value for row in frame.itertuples())
    assert set(results.groups_frame().group) == set(TEST)
    with pytest.raises(InvalidArgument, match="scored were: test, validation, train"):
        results.lines("exam")
    with pytest.raises(InvalidArgument, match="contexts of 1, 5, 10, 20, 40"):
        results.lines(context=7)


def test_a_context_that_only_other_groups_were_scored_with_is_refused(results: Results) -> None:
    few = Results(
        tuple(
            replace(one, scores=tuple(score for score in one.scores if score.part != "train" or score.context < 10))
            for one in results.results
        )
    )
    with pytest.raises(InvalidArgument, match="context: is 20; scored were contexts of 1, 5 questions"):
        few.lines("train", 20)
    assert [line.groups for line in few.lines("train")] == [line.groups for line in few.lines("train", 5)] != []
    assert set(few.groups_frame("test").group) == set(TEST)


def test_the_curve_has_every_moment_of_every_seed(results: Results) -> None:
    frame = results.curve_frame()
    assert len(frame) == sum(len(point.alignment) for result in results.results for point in result.points)
    assert {"method", "seed", "rounds", "moved_bytes", "group", "alignment_score"} <= set(frame.columns)


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidResults):
        Results.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"), [({"rounds": 0}, "rounds"), ({"methods": [{"name": "one", "spec": {"rounds": 0}}]}, "one")]
)
def test_values_that_are_no_experiment_name_the_key(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=words):
        Experiment({**VALUES, **changes}, tmp_path)


def test_an_experiment_runs_as_the_command_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[runner.Plan] = []

    def pretend(plan: runner.Plan, tell: Any) -> None:
        tell("training", 1, 2)
        plans.append(plan)
        write_results(plan.out, SMALL[:1], questions=20)

    monkeypatch.setattr(runner, "run_experiment", pretend)
    experiment = Experiment(
        VALUES, tmp_path / "out", device="cpu", only=["two"], embedding_model_path=tmp_path / "tiny"
    )
    written = experiment.run(progress=False)
    assert [result.method for result in written.results] == [SMALL[0].name] * 2
    (plan,) = plans
    assert (plan.out, plan.cache, plan.only) == (tmp_path / "out", tmp_path / "out" / "cache", ("two",))
    assert (plan.device, plan.jobs, plan.model_path) == ("cpu", runner.usual_jobs("cpu"), tmp_path / "tiny")
    assert plan.experiment == experiment.plan
    assert Experiment(VALUES, tmp_path, quick=True).plan == experiment.plan.quick()


def test_an_error_names_the_argument_and_not_the_flag(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"^only: is 'three'"):
        Experiment(VALUES, tmp_path, device="cpu", only=["three"]).run(progress=False)


def test_an_accelerator_gets_one_process() -> None:
    assert runner.usual_jobs("cuda:0") == 1 <= runner.usual_jobs("cpu")
