"""The commands of docs/respondents.md, as a partner types them, with the noise of the library."""

import csv
import json
import os
from pathlib import Path

import pytest
from support.commands import CLIENT, typed

from pluralllm.client.data.private_data import read_group

QUESTIONS = {f"Question {number}?": ["Yes", "No", "Never"] for number in range(30)}


def client(folder: Path, *arguments: str, code: int = 0) -> str:
    usual = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "PLURALLLM_CLIENT_STATE_DIR": str(folder / "state")}
    done = typed(CLIENT, *arguments, environment=usual, folder=folder)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def partner(tmp_path: Path) -> Path:
    """A folder with the answers of 200 respondents, the list of options, and a policy that asks for noise."""
    with (tmp_path / "answers.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["respondent", "question", "answer"])
        for person in range(200):
            for number, (text, options) in enumerate(list(QUESTIONS.items())[:-1]):  # nobody answers the last one
                rows.writerow([person, text, options[(person * 7 + number) % 10 // 5]])
    (tmp_path / "options.json").write_text(json.dumps(QUESTIONS))
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "policy.toml").write_text("[privacy]\nrespondents_epsilon = 2.0\n")
    return tmp_path


def test_the_page_for_a_data_protection_officer_can_be_followed(partner: Path) -> None:
    pytest.importorskip("opendp", reason="the extra `noise` is not installed")
    options = ["--options", "options.json"]
    assert "30 questions" in client(
        partner, "data", "import", "responses", "answers.csv", *options, "--out", "town.jsonl"
    )
    checked = json.loads(client(partner, "data", "check", "town.jsonl", "--epsilon", "2", "--json"))
    assert (checked["usable_questions"], checked["unanswered_questions"]) == (29, 1)
    assert checked["noise_on_a_share"] == pytest.approx(0.066, abs=0.002)
    release = ["data", "release", "--data", "town.jsonl"]
    assert "Epsilon 0 -> 2 of 2" in client(partner, *release, "--dry-run")
    assert not (partner / "town.jsonl.ledger").exists()
    client(partner, *release)
    shown = json.loads(client(partner, "privacy", "--data", "town.jsonl", "--json"))
    assert (shown["epsilon_spent"], shown["releases"], shown["questions_released"]) == (2.0, 1, 30)
    noised = read_group(Path(shown["noised_file"]))
    assert [question.text for question in noised] == list(QUESTIONS)
    moved = [
        abs(one.shares[0] - true.shares[0])
        for one, true in zip(noised, read_group(partner / "town.jsonl"), strict=False)
    ]
    assert 0.02 < sum(moved) / len(moved) < 0.15
    assert "nothing is left for another release" in client(partner, *release, code=3)
    assert "were released with noise" in client(partner, "data", "pairs", "town.jsonl", "--out", "pairs.jsonl", code=3)
