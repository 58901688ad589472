"""An experiment's file: its data as one public file or as private files, and methods that train on fewer groups."""

from pathlib import Path
from typing import Any

import pytest

from pluralllm.common.errors.tree import InvalidSpec
from pluralllm.experiment.spec import Experiment, load_experiment

GROUPS = 'train = ["a", "b", "c"]\nvalidation = ["v"]\n'
FILES = 'files = { a = "a.jsonl", b = "b.jsonl", c = "sub/c.parquet", v = "v.jsonl" }\n'
METHOD = '[[methods]]\nname = "one"\n'


def experiment_of(folder: Path, data: str = FILES + GROUPS, methods: str = METHOD, scoring: str = "") -> Experiment:
    path = folder / "experiment.toml"
    path.write_text(f"[data]\n{data}\n[scoring]\n{scoring}\n{methods}", encoding="utf-8")
    return load_experiment(path)


def test_paths_of_private_files_start_from_the_experiments_file(tmp_path: Path) -> None:
    files = experiment_of(tmp_path).data.files
    assert isinstance(files, dict)
    assert files["c"] == tmp_path / "sub" / "c.parquet"
    assert experiment_of(tmp_path, f'files = "survey"\n{GROUPS}').data.files == tmp_path / "survey"
    assert experiment_of(tmp_path, f'file = "/data/all.csv"\n{GROUPS}').data.file == Path("/data/all.csv")


def test_a_worker_reads_the_same_experiment(tmp_path: Path) -> None:
    for data in (FILES + GROUPS, f'files = "survey"\n{GROUPS}', f'file = "all.csv"\n{GROUPS}'):
        experiment = experiment_of(tmp_path, data)
        assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment
        assert Experiment.model_validate_json(experiment.quick().model_dump_json()) == experiment.quick()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (GROUPS, "give either file"),
        (f'file = "all.csv"\n{FILES}{GROUPS}', "give either file"),
        (f'files = {{ a = "a.jsonl", v = "v.jsonl" }}\n{GROUPS}', "files has no file for b, c; add it"),
        (FILES.replace("b.jsonl", "a.jsonl") + GROUPS, "two groups have one file: a.jsonl"),
        (f"files = 3\n{GROUPS}", "give a folder"),
        (f"files = {{ a = 3 }}\n{GROUPS}", "data.files.table.a"),
        (f'{FILES}train = ["a"]', "no group is left to be scored"),
    ],
)
def test_data_that_is_not_named_once_is_refused(tmp_path: Path, data: str, problem: str) -> None:
    with pytest.raises(InvalidSpec, match=problem):
        experiment_of(tmp_path, data)


def test_files_of_groups_that_take_no_part_are_allowed(tmp_path: Path) -> None:
    assert experiment_of(tmp_path, FILES + 'train = ["a"]\nvalidation = ["v"]\n').data.groups == ("a", "v")


def method_of(tmp_path: Path, keys: str, scoring: str = "") -> Experiment:
    return experiment_of(tmp_path, methods=f"{METHOD}{keys}\n", scoring=scoring)


def test_a_method_trains_on_the_first_groups_and_is_scored_on_no_other_training_group(tmp_path: Path) -> None:
    experiment = method_of(tmp_path, "groups = 2")
    spec = experiment.run_spec(experiment.methods[0], 0)
    assert spec.groups.train == ("a", "b")
    assert spec.groups.held_out == ("v",)
    assert (spec.round.min_clients, spec.round.target_clients) == (2, 2)
    assert experiment.scored_groups(experiment.methods[0]) == ("a", "b", "v")
    unscored = method_of(tmp_path, "groups = 2", "train_groups = false")
    assert unscored.scored_groups(unscored.methods[0]) == ("v",)


@pytest.mark.parametrize(("keys", "clients"), [("cohort = 2", 2), ("cohort = 16", 3), ("groups = 1\ncohort = 2", 1)])
def test_a_round_has_the_cohort_or_all_groups_if_they_are_fewer(tmp_path: Path, keys: str, clients: int) -> None:
    experiment = method_of(tmp_path, keys)
    policy = experiment.run_spec(experiment.methods[0], 0).round
    assert (policy.min_clients, policy.target_clients) == (clients, clients)


KEPT = "[methods.spec.training]\nkeep_optimizer_state = true"


@pytest.mark.parametrize(
    ("keys", "scoring", "problem"),
    [
        ("groups = 4", "", "method one: groups = 4, but data.train names 3"),
        ("groups = 0", "", "groups"),
        ('kind = "centralized"\ncohort = 2', "", "cohort is for kind = fedavg"),
        ('kind = "local"', "train_groups = false", "scored on training groups only"),
        ("adapt_steps = 2", "train_groups = false", "scored on training groups only"),
        (f"cohort = 2\n{KEPT}", "", "cohort: leave it out"),
        ('preset = "sums"\ncohort = 2', "", "are terms of sums: set round.target_clients to 3"),
    ],
)
def test_a_method_that_does_not_fit_the_groups_is_refused(
    tmp_path: Path, keys: str, scoring: str, problem: str
) -> None:
    with pytest.raises(InvalidSpec, match=problem):
        method_of(tmp_path, keys, scoring)


def test_moments_may_be_kept_where_every_group_is_in_every_round(tmp_path: Path) -> None:
    assert method_of(tmp_path, f"cohort = 3\n{KEPT}").methods[0].cohort == 3


def test_the_quick_form_trains_on_no_more_groups_than_it_keeps(tmp_path: Path) -> None:
    wide = FILES.replace("a =", 'd = "d.jsonl", a =') + GROUPS.replace('"c"', '"c", "d"')
    quick = experiment_of(tmp_path, wide, methods=f"{METHOD}groups = 4\n").quick()
    assert (quick.data.train, quick.methods[0].groups) == (("a", "b", "c"), 3)


def test_an_experiment_without_the_later_keys_keeps_its_portable_form(tmp_path: Path) -> None:
    """The digest of an experiment is made from this form; results of an earlier release belong to the digest."""
    values = experiment_of(tmp_path, f'file = "all.csv"\n{GROUPS}').portable()
    assert values["data"].keys() == {"file", "layout", "train", "validation", "test", "max_questions"}
    assert values["data"]["file"] == "all.csv"
    assert "train_groups" not in values["scoring"]
    assert not {"groups", "cohort"} & values["methods"][0].keys()


def test_the_portable_form_has_names_of_files_and_no_folders(tmp_path: Path) -> None:
    def portable(data: str) -> dict[str, Any]:
        values: dict[str, Any] = experiment_of(tmp_path, data, scoring="train_groups = false").portable()
        return values

    assert portable(FILES + GROUPS)["data"]["files"]["c"] == "c.parquet"
    folder = portable(f'files = "some/survey"\n{GROUPS}')
    assert folder["data"]["files"] == "survey"
    assert folder["data"]["file"] is None
    assert folder["scoring"]["train_groups"] is False


def test_the_whole_experiment_of_the_page_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "reports.md").read_text(encoding="utf-8")
    [example] = [block for block in page.split("```toml\n")[1:] if "[[methods]]" in block]
    file = tmp_path / "compare.toml"
    file.write_text(example.split("```")[0], encoding="utf-8")
    experiment = load_experiment(file)
    assert [(method.kind, method.preset) for method in experiment.methods] == [
        ("fedavg", "default"),
        ("fedavg", "attention"),
        ("centralized", "default"),
    ]
    assert experiment.data.files == tmp_path / "survey"
