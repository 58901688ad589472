"""The partner sees its own scores, and which of them have left this machine."""

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from pluralllm.client.__main__ import app
from pluralllm.client.disclosure.measurements import MeasuredScores
from pluralllm.client.disclosure.own_scores import (
    KEPT_BACK,
    OWN_SCORES,
    REPORTED,
    OwnScores,
    OwnScoresFolder,
    in_sum_of,
)
from pluralllm.common.errors.tree import NotFound
from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId


def status(state: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["status", *words, "--state-dir", str(state)])


def scored(state: Path) -> Path:
    folder = OwnScoresFolder(state / OWN_SCORES)
    for run, version, left in (("r", 3, in_sum_of(RoundNumber(4))), ("r", 4, KEPT_BACK), ("s", 1, REPORTED)):
        measured = MeasuredScores(0.71 + version / 1000, None, 40, 0, 0.02)
        folder.keep(RunId(run), OwnScores(ModelVersion(version), Digest("d"), run == "s", left, measured))
    return state


def test_the_newest_scores_of_each_run_are_shown_with_what_has_become_of_them(tmp_path: Path) -> None:
    assert status(scored(tmp_path)).output.splitlines() == [
        "run r, version 4: alignment 0.7140 over 40 questions, context gain +0.0200, against true answers; "
        "stay on this machine",
        "run s, version 1: alignment 0.7110 over 40 questions, context gain +0.0200, against noised answers; "
        "reported, rounded",
    ]


def test_all_versions_of_one_run_are_shown_if_asked_for(tmp_path: Path) -> None:
    lines = status(scored(tmp_path), "r", "--all").output.splitlines()
    assert [line.split("; ")[1] for line in lines] == ["given to the sum of round 4", "stay on this machine"]
    rows = json.loads(status(tmp_path, "r", "--json").output)["scores"]
    assert [(row["version"], row["alignment_score"], row["left"]) for row in rows] == [
        (3, 0.713, "given to the sum of round 4"),
        (4, 0.714, "stay on this machine"),
    ]


def test_a_client_without_scores_says_so_and_a_run_without_scores_is_not_found(tmp_path: Path) -> None:
    assert status(tmp_path).output == "no version has been scored yet\n"
    assert isinstance(status(tmp_path, "q").exception, NotFound)
