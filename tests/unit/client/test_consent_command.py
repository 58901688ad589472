"""The command `pluralllm-client consent`, from the daemon's question to the stored answer."""

from pathlib import Path

import pytest
from support.process_harness import process_spec
from typer.testing import CliRunner, Result

from pluralllm.client.__main__ import app
from pluralllm.client.disclosure.consents import Consents
from pluralllm.client.disclosure.differences import differences_of
from pluralllm.client.disclosure.policy import Policy
from pluralllm.common.errors.tree import ConsentNeeded, InvalidArgument
from pluralllm.common.words.ids import RunId
from pluralllm.common.words.spec import RunSpec

SPEC = process_spec(
    title="\x1b[31mall\u202efine\n",
    training={"local_steps": 1},
    embedding={"model": "tiny", "dimension": 32, "templates": ["\x1b[2J{question}", "{option}"]},
)


def is_refused(folder: Path, spec: RunSpec = SPEC) -> bool:
    """Returns whether the daemon of this state directory refuses the run r; if it does, it stores its question."""
    try:
        Consents(folder).demand(RunId("r"), spec, differences_of(Policy(), spec))
    except ConsentNeeded:
        return True
    return False


def consent(folder: Path, *words: str, answer: str = "") -> Result:
    return CliRunner().invoke(app, ["consent", "r", "--state-dir", str(folder), *words], input=answer)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pluralllm.client.consent_command._is_terminal", lambda: True)


def test_every_difference_is_shown_on_a_line_of_its_own_and_nothing_raw(tmp_path: Path) -> None:
    assert is_refused(tmp_path)
    shown = consent(tmp_path, "--yes")
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert lines[0].startswith(r'Run r ("\u001b[31mall\u202efine\n") asks for what policy.toml does not allow')
    for difference in differences_of(Policy(), SPEC):
        assert f"  {difference.text}" in lines
        assert difference.danger in lines
    assert "  round.min_clients is 2, allowed is at least 3 (min_cohort)" in lines
    assert SPEC.sha256() in shown.output
    assert shown.output.isascii()
    assert all(line.isprintable() for line in lines)
    assert not is_refused(tmp_path)


@pytest.mark.parametrize(("answer", "refused_after"), [("y\n", False), ("n\n", True), ("\n", True), ("", True)])
@pytest.mark.usefixtures("terminal")
def test_only_a_yes_on_the_terminal_is_a_consent(tmp_path: Path, answer: str, refused_after: bool) -> None:
    assert is_refused(tmp_path)
    assert (consent(tmp_path, answer=answer).exit_code == 0) is not refused_after
    assert is_refused(tmp_path) == refused_after


def test_without_a_terminal_the_word_yes_is_needed(tmp_path: Path) -> None:
    assert is_refused(tmp_path)
    result = consent(tmp_path, answer="y\n")
    assert isinstance(result.exception, InvalidArgument)
    assert "--yes" in str(result.exception)
    assert is_refused(tmp_path)


def test_a_consent_can_be_withdrawn(tmp_path: Path) -> None:
    assert is_refused(tmp_path)
    consent(tmp_path, "--yes")
    assert "1 consent withdrawn" in consent(tmp_path, "--withdraw").output
    assert is_refused(tmp_path)
    assert "no consent" in consent(tmp_path, "--withdraw").output


def test_a_run_that_was_not_refused_is_named_with_those_that_were(tmp_path: Path) -> None:
    with pytest.raises(ConsentNeeded):
        Consents(tmp_path).demand(RunId("other"), SPEC, differences_of(Policy(), SPEC))
    result = consent(tmp_path, "--yes")
    assert isinstance(result.exception, InvalidArgument)
    assert "has not refused a run" in str(result.exception)
    assert "other" in str(result.exception)
    assert not (tmp_path / "disclosure" / "consents.json").exists()


def test_the_state_directory_may_come_from_the_daemons_configuration(tmp_path: Path) -> None:
    assert is_refused(tmp_path / "state")
    config = tmp_path / "client.toml"
    config.write_text(f'data = "answers.jsonl"\nstate_dir = "{tmp_path / "state"}"\n')
    assert CliRunner().invoke(app, ["consent", "r", "--config", str(config), "--yes"]).exit_code == 0
    assert not is_refused(tmp_path / "state")
