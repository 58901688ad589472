"""The exact numbers that the worker process has measured. They stay on this machine: outgoing.py decides what leaves.

The numbers of a measurement have other types than the numbers that the transport sends, so that none goes out by mistake.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MeasuredTraining:
    """The numbers of one training, and how many different questions are behind each."""

    loss: float  # mean over the local steps
    base_distance: float  # mean distance between the base model's predictions and the first step's target questions
    target_questions: int  # different target questions of all steps: behind the loss
    first_target_questions: int  # different target questions of the first step: behind the base distance


@dataclass(frozen=True, slots=True)
class MeasuredScores:
    """The scores of one model version, and how many different questions are behind each."""

    alignment_score: float  # 1 - mean Jensen-Shannon distance, natural logarithm
    wasserstein_score: float | None  # None if no question has a scale
    questions: int  # behind the alignment score
    scale_questions: int  # questions with a scale: behind the Wasserstein score
    context_gain: float  # alignment score minus the score with uniform answers as the context, for the same questions
