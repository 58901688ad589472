"""Decides which numbers and texts leave this machine, and how exact they are. Every one of them passes through this module.

A number about this group's answers leaves only if the policy lists it in allowed_metrics and at least min_questions_behind of
the group's questions are behind it. It is rounded, so that a difference of two numbers does not show a single answer. Scores
against noised answers keep one decimal more: every respondent is protected by the noise already.
Two numbers pass unchanged because they depend on no answer: how many questions are scored, and how many a run trains on.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

from pluralllm.client.disclosure.measurements import MeasuredScores, MeasuredTraining
from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.link.tasks import Scores
from pluralllm.common.errors.private_rounds import TermTooLong
from pluralllm.common.errors.tree import (
    AnswersProtected,
    DataChanged,
    InvalidConfig,
    InvalidData,
    LedgerBroken,
    LedgerDiverged,
    ModelUnavailable,
    NoisedFileLost,
    NotFinite,
    NotReleased,
    PluginBroken,
    PluralError,
    PolicyForbids,
)
from pluralllm.common.words.not_reported import NotReported
from pluralllm.common.words.spec import RunSpec

DECIMALS = 2
DECIMALS_OF_NOISED = 3  # of scores against answers that were released with noise
WORST_DISTANCE = math.sqrt(math.log(2))  # between shares that have no option in common
DIGITS = 3  # a model can be made so that a loss is very large; its last digits would then show single answers
STAGES = frozenset({"embedding", "training", "masking", "evaluating", "scoring"})
OTHER_STAGE = "working"
IN_LOG = "the client's log says more"
LARGEST = 10.0  # of a number of a training; a larger one is reported as this
# Their texts quote the private file, name files of this machine, or tell where and how often numbers that depend on answers fail.
PRIVATE_TEXTS: Mapping[type[Exception], str] = MappingProxyType(
    {
        InvalidData: f"The private file has problems; {IN_LOG}.",
        **dict.fromkeys(
            (AnswersProtected, LedgerBroken, LedgerDiverged, NoisedFileLost, NotReleased),
            f"The answers cannot be used; {IN_LOG}.",
        ),
        DataChanged: f"The private file has changed; {IN_LOG}.",
        InvalidConfig: f"The configuration has problems; {IN_LOG}.",
        NotFinite: f"The update has NaN or infinite values; {IN_LOG}.",
        TermTooLong: f"The term of the sum is longer than the run's bound; {IN_LOG}.",
        ModelUnavailable: f"The embedding model cannot be loaded; {IN_LOG}.",
        PluginBroken: f"The embedder that the run spec names cannot be used; {IN_LOG}.",
    }
)


def rounded(number: float, decimals: int = DECIMALS) -> float:
    """Returns a number with at most `decimals` decimals and at most DIGITS significant digits."""
    if number == 0 or not math.isfinite(number):
        return number
    return round(number, min(decimals, DIGITS - 1 - math.floor(math.log10(abs(number)))))


def reported_scores(policy: Policy, measured: MeasuredScores, *, is_noised: bool = False) -> Scores | NotReported:
    """Returns the scores that leave this machine, or the reason why none does.

    is_noised: whether the answers that were scored have noise.
    The score to base 2 follows from the rounded score: rounded by itself, it would narrow the exact score down.
    """
    if measured.questions < policy.min_questions_behind:
        return NotReported.TOO_FEW_QUESTIONS
    decimals = DECIMALS_OF_NOISED if is_noised else DECIMALS
    score = rounded(measured.alignment_score, decimals)
    keeps_wasserstein = (
        measured.wasserstein_score is None
        or "wasserstein_score" not in policy.allowed_metrics
        or measured.scale_questions < policy.min_questions_behind
    )
    return Scores(
        alignment_score=score,
        alignment_score_base2=min(1.0, max(0.0, 1 - (1 - score) / WORST_DISTANCE)),
        wasserstein_score=None if keeps_wasserstein else rounded(measured.wasserstein_score or 0.0, decimals),
        questions=measured.questions,
        context_gain=rounded(measured.context_gain, decimals) if "context_gain" in policy.allowed_metrics else None,
    )


def keeps_scores(policy: Policy, spec: RunSpec, *, is_noised: bool) -> bool:
    """Returns whether no score of this client's own leaves in a run. Only the policy for private rounds can say so.

    is_noised: whether the answers that would be scored have noise, which protects every respondent already.
    """
    if spec.private_rounds is None:
        return False
    match policy.private_rounds.evaluation:
        case "own":
            return False
        case "sum":  # a score of true answers leaves only inside a sum
            return not is_noised
        case "none":
            return True


def score_in_sum(policy: Policy, measured: MeasuredScores) -> float | None:
    """Returns the score that leaves this machine inside the sum of a private round; None if too few questions are behind it.

    Nobody reads it alone. It is rounded all the same, so that the members of a small sum give each other no more digits than the
    score of noised answers has.
    """
    if measured.questions < policy.min_questions_behind or "alignment_score" not in policy.allowed_metrics:
        return None
    return rounded(measured.alignment_score, DECIMALS_OF_NOISED)


def reported_metrics(policy: Policy, measured: MeasuredTraining) -> dict[str, float]:
    """Returns the numbers of a training that leave this machine, by name."""
    behind = {
        "loss": (measured.loss, measured.target_questions),
        "base_distance": (measured.base_distance, measured.first_target_questions),
    }
    return {
        name: rounded(min(LARGEST, max(-LARGEST, number)))
        for name, (number, questions) in behind.items()
        if name in policy.allowed_metrics and questions >= policy.min_questions_behind and math.isfinite(number)
    }


def check_rewards_context(policy: Policy, spec: RunSpec, questions: int) -> None:
    """Checks that rewards have enough of the group's questions behind them. Raises PolicyForbids otherwise.

    questions: number of the group's questions. Does nothing for a run that trains.
    """
    if spec.rewards is not None:
        behind = min(questions, spec.rewards.context_questions)
        if behind < policy.min_questions_behind:
            allowed = f"at least {policy.min_questions_behind} context questions of rewards"
            raise PolicyForbids(key="min_questions_behind", asked=str(behind), allowed=allowed)


def reported_progress(stage: str, done: int, total: int) -> tuple[str, float]:
    """Returns the stage of the work and its progress, 0 to 1 in hundredths, as they are reported to the coordinator."""
    share = min(1.0, max(0.0, done / max(1, total)))
    return stage if stage in STAGES else OTHER_STAGE, round(share, 2)


def reported_failure(error: Exception) -> tuple[str, str]:
    """Returns the code and the text of an error as they are reported to the coordinator.

    An error of the tree has a text that names no answer. The text of another error may quote one, so it stays in the log.
    """
    if not isinstance(error, PluralError):
        return type(error).__name__, IN_LOG
    return error.reason, PRIVATE_TEXTS.get(type(error), str(error))
