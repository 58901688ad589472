"""The context gain: the alignment score with a group's own context minus the score with another context, for the same questions.

Experiments take other groups' answers as the other context. A client of the service has only its own answers, and takes uniform
answers to the same questions. Without a gain, a model predicts the same for every group, whatever its alignment score is.
"""

from collections.abc import Iterable

LEAST_CONTEXT_GAIN = 0.005  # below it, predictions do not depend on the group
IGNORES_CONTEXT = "these predictions do not depend on the group"


def mean_gain(gains: Iterable[float | None]) -> float | None:
    """Returns the mean of the context gains that are not None; None if there is none."""
    measured = [gain for gain in gains if gain is not None]
    return sum(measured) / len(measured) if measured else None


def ignores_context(gain: float | None) -> bool:
    """Returns whether a context gain was measured and shows that the predictions do not depend on the group."""
    return gain is not None and gain < LEAST_CONTEXT_GAIN


def gain_text(gain: float | None) -> str:
    """Returns a context gain as text with its sign; a dash if it was not measured."""
    return "-" if gain is None else f"{gain:+.4f}"
