"""Budgets of runs a day and of scored versions of a run, and the scores that were reported."""

import dataclasses
import datetime
import stat
from pathlib import Path

import pytest

from pluralllm.client.disclosure.budgets import Budgets, utc_today
from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.link.tasks import Scores, Task
from pluralllm.common.errors.tree import AnswerInvalid, InvalidConfig, PolicyForbids, SpecMismatch
from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId, TaskId
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.not_reported import NotReported
from pluralllm.common.words.spec import PRESETS, preset_values

SPEC, OTHER_SPEC = Digest("5" * 64), Digest("6" * 64)
SCORES = Scores(0.71, 0.65, None, 40)


class Calendar:
    """A calendar that a test turns."""

    def __init__(self) -> None:
        self.day = datetime.date(2026, 1, 31)

    def __call__(self) -> datetime.date:
        return self.day


def budgets(folder: Path, today: Calendar | None = None, runs: tuple[str, ...] = (), **keys: float) -> Budgets:
    made = Budgets(folder / "runs", Policy.model_validate(keys), today or Calendar())
    made.open_for(map(RunId, runs))
    return made


def task(version: int, run: str = "r", digest: str = "") -> Task:
    return Task(
        name=TaskId(f"{run}/{version}/evaluate/ann"),
        run=RunId(run),
        kind=TaskKind.EVALUATE,
        round=RoundNumber(version),
        spec_sha256=SPEC,
        base_version=ModelVersion(version),
        base_digest=Digest(digest or f"{version:064}"),
        base_record_sha256="",
        cohort_size=8,
        seed=1,
    )


def test_the_budget_of_a_run_allows_its_last_evaluation_and_not_one_more(tmp_path: Path) -> None:
    kept = budgets(tmp_path, max_evaluations_of_run=3)
    kept.join(RunId("r"), SPEC)
    for version in range(3):
        assert kept.answer(task(version)) is None
        kept.keep(task(version), SCORES)
    assert kept.answer(task(3)) is NotReported.BUDGET_SPENT


def test_scores_from_true_answers_are_not_reported_once_the_answers_are_noised(tmp_path: Path) -> None:
    kept = budgets(tmp_path, max_evaluations_of_run=2)
    kept.join(RunId("r"), SPEC)
    kept.keep(task(0), SCORES)
    kept.follow(noised=False)
    assert kept.answer(task(0)) == SCORES
    kept.follow(noised=True)
    assert kept.answer(task(0)) is None
    kept.keep(task(0), SCORES)
    budgets(tmp_path).follow(noised=True)
    assert kept.answer(task(0)) == SCORES, "these are from noised answers"
    kept.begin(task(1))
    assert kept.answer(task(2)) is NotReported.BUDGET_SPENT, "a forgotten score stays counted"
    kept.follow(noised=False)
    kept.follow(noised=True)
    assert kept.answer(task(0)) is None, "in between the answers were true ones"


def test_a_version_that_was_scored_has_its_scores_again_and_costs_nothing(tmp_path: Path) -> None:
    kept = budgets(tmp_path, max_evaluations_of_run=2)
    kept.join(RunId("r"), SPEC)
    kept.keep(task(0), SCORES)
    for _ in range(5):
        assert kept.answer(task(0)) == SCORES
        kept.keep(task(0), SCORES)
    assert kept.answer(task(1)) is None


def test_an_evaluation_that_has_begun_counts_even_if_it_fails_and_may_be_repeated(tmp_path: Path) -> None:
    kept = budgets(tmp_path, max_evaluations_of_run=2)
    kept.join(RunId("r"), SPEC)
    for version in (0, 1):
        kept.begin(task(version))
    again = budgets(tmp_path, max_evaluations_of_run=2)
    assert again.answer(task(2)) is NotReported.BUDGET_SPENT
    assert again.answer(task(0)) is None
    again.keep(task(0), SCORES)
    assert again.answer(task(0)) == SCORES
    again.take_back(task(1))  # too few questions
    assert again.answer(task(2)) is None


def test_failed_evaluations_count_in_the_month_with_the_fewest_questions_that_the_policy_allows(tmp_path: Path) -> None:
    kept = budgets(tmp_path, min_questions_behind=2)
    kept.join(RunId("r"), SPEC)
    for version in (0, 1):
        assert kept.answer(task(version)) is None
        kept.begin(task(version))
    assert kept.answer(task(2)) is NotReported.BUDGET_SPENT


def test_another_model_under_the_same_version_number_costs_an_evaluation(tmp_path: Path) -> None:
    kept = budgets(tmp_path, max_evaluations_of_run=1)
    kept.join(RunId("r"), SPEC)
    kept.keep(task(0), SCORES)
    assert kept.answer(task(0, digest="f" * 64)) is NotReported.BUDGET_SPENT
    assert kept.answer(dataclasses.replace(task(0), base_version=ModelVersion(1))) is NotReported.BUDGET_SPENT


def test_each_run_has_a_budget_of_its_own(tmp_path: Path) -> None:
    kept = budgets(tmp_path, max_evaluations_of_run=1)
    for run in ("r", "s"):
        kept.join(RunId(run), SPEC)
    kept.keep(task(0), SCORES)
    assert kept.answer(task(0, "s")) is None


def test_a_spent_budget_is_named_by_its_key(tmp_path: Path) -> None:
    kept = budgets(tmp_path, max_evaluations_of_run=1)
    kept.join(RunId("r"), SPEC)
    assert kept.spent(RunId("r")) is None
    kept.keep(task(0), SCORES)
    assert kept.key_behind(RunId("r"), NotReported.BUDGET_SPENT) == "max_evaluations_of_run"
    assert kept.key_behind(RunId("r"), NotReported.TOO_FEW_QUESTIONS) == "min_questions_behind"


@pytest.mark.parametrize(("per_question", "allowed"), [(1.0, 40), (0.5, 20), (0.51, 21), (2.0, 80)])
def test_a_month_allows_as_many_scores_of_all_runs_as_questions_are_behind_them(
    tmp_path: Path, per_question: float, allowed: int
) -> None:
    today = Calendar()
    kept = budgets(tmp_path, today, max_scores_per_question=per_question, max_evaluations_of_run=30)
    runs = ["a", "b", "c", "d"]
    for run in runs:
        kept.join(RunId(run), SPEC)
    asked = [task(version, run) for version in range(30) for run in runs]
    for one in asked[:allowed]:
        assert kept.answer(one) is None
        kept.keep(one, SCORES)
    assert kept.answer(asked[allowed]) is NotReported.BUDGET_SPENT
    assert kept.key_behind(asked[allowed].run, NotReported.BUDGET_SPENT) == "max_scores_per_question"
    today.day += datetime.timedelta(days=29)
    assert kept.answer(asked[allowed]) is NotReported.BUDGET_SPENT
    assert kept.answer(asked[0]) == SCORES, "scores that were reported cost nothing, now and later"
    today.day += datetime.timedelta(days=1)
    assert kept.answer(asked[allowed]) is None


def test_the_score_with_the_fewest_questions_behind_it_sets_the_budget_of_the_month(tmp_path: Path) -> None:
    kept = budgets(tmp_path, max_evaluations_of_run=1_000)
    kept.join(RunId("r"), SPEC)
    for version in range(30):
        assert kept.answer(task(version)) is None
        kept.keep(task(version), dataclasses.replace(SCORES, questions=300 if version else 30))
    assert kept.answer(task(30)) is NotReported.BUDGET_SPENT


def test_the_budgets_survive_a_restart(tmp_path: Path) -> None:
    first = budgets(tmp_path, max_evaluations_of_run=1, max_runs_a_day=1)
    first.join(RunId("r"), SPEC)
    first.keep(task(0), SCORES)
    second = budgets(tmp_path, max_evaluations_of_run=1, max_runs_a_day=1)
    assert (second.answer(task(0)), second.answer(task(1))) == (SCORES, NotReported.BUDGET_SPENT)
    with pytest.raises(PolicyForbids):
        second.join(RunId("s"), SPEC)


def test_a_day_allows_its_last_run_and_not_one_more_and_the_next_day_has_a_new_budget(tmp_path: Path) -> None:
    today = Calendar()
    kept = budgets(tmp_path, today, max_runs_a_day=2)
    for run in ("a", "b"):
        kept.join(RunId(run), SPEC)
    with pytest.raises(PolicyForbids, match="max_runs_a_day is 3, allowed is at most 2 new runs a day"):
        kept.join(RunId("c"), SPEC)
    kept.join(RunId("a"), SPEC)  # joined already
    today.day += datetime.timedelta(days=1)
    kept.join(RunId("c"), SPEC)
    kept.join(RunId("d"), SPEC)
    with pytest.raises(PolicyForbids):
        kept.join(RunId("e"), SPEC)


def test_a_refused_run_may_ask_again_on_the_next_day_and_only_once(tmp_path: Path) -> None:
    today = Calendar()
    kept = budgets(tmp_path, today, max_runs_a_day=1)
    kept.join(RunId("a"), SPEC)
    assert not kept.may_ask_again()
    with pytest.raises(PolicyForbids):
        kept.join(RunId("b"), SPEC)
    assert not kept.may_ask_again()
    today.day += datetime.timedelta(days=1)
    assert kept.may_ask_again()
    assert not kept.may_ask_again()


def test_a_run_that_an_earlier_release_had_joined_goes_on_and_counts_for_no_day(tmp_path: Path) -> None:
    kept = budgets(tmp_path, runs=("old",), max_runs_a_day=1)
    kept.join(RunId("new"), SPEC)
    kept.join(RunId("old"), SPEC)
    again = budgets(tmp_path, runs=("later",), max_runs_a_day=1)  # accounts are there, so nothing is opened
    with pytest.raises(PolicyForbids):
        again.join(RunId("later"), SPEC)


def test_a_run_keeps_the_spec_that_it_was_joined_with(tmp_path: Path) -> None:
    kept = budgets(tmp_path, runs=("old",))
    for run in ("r", "old"):
        kept.join(RunId(run), SPEC)
        with pytest.raises(SpecMismatch):
            kept.join(RunId(run), OTHER_SPEC)


@pytest.mark.parametrize("run", ["../../policy", "a/b", "", "A", "a" * 41])
def test_a_run_id_that_is_no_id_never_becomes_a_file_name(tmp_path: Path, run: str) -> None:
    with pytest.raises(AnswerInvalid):
        budgets(tmp_path).join(RunId(run), SPEC)


def test_today_is_a_day_in_utc() -> None:
    assert abs(utc_today() - datetime.datetime.now(tz=datetime.UTC).date()) <= datetime.timedelta(days=1)


def test_the_default_budget_covers_every_evaluation_of_the_presets() -> None:
    for name in PRESETS:
        values = preset_values(name)
        rounds, every = values["rounds"], values["round"]["evaluate_every"]
        assert 1 + -(-rounds // every) <= Policy().max_evaluations_of_run


def test_accounts_are_private_and_a_budget_that_has_room_again_still_has_a_key(tmp_path: Path) -> None:
    kept = budgets(tmp_path)
    kept.join(RunId("r"), SPEC)
    assert stat.S_IMODE((tmp_path / "runs" / "r.json").stat().st_mode) == 0o600
    assert kept.spent(RunId("r")) is None
    assert kept.key_behind(RunId("r"), NotReported.BUDGET_SPENT) == "max_evaluations_of_run"
    assert kept.key_behind(RunId("r"), NotReported.TOO_FEW_QUESTIONS) == "min_questions_behind"


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "{}", "5", "{", "\0", '{"scores": {}}', '{"joined": "2027-01-01", "scores": []}'),
        *('{"joined": 5, "scores": {}}', '{"joined": "2027-01-01", "scores": {"0/a": {}}}'),
        '{"joined": "2027-01-01", "scores": {"0/a": {"day": "2027-01-01", "scores": {"questions": 5}}}}',
        '{"joined": "2027-01-01", "scores": {"0/a": {"day": "then", "scores": null}}}',
    ],
)
def test_a_damaged_account_is_named_and_not_counted_as_empty(tmp_path: Path, content: str) -> None:
    kept = budgets(tmp_path)
    kept.join(RunId("r"), Digest("s"))
    (path,) = tmp_path.rglob("r.json")
    path.write_text(content)
    for join in (RunId("r"), RunId("other")):
        with pytest.raises(InvalidConfig, match=r"r\.json .*\n  it is damaged"):
            kept.join(join, Digest("s"))


def test_a_score_inside_a_sum_counts_once_with_the_questions_behind_it(tmp_path: Path) -> None:
    kept = budgets(tmp_path, max_evaluations_of_run=2, max_scores_per_question=0.03)
    kept.join(RunId("r"), SPEC)
    assert kept.add_to_sum(task(0), 40)
    assert kept.add_to_sum(task(0), 40), "the round was abandoned, and the same score goes into the next sum"
    assert kept.spent(RunId("r")) is None, "1 score, and 0.03 * 40 are allowed"
    assert kept.add_to_sum(task(1), 20)
    assert kept.spent(RunId("r")) == "max_evaluations_of_run"
    assert not kept.add_to_sum(task(2), 40)
    kept.join(RunId("s"), SPEC)
    assert kept.spent(RunId("s")) == "max_scores_per_question", "of all runs, by the fewest questions"
    assert kept.answer(task(1)) is None, "a score that was in a sum is not one that was reported"


def test_scores_that_were_reported_between_two_releases_of_noised_answers_are_forgotten(tmp_path: Path) -> None:
    kept = budgets(tmp_path)
    kept.join(RunId("r"), SPEC)
    for noised in (True, False):
        kept.follow(noised=noised)
    assert kept.answer(task(0)) is None
    kept.keep(task(0), SCORES)
    kept.follow(noised=True)
    assert kept.answer(task(0)) is None, "it is scored again"
    assert stat.S_IMODE((tmp_path / "runs" / "r.json").stat().st_mode) == 0o600


def test_a_client_without_accounts_may_follow_noised_answers_and_an_account_keeps_its_keys(tmp_path: Path) -> None:
    Budgets(tmp_path / "new", Policy(), Calendar()).follow(noised=True)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["from-noised-answers"]
    kept = budgets(tmp_path, runs=("r",))
    file = tmp_path / "runs" / "r.json"
    before = file.read_bytes()
    kept.follow(noised=True)
    assert file.read_bytes() == before, "what an earlier release did not write is not added"


def test_the_last_score_that_a_budget_allows_in_a_sum_may_go_into_the_next_sum_too(tmp_path: Path) -> None:
    kept = budgets(tmp_path, max_evaluations_of_run=1)
    kept.join(RunId("r"), SPEC)
    assert [kept.add_to_sum(task(version), 40) for version in (0, 0, 1)] == [True, True, False]
