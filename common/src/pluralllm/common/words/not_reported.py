"""Reasons why a client answers an evaluation without numbers. The client decides; the coordinator only shows the reason."""

from enum import StrEnum


class NotReported(StrEnum):
    """The reason why a client does not report its scores of a model version."""

    TOO_FEW_QUESTIONS = "too_few_questions"  # fewer questions are behind the scores than the client's policy demands
    BUDGET_SPENT = "budget_spent"  # the client has reported as many evaluations of the run as its policy allows
    KEPT_BACK = (
        "kept_back"  # the client's policy keeps its own scores of a run with private rounds, which a sum may have
    )


def not_reported_text(reason: str) -> str:
    """Returns the text that a screen shows in place of a score, for example "not reported: too few questions".

    reason: the value of a NotReported, or the value that a newer release may have sent.
    """
    return f"not reported: {reason.replace('_', ' ')}"
