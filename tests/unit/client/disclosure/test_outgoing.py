"""The numbers and texts that leave this machine, and how exact they are."""

import math
from typing import Any

import pytest
from support.process_harness import process_spec

from pluralllm.client.disclosure.measurements import MeasuredScores, MeasuredTraining
from pluralllm.client.disclosure.outgoing import (
    check_rewards_context,
    keeps_scores,
    reported_failure,
    reported_metrics,
    reported_progress,
    reported_scores,
    rounded,
    score_in_sum,
)
from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.link.tasks import Scores
from pluralllm.common.errors.private_rounds import TermTooLong
from pluralllm.common.errors.tree import (
    AnswersProtected,
    InvalidConfig,
    InvalidData,
    LedgerBroken,
    LedgerDiverged,
    ModelUnavailable,
    NoisedFileLost,
    NotFinite,
    NotReleased,
    PluginBroken,
    PolicyForbids,
    TooFewQuestions,
)
from pluralllm.common.predictor.metrics import MAX_JS_DISTANCE
from pluralllm.common.words.not_reported import NotReported
from pluralllm.common.words.reward_weights import RewardRun
from pluralllm.common.words.spec import RunSpec

POLICY = Policy()
ALL = frozenset({"loss", "base_distance", "alignment_score", "wasserstein_score", "context_gain"})


def scores(**changes: float | None) -> MeasuredScores:
    values: dict[str, Any] = {
        "alignment_score": 0.71234,
        "wasserstein_score": 0.81234,
        "questions": 30,
        "scale_questions": 30,
        "context_gain": 0.02345,
    }
    return MeasuredScores(**{**values, **changes})


def training(**changes: float) -> MeasuredTraining:
    values: dict[str, Any] = {
        "loss": 1.23456,
        "base_distance": 0.34567,
        "target_questions": 30,
        "first_target_questions": 30,
    }
    return MeasuredTraining(**{**values, **changes})


def of_scores(policy: Policy, measured: MeasuredScores) -> Scores:
    reported = reported_scores(policy, measured)
    assert isinstance(reported, Scores)
    return reported


# Floors


@pytest.mark.parametrize("least", [30, 7])
def test_scores_leave_with_the_least_number_of_questions_and_not_with_one_fewer(least: int) -> None:
    policy = Policy(min_questions_behind=least)
    assert of_scores(policy, scores(questions=least)).questions == least
    assert reported_scores(policy, scores(questions=least - 1)) is NotReported.TOO_FEW_QUESTIONS


def test_the_wasserstein_score_has_a_count_of_its_own() -> None:
    assert of_scores(POLICY, scores(scale_questions=30)).wasserstein_score == 0.81
    assert of_scores(POLICY, scores(scale_questions=29)).wasserstein_score is None
    assert of_scores(POLICY, scores(wasserstein_score=None, scale_questions=0)).wasserstein_score is None


def test_the_context_gain_is_rounded_and_leaves_only_if_the_policy_lists_it() -> None:
    assert of_scores(POLICY, scores()).context_gain == 0.02
    assert of_scores(POLICY, scores(context_gain=-0.0049)).context_gain == 0
    assert of_scores(Policy(allowed_metrics=ALL - {"context_gain"}), scores()).context_gain is None


def test_the_wasserstein_score_leaves_only_if_the_policy_lists_it() -> None:
    policy = Policy(allowed_metrics=ALL - {"wasserstein_score"})
    assert of_scores(policy, scores()).wasserstein_score is None


def test_each_number_of_a_training_has_its_own_count() -> None:
    assert reported_metrics(POLICY, training()) == {"loss": 1.23, "base_distance": 0.35}
    assert reported_metrics(POLICY, training(first_target_questions=29)) == {"loss": 1.23}
    assert reported_metrics(POLICY, training(target_questions=29, first_target_questions=29)) == {}


def test_a_number_of_a_training_leaves_only_if_the_policy_lists_it() -> None:
    assert reported_metrics(Policy(allowed_metrics=ALL - {"loss"}), training()) == {"base_distance": 0.35}
    assert reported_metrics(Policy(allowed_metrics=ALL - {"base_distance"}), training()) == {"loss": 1.23}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stays(loss: float) -> None:
    assert reported_metrics(POLICY, training(loss=loss)) == {"base_distance": 0.35}


def reward_spec(context: int) -> RunSpec:
    rewards = RewardRun(source="runs/s/models/0", model_digest="0" * 64, context_questions=context)
    return process_spec().model_copy(update={"rewards": rewards})


def test_rewards_need_the_least_number_of_context_questions() -> None:
    check_rewards_context(POLICY, reward_spec(30), 30)
    check_rewards_context(POLICY, process_spec(), 1)
    for context, questions in ((29, 300), (300, 29)):
        with pytest.raises(PolicyForbids, match="min_questions_behind is 29, allowed is at least 30"):
            check_rewards_context(POLICY, reward_spec(context), questions)


# Rounding


@pytest.mark.parametrize(
    ("number", "leaves"),
    [
        (0.7149, 0.71),
        (0.7151, 0.72),
        (-1.2349, -1.23),
        (12.345, 12.3),
        (623_451.7, 623_000.0),
        (0.00123, 0.0),
        (0.0, 0.0),
        (1.0, 1.0),
    ],
)
def test_a_number_has_two_decimals_and_three_digits_at_most(number: float, leaves: float) -> None:
    assert rounded(number) == leaves


def test_the_score_to_base_2_tells_nothing_that_the_score_does_not_tell() -> None:
    for exact in (0.7051, 0.7099, 0.7149):
        assert of_scores(POLICY, scores(alignment_score=exact)) == of_scores(POLICY, scores(alignment_score=0.71))
    reported = of_scores(POLICY, scores())
    assert reported.alignment_score_base2 == pytest.approx(1 - 0.29 / MAX_JS_DISTANCE)


@pytest.mark.parametrize("exact", [1 - MAX_JS_DISTANCE, 0.164, 1.0, 0.9999])
def test_scores_at_the_ends_of_their_range_stay_in_it(exact: float) -> None:
    reported = of_scores(POLICY, scores(alignment_score=exact, wasserstein_score=exact))
    assert all(0 <= score <= 1 for score in (reported.alignment_score, reported.alignment_score_base2))


def test_scores_of_noised_answers_have_three_decimals() -> None:
    noised = reported_scores(POLICY, scores(), is_noised=True)
    assert isinstance(noised, Scores)
    assert (noised.alignment_score, noised.wasserstein_score, noised.context_gain) == (0.712, 0.812, 0.023)
    assert noised.alignment_score_base2 == pytest.approx(1 - 0.288 / MAX_JS_DISTANCE)
    assert reported_scores(POLICY, scores(questions=29), is_noised=True) is NotReported.TOO_FEW_QUESTIONS


# Progress and failures


def test_progress_has_hundredths_and_known_stages() -> None:
    assert reported_progress("training", 1, 3) == ("training", 0.33)
    assert reported_progress("training", 5, 3) == ("training", 1.0)
    assert reported_progress("training", -1, 0) == ("training", 0.0)
    assert reported_progress("question 17: 83 % yes", 1, 2) == ("working", 0.5)


@pytest.mark.parametrize(
    "error",
    [
        InvalidData(file="/home/ann/answers.jsonl", problems="  line 3: shares sum to 0.97, not to 1"),
        InvalidConfig(file="/home/ann/answers.jsonl", problems="  threads: 83"),
        ModelUnavailable(model="/home/ann/models", problem="83 is no file"),
        PluginBroken("embedder", "letters", "town", "1", problem="there is no file /home/ann/83"),
        ValueError("shares sum to 0.97"),
        NotReleased(file="/home/town.jsonl"),
        NoisedFileLost(file="/home/noised-83.jsonl", sha256="0.97"),
        AnswersProtected(file="/home/town.jsonl", ledger="/home/town.jsonl.ledger"),
        LedgerBroken(file="/home/ledger.jsonl", problem="line 83 is no entry"),
        LedgerDiverged(file="/home/ledger.jsonl", copy="/home/town.jsonl.ledger"),
    ],
)
def test_no_failure_quotes_the_private_file_or_names_a_file_of_this_machine(error: Exception) -> None:
    reason, text = reported_failure(error)
    assert "the client's log says more" in text
    assert not any(private in text + reason for private in ("0.97", "83", "/home/"))


def test_a_failure_of_numbers_tells_neither_where_nor_how_many() -> None:
    reported = {reported_failure(NotFinite(tensor=tensor, count=count)) for tensor, count in (("a", 1), ("b", 83))}
    reported |= {reported_failure(TermTooLong(norm=norm, limit=864.0)) for norm in (900.0, 901.0)}
    assert len(reported) == 2


def test_a_failure_that_names_no_answer_leaves_with_its_text() -> None:
    error = TooFewQuestions(group="G", usable=3, needed=20, use="training")
    assert reported_failure(error) == ("TOO_FEW_QUESTIONS", str(error))


# Bounds


@pytest.mark.parametrize(("loss", "reported"), [(9.99, 9.99), (10.5, 10.0), (1e9, 10.0), (-10.5, -10.0)])
def test_a_number_of_a_training_is_at_most_ten(loss: float, reported: float) -> None:
    assert reported_metrics(POLICY, training(loss=loss))["loss"] == reported


def test_numbers_without_digits_are_not_rounded() -> None:
    assert rounded(math.inf) == math.inf
    assert rounded(-math.inf) == -math.inf
    assert math.isnan(rounded(math.nan))
    assert rounded(0.0) == 0.0


def test_a_score_that_does_not_exist_is_not_reported_as_zero_and_zero_is_reported() -> None:
    assert of_scores(POLICY, scores(wasserstein_score=None, scale_questions=30)).wasserstein_score is None
    assert of_scores(POLICY, scores(wasserstein_score=0.0)).wasserstein_score == 0.0


@pytest.mark.parametrize(("score", "base2"), [(1.02, 1.0), (1.0, 1.0), (0.0, 0.0), (1 - MAX_JS_DISTANCE, 0.0)])
def test_the_score_to_base_2_lies_between_0_and_1(score: float, base2: float) -> None:
    assert of_scores(POLICY, scores(alignment_score=score)).alignment_score_base2 == pytest.approx(base2, abs=0.005)
    assert 0 <= of_scores(POLICY, scores(alignment_score=score)).alignment_score_base2 <= 1


@pytest.mark.parametrize(
    ("done", "total", "share"), [(0, 0, 0.0), (1, 1, 1.0), (1, 2, 0.5), (3, 2, 1.0), (-1, 2, 0.0), (1, 0, 1.0)]
)
def test_progress_is_a_share(done: int, total: int, share: float) -> None:
    assert reported_progress("training", done, total) == ("training", share)


@pytest.mark.parametrize(
    ("evaluation", "noised", "true_answers"), [("sum", False, True), ("own", False, False), ("none", True, True)]
)
def test_own_scores_of_a_run_with_private_rounds_leave_as_the_policy_says(
    evaluation: str, noised: bool, true_answers: bool
) -> None:
    policy = Policy.model_validate({"private_rounds": {"evaluation": evaluation}})
    private = RunSpec.model_validate(
        {
            "embedding": {"model": "m", "dimension": 8},
            "private_rounds": {},
            "round": {"min_clients": 4, "target_clients": 5},
            "aggregation": {"max_examples": 100},
        }
    )
    assert keeps_scores(policy, private, is_noised=True) is noised
    assert keeps_scores(policy, private, is_noised=False) is true_answers
    plain = private.model_copy(update={"private_rounds": None})
    assert not keeps_scores(policy, plain, is_noised=False), "the table is about private rounds only"


@pytest.mark.parametrize("least", [30, 7])
def test_a_score_is_part_of_a_sum_only_with_enough_questions_behind_it_and_if_the_policy_allows_it(least: int) -> None:
    policy = Policy(min_questions_behind=least)
    assert score_in_sum(policy, scores(questions=least)) == 0.712
    assert score_in_sum(policy, scores(questions=least - 1)) is None
    assert score_in_sum(policy, scores(questions=1000)) == 0.712
    without = Policy(min_questions_behind=least, allowed_metrics=ALL - {"alignment_score"})
    assert score_in_sum(without, scores(questions=1000)) is None
