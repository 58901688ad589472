"""The commands that release noised answers and show the privacy loss; and the daemon's choice of answers."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from pluralllm.client import privacy_commands
from pluralllm.client.__main__ import _answers
from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.client.data.private_data import write_group
from pluralllm.client.data_commands import check
from pluralllm.client.disclosure.policy import RespondentPrivacy, load_policy
from pluralllm.client.doctor import PROBES
from pluralllm.client.privacy.entries import question_name
from pluralllm.client.privacy.release import release
from pluralllm.client.privacy_commands import privacy, release_answers, terms_of
from pluralllm.client.process.config import ClientConfig
from pluralllm.common.errors.tree import AnswersProtected, InvalidArgument, InvalidData, NoisedFileLost, NotReleased


def with_noise(numbers: Sequence[int], sigma: float) -> list[int]:
    return [number + round(sigma) for number in numbers]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClientConfig:
    """A partner with 1,000 respondents, four questions and a policy that asks for noise."""
    monkeypatch.setattr(privacy_commands, "release", functools.partial(release, draw=with_noise))
    monkeypatch.setattr(privacy_commands, "need_noise", lambda: None)
    options = {f"Question {n}?": ["Yes", "No"] for n in range(4)}
    (tmp_path / "options.json").write_text(json.dumps(options))
    write_group(
        tmp_path / "answers.jsonl",
        [CountedQuestion(text, ("Yes", "No"), (0.7, 0.3), counts=(700, 300), respondents=1000) for text in options],
    )
    (tmp_path / "policy.toml").write_text("[privacy]\nrespondents_epsilon = 2.0\n")
    return ClientConfig(data=tmp_path / "answers.jsonl", state_dir=tmp_path)


def typed(settings: ClientConfig, **options: object) -> None:
    values = {
        "options": settings.state_dir / "options.json",
        "questions": "",
        "epsilon": None,
        "list_ids": False,
        "dry_run": False,
        "data": settings.data,
        "config": None,
        "state_dir": settings.state_dir,
    }
    release_answers(**{**values, **options})  # type: ignore[arg-type]


def facts(settings: ClientConfig, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    privacy(None, settings.data, settings.state_dir, as_json=True)
    values: dict[str, object] = json.loads(capsys.readouterr().out)
    return values


def test_a_dry_run_says_what_a_release_costs_and_spends_nothing(
    settings: ClientConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(settings, dry_run=True)
    printed = capsys.readouterr().out
    assert "4 questions: noise of 4.8 answers on each count, which is 0.005 on a share of 1000 respondents" in printed
    assert "Epsilon 0 -> 2 of 2 at delta 1e-06" in printed
    assert facts(settings, capsys)["epsilon_spent"] == 0
    assert not (settings.state_dir / "privacy").exists()


def test_a_release_is_shown_with_what_it_means(settings: ClientConfig, capsys: pytest.CaptureFixture[str]) -> None:
    typed(settings, epsilon=1.0)
    shown = facts(settings, capsys)
    assert (shown["epsilon_spent"], shown["epsilon_allowed"], shown["questions_released"]) == (1.0, 2.0, 4)
    assert (shown["releases"], shown["private_file_changed"], shown["population"]) == (1, False, "respondents")
    privacy(None, settings.data, settings.state_dir, as_json=False)
    assert "change by a factor of at most 2.72, except with a chance of 1e-06" in " ".join(
        capsys.readouterr().out.split()
    )


def test_questions_are_named_by_their_ids(settings: ClientConfig, capsys: pytest.CaptureFixture[str]) -> None:
    typed(settings, list_ids=True)
    first, second = [line.split()[0] for line in capsys.readouterr().out.splitlines()[:2]]
    typed(settings, questions=f"{first[:8]}, {second.upper()}", epsilon=1.0)
    assert facts(settings, capsys)["questions_released"] == 2
    for wrong in ("12345678", first[:7], f"{first},"):
        with pytest.raises(InvalidArgument, match="is not the beginning of one question's id"):
            typed(settings, questions=wrong)


def test_more_than_the_policy_allows_is_refused(settings: ClientConfig) -> None:
    with pytest.raises(InvalidArgument, match=r"--epsilon: is 3, policy.toml allows 2"):
        typed(settings, epsilon=3.0)
    (settings.state_dir / "policy.toml").write_text("min_cohort = 3\n")
    with pytest.raises(InvalidArgument, match=r"has no table \[privacy\]"):
        typed(settings)


@pytest.mark.parametrize("options", ['{"Q?": ["a"]}', '{"Q?": ["a", " a"]}', '{" ": ["a", "b"]}', '{"Q?": ["a", ""]}'])
def test_a_list_of_options_that_cannot_be_asked_is_refused(settings: ClientConfig, options: str) -> None:
    (settings.state_dir / "options.json").write_text(options)
    with pytest.raises(InvalidData, match="give at least 2 different options"):
        typed(settings)


def test_the_daemon_uses_released_answers_only(settings: ClientConfig) -> None:
    policy = load_policy(settings.policy_file)
    with pytest.raises(NotReleased):
        _answers(settings, policy)
    typed(settings)
    answers = _answers(settings, policy)
    assert answers.path.parent == settings.state_dir / "privacy"
    assert answers.questions == 4
    content = answers.path.read_bytes()
    answers.path.write_bytes(content.replace(b"0.", b"1.", 1))
    assert not answers.look()
    with pytest.raises(NoisedFileLost):
        answers.check()
    answers.path.write_bytes(content)
    answers.look()
    answers.check()


def test_the_daemon_does_not_go_back_to_true_answers_when_the_policy_forgets_the_noise(settings: ClientConfig) -> None:
    typed(settings)
    (settings.state_dir / "policy.toml").unlink()
    with pytest.raises(AnswersProtected):
        _answers(settings, load_policy(settings.policy_file))


def test_without_the_table_the_daemon_uses_the_private_file(settings: ClientConfig) -> None:
    assert _answers(settings, load_policy(None)).path == settings.data


def test_the_doctor_says_whether_noise_protects_the_respondents(settings: ClientConfig) -> None:
    probe = PROBES["noised answers"]
    assert (probe(settings).ok, probe(settings).fix) == (False, "pluralllm-client data release --options FILE")
    typed(settings)
    assert probe(settings).result.endswith("epsilon 2 of 2 spent")
    write_group(settings.data, [CountedQuestion("New?", ("Yes", "No"), (0.5, 0.5), counts=(1, 1))])
    assert probe(settings).result.endswith(
        "epsilon 2 of 2 spent"
    )  # a support bundle must not show that the file has changed
    (settings.state_dir / "policy.toml").unlink()
    assert (probe(settings).ok, probe(settings).result[:4]) == (True, "off:")


def test_the_doctor_asks_for_the_number_of_respondents_where_the_file_has_none(settings: ClientConfig) -> None:
    rows = [CountedQuestion(f"Question {n}?", ("Yes", "No"), (0.7, 0.3), counts=(700, 300)) for n in range(4)]
    write_group(settings.data, rows)
    typed(settings)
    assert "state in [privacy]: respondents" in PROBES["noised answers"](settings).fix
    (settings.state_dir / "policy.toml").write_text("[privacy]\nrespondents = 1000\n")
    assert PROBES["noised answers"](settings).fix == ""


def test_the_check_of_a_file_tells_the_noise_before_anything_is_spent(
    settings: ClientConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    check(settings.data, None, epsilon=2.0, delta=1e-6, questions_per_respondent=0, as_json=True)
    all_of_them = json.loads(capsys.readouterr().out)
    assert all_of_them["noise_on_a_share"] == pytest.approx(4.8 / 1000, rel=0.05)
    assert 0 < all_of_them["distance_of_noised_answers"] < 0.02
    check(settings.data, None, epsilon=2.0, delta=1e-6, questions_per_respondent=1, as_json=True)
    assert json.loads(capsys.readouterr().out)["noise_on_a_share"] == pytest.approx(2.4 / 1000, rel=0.05)
    write_group(settings.data, [CountedQuestion("Q?", ("Yes", "No"), (0.7, 0.3))])
    check(settings.data, None, epsilon=2.0, delta=1e-6, questions_per_respondent=0, as_json=True)
    assert json.loads(capsys.readouterr().out)["noise_on_a_share"] is None


def test_the_partners_statements_become_terms() -> None:
    stated = RespondentPrivacy(
        respondents_epsilon=3.0, delta=1e-7, questions_per_respondent=9, respondents=50, max_weight=2.0, population="p"
    )
    terms = terms_of(stated)
    assert (terms.epsilon, terms.delta, terms.questions_per_respondent) == (3.0, 1e-7, 9)
    assert (terms.respondents, terms.max_weight, terms.population) == (50, 2.0, "p")
    assert len(question_name(CountedQuestion("Q?", ("a", "b"), (1.0, 0.0)))) == 64
