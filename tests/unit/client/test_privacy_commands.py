"""The commands that release noised answers and show the privacy loss; and the daemon's choice of answers."""

import contextlib
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pluralllm.client import privacy_commands
from pluralllm.client.answers_in_use import TRUE_SHARES, answers_in_use
from pluralllm.client.data.answers import ledger_beside
from pluralllm.client.data.codebook import keep_codebook
from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.client.data.private_data import read_group, write_group
from pluralllm.client.data.private_file import PrivateFile
from pluralllm.client.data_commands import check
from pluralllm.client.disclosure.policy import Policy, RespondentPrivacy, load_policy, new_policy
from pluralllm.client.doctor import PROBES
from pluralllm.client.privacy.entries import question_name
from pluralllm.client.privacy.release import release
from pluralllm.client.privacy_commands import first_release, privacy, release_answers, terms_of
from pluralllm.client.process.config import ClientConfig
from pluralllm.common.errors.tree import (
    AnswersProtected,
    DataChanged,
    InvalidArgument,
    InvalidData,
    NoisedFileLost,
    NotReleased,
)
from pluralllm.common.words.questions import Question


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


def answers_of(settings: ClientConfig, policy: Policy) -> PrivateFile:
    """The answers as a daemon of these settings uses them."""
    return PrivateFile(settings.data, settings.state_dir, functools.partial(answers_in_use, settings, policy))


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
    typed(settings, dry_run=True, epsilon=1.5)
    assert "Epsilon 0 -> 1.5 of 1.5 (--epsilon; the policy allows 2) at" in capsys.readouterr().out
    assert facts(settings, capsys)["epsilon_spent"] == 0
    assert facts(settings, capsys)["declared_to_coordinator"] == "not noised"
    assert not (settings.state_dir / "privacy").exists()


def test_a_release_is_shown_with_what_it_means(settings: ClientConfig, capsys: pytest.CaptureFixture[str]) -> None:
    typed(settings, epsilon=1.0)
    shown = facts(settings, capsys)
    assert (shown["epsilon_spent"], shown["epsilon_allowed"], shown["questions_released"]) == (1.0, 2.0, 4)
    assert (shown["releases"], shown["private_file_changed"], shown["population"]) == (1, False, "respondents")
    assert shown["declared_to_coordinator"] == "epsilon 1, delta 1e-06, unit respondent"
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
        answers_of(settings, policy)
    typed(settings)
    answers = answers_of(settings, policy)
    assert answers.path.parent == settings.state_dir / "privacy"
    assert (answers.questions, answers.is_noised) == (4, True)
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
    for _ in ("with the copy of the ledger", "without"):
        with pytest.raises(AnswersProtected):
            answers_of(settings, load_policy(settings.policy_file))
        ledger_beside(settings.data).unlink(missing_ok=True)


def test_a_running_daemon_uses_a_new_release_before_its_next_task(settings: ClientConfig) -> None:
    typed(settings, epsilon=1.0)
    answers = answers_of(settings, load_policy(settings.policy_file))
    first = (answers.path, answers.sha256)
    assert not answers.has_changed()
    typed(settings)
    with pytest.raises(DataChanged):
        answers.check()
    with capture_logs() as logs:
        assert answers.look(), "Hello must say it"
    assert [(line["event"], line["questions"]) for line in logs] == [("answers.released", 4)]
    answers.check()
    assert (answers.path, answers.sha256) != first
    assert answers.path.name == "noised-2.jsonl"
    assert not answers.has_changed()


def test_a_release_that_was_interrupted_changes_nothing_for_a_running_daemon(settings: ClientConfig) -> None:
    typed(settings, epsilon=1.0)
    answers = answers_of(settings, load_policy(settings.policy_file))
    ledger = settings.state_dir / "privacy" / "ledger.jsonl"
    typed(settings)
    lines = ledger.read_bytes().splitlines(keepends=True)
    for file in (ledger, settings.data.with_name("answers.jsonl.ledger")):
        file.write_bytes(b"".join(lines[:3]))  # the second charge, whose answers are not released
    assert answers.has_changed()
    assert not answers.look()
    assert answers.path.name == "noised-0.jsonl"


def shares_only(settings: ClientConfig, questions: int = 4) -> None:
    rows = [Question(f"Question {n}?", ("Yes", "No"), (0.7, 0.3)) for n in range(questions)]
    write_group(settings.data, rows)


def test_shares_of_nobody_knows_how_many_are_used_only_where_the_policy_allows_it(settings: ClientConfig) -> None:
    shares_only(settings)
    with pytest.raises(NotReleased, match=r"data release --data .*answers.jsonl"):
        answers_of(settings, load_policy(settings.policy_file))
    assert not PROBES["noised answers"](settings).ok
    (settings.state_dir / "policy.toml").write_text(new_policy(noise=True))
    with capture_logs() as logs:
        assert answers_of(settings, load_policy(settings.policy_file)).path == settings.data
    assert [(line["event"], line["reason"]) for line in logs] == [("answers.without_noise", TRUE_SHARES)]
    shown = PROBES["noised answers"](settings)
    assert (shown.ok, shown.result) == (True, f"off: {TRUE_SHARES}")
    assert "--respondents N" in shown.fix


def test_shares_without_noise_are_not_used_once_a_file_of_the_population_was_released(settings: ClientConfig) -> None:
    (settings.state_dir / "policy.toml").write_text(new_policy(noise=True))
    typed(settings)
    renamed = settings.model_copy(update={"data": settings.data.with_name("renamed.jsonl")})
    shares_only(renamed)
    with pytest.raises(NotReleased):
        answers_of(renamed, load_policy(settings.policy_file))
    assert not PROBES["noised answers"](renamed).ok


def test_counts_that_take_the_place_of_shares_are_used_only_after_a_release(settings: ClientConfig) -> None:
    counted = settings.data.read_bytes()
    shares_only(settings)
    (settings.state_dir / "policy.toml").write_text(new_policy(noise=True))
    answers = answers_of(settings, load_policy(settings.policy_file))
    settings.data.write_bytes(counted)
    assert not answers.look()
    with pytest.raises(NotReleased):
        answers.check()
    typed(settings)
    assert answers.look()
    answers.check()
    assert answers.path.name == "noised-0.jsonl"
    shares_only(settings)  # what was released once is never given away without noise
    assert not answers.look()
    assert answers_of(settings, load_policy(settings.policy_file)).path.name == "noised-0.jsonl"


def joined(settings: ClientConfig, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    first_release(settings.data, settings.state_dir, settings.state_dir / "policy.toml")
    return " ".join(capsys.readouterr().out.split())


def test_joining_releases_the_answers_once_and_says_how_to_turn_it_off(
    settings: ClientConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    (settings.state_dir / "policy.toml").write_text(new_policy(noise=True))
    with pytest.raises(InvalidData, match="import the answers again with --options FILE"):
        joined(settings, capsys)
    keep_codebook(settings.data, [Question(f"Question {n}?", ("Yes", "No"), (0.5, 0.5)) for n in range(4)])
    printed = joined(settings, capsys)
    assert "Epsilon 0 -> 4 of 4 at delta 1e-06" in printed
    assert "change by a factor of at most 54.6" in printed
    assert "To turn noise off, remove [privacy] from policy.toml" in printed
    assert joined(settings, capsys) == ""
    assert facts(settings, capsys)["releases"] == 1
    assert (settings.state_dir / "privacy" / "noised-0.jsonl").is_file()


def test_joining_says_why_nothing_is_released(settings: ClientConfig, capsys: pytest.CaptureFixture[str]) -> None:
    shares_only(settings)
    (settings.state_dir / "policy.toml").write_text(new_policy(noise=True))
    assert joined(settings, capsys).startswith(f"Without noise: {TRUE_SHARES}. To change that: import counts")
    (settings.state_dir / "policy.toml").write_text(new_policy(noise=False))
    assert "because" in joined(settings, capsys)
    assert not (settings.state_dir / "privacy").exists()


def test_a_release_takes_the_codebook_beside_the_private_file(settings: ClientConfig) -> None:
    keep_codebook(settings.data, [Question(f"Question {n}?", ("No", "Yes"), (0.5, 0.5)) for n in range(4)])
    typed(settings, options=None)
    noised = read_group(settings.state_dir / "privacy" / "noised-0.jsonl")
    assert noised[0].options == ("No", "Yes")
    settings.data.with_name("answers.jsonl.codebook").write_text("{")
    with pytest.raises(InvalidData, match="it is no codebook"):
        typed(settings, options=None)


def test_a_partner_cannot_state_fewer_questions_than_the_import_has_seen(settings: ClientConfig) -> None:
    keep_codebook(settings.data, None, most_answered=3)
    for stated, fits in ((2, False), (3, True)):
        text = f"[privacy]\nquestions_per_respondent = {stated}\nrespondents = 2000\n"
        (settings.state_dir / "policy.toml").write_text(text)
        with (
            contextlib.nullcontext()
            if fits
            else pytest.raises(InvalidArgument, match="is 2, but one respondent has answ")
        ):
            typed(settings)


def test_without_the_table_the_daemon_uses_the_private_file(settings: ClientConfig) -> None:
    answers = answers_of(settings, load_policy(None))
    assert (answers.path, answers.is_noised) == (settings.data, False)


def test_the_doctor_says_whether_noise_protects_the_respondents(settings: ClientConfig) -> None:
    probe = PROBES["noised answers"]
    assert (probe(settings).ok, probe(settings).fix) == (
        False,
        f"pluralllm-client data release --data {settings.data} --state-dir {settings.state_dir}",
    )
    typed(settings)
    shown = probe(settings).result
    assert "epsilon 2 of 2 spent; the coordinator is told the epsilon spent" in shown
    write_group(settings.data, [CountedQuestion("New?", ("Yes", "No"), (0.5, 0.5), counts=(1, 1))])
    assert probe(settings).result == shown, "a support bundle must not show that the file has changed"
    (settings.state_dir / "policy.toml").unlink()
    assert (probe(settings).ok, probe(settings).result[:4]) == (True, "off:")


def test_the_doctor_repeats_a_stated_number_of_questions_that_lowers_the_loss(settings: ClientConfig) -> None:
    typed(settings)
    for stated, lowers in ((3, True), (4, False), (0, False)):
        (settings.state_dir / "policy.toml").write_text(f"[privacy]\nquestions_per_respondent = {stated}\n")
        shown = PROBES["noised answers"](settings).result
        assert ("spent if nobody has answered more than 3 of 4 questions, as you state;" in shown) == lowers


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
