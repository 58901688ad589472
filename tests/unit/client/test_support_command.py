"""A support bundle holds no text of the private file, and nothing that tells how people have answered."""

import zipfile
from pathlib import Path

import pytest

from pluralllm.client.data.codebook import keep_codebook
from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.client.data.private_data import write_group
from pluralllm.client.doctor import PROBES
from pluralllm.client.support_command import support_bundle

UNANSWERED = "Has anybody here been to the northern lighthouse?"


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The parts of a bundle of a partner with one answered question and one that nobody has answered."""
    rows = [
        CountedQuestion("Do you like the sea?", ("Yes", "No"), (0.7, 0.3), counts=(7, 3), respondents=10),
        CountedQuestion(UNANSWERED, ("Yes", "No"), (0.5, 0.5), counts=(0, 0), respondents=0),
    ]
    data = tmp_path / "town.jsonl"
    write_group(data, rows)
    keep_codebook(data, rows)
    (tmp_path / "policy.toml").write_text("[privacy]\nrespondents = 1013\n")
    (tmp_path / "client.toml").write_text(f'data = "{data}"\nstate_dir = "{tmp_path}"\nplain_text = true\n')
    log = tmp_path / "daemon.log"
    log.write_text(
        f'{{"event": "client.connected"}}\n{{"event": "data.not_released"}}\n{{"event": "x", "of": "{UNANSWERED}"}}\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pluralllm.client.support_command.checks_of", lambda of: [PROBES["private data"](of)])
    support_bundle(tmp_path / "bundle.zip", [log], tmp_path / "client.toml")
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_it_does_not_tell_which_or_how_many_questions_have_answers(bundle: dict[str, str]) -> None:
    assert '"questions": 2' in bundle["data.json"]
    assert "2 questions, 0 problems" in bundle["doctor.json"]
    assert UNANSWERED not in "".join(bundle.values())


def test_it_does_not_tell_that_the_private_file_has_changed(bundle: dict[str, str]) -> None:
    (log,) = (text for name, text in bundle.items() if name.startswith("logs/"))
    assert "client.connected" in log
    assert "data.not_released" not in log
    assert '"file": "policy.toml"' in bundle["state.json"]
    assert "town.jsonl" not in bundle["state.json"]


def test_it_does_not_tell_the_number_of_respondents(bundle: dict[str, str]) -> None:
    assert "respondents_epsilon" in bundle["policy.json"]
    assert "1013" not in "".join(bundle.values())
