"""Refuses a model whose predictions do not depend on the group: a reward made from it prefers the same answers for everybody.

The context gain of a version is measured by the groups of its run, and an exported model carries it in config.json.
"""

import warnings

from pluralllm.common.errors.tree import InvalidModel
from pluralllm.common.words.context_gain import IGNORES_CONTEXT, LEAST_CONTEXT_GAIN, gain_text, ignores_context

UNKNOWN = (
    "The context gain of the model {model} is not known, because no group reported it or an earlier release exported the model. "
    "Its predictions may not depend on the group: score the group's answers with another group's context, too."
)


class ContextGainWarning(UserWarning):
    """Warning that a model's predictions do not depend on the group, or that nobody has measured whether they do."""


def check_context_gain(model: str, gain: float | None, *, accept: bool) -> str:
    """Checks that a model's predictions depend on the group. Returns a warning for people; empty if all is well.

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


def warn(warning: str) -> None:
    """Issues a warning of this module, once for each model and line of code; does nothing for an empty text."""
    if warning:
        warnings.warn(warning, ContextGainWarning, stacklevel=3)
