"""The context gain: the alignment score with a group's own context minus the score with another context, for the same questions.

Experiments take other groups' answers as the other context. A client of the service has only its own answers, and takes uniform
answers to the same questions. Without a gain, a model predicts the same for every group, whatever its alignment score is.
"""

from collections.abc import Iterable

from pluralllm.common.errors.tree import InvalidModel

LEAST_CONTEXT_GAIN = 0.005  # below it, predictions do not depend on the group
IGNORES_CONTEXT = "these predictions do not depend on the group"
GAIN_UNKNOWN = "not known, so the predictions may be the same for every group"
UNKNOWN = (
    "The context gain of the model {model} is not known, because no group reported it or an earlier release exported the model. "
    "Its predictions may not depend on the group: score the group's answers with another group's context, too."
)


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


def gain_statement(gain: float | None) -> str:
    """Returns the mean context gain of a version that groups have scored, with a warning if the score alone would mislead."""
    if gain is None:
        return GAIN_UNKNOWN
    return gain_text(gain) + (f": {IGNORES_CONTEXT}" if ignores_context(gain) else "")


def check_context_gain(model: str, gain: float | None, *, accept: bool) -> str:
    """Checks that a model's predictions depend on the group. Returns a warning for people; empty if all is well.

    A reward made from a model that ignores the group prefers the same answers for everybody.
    model: folder or name of the model, for the texts. gain: its context gain; None if it is not known. accept: whether a gain
    near zero gives a warning only.
    Raises InvalidModel if the gain is near zero and `accept` is false.
    """
    if gain is None:
        return UNKNOWN.format(model=model)
    if not ignores_context(gain):
        return ""
    problem = f"its context gain is {gain_text(gain)}, below {LEAST_CONTEXT_GAIN}: {IGNORES_CONTEXT}"
    if accept:
        return f"The model {model}: {problem}."
    fix = "train a version that reads its context, or accept this one: accept_no_context_gain=True, --accept-no-context-gain"
    raise InvalidModel(folder=model, problem=f"{problem}; {fix}")
