"""Reward forms: functions that measure how well an answer suits a group, as a number between 0 and 1.

A form gets two arrays, the answer's shares and the group's shares. Each array has one share (a number from 0 to 1) for each
option of a question. The forms come from the follow-up work on PluralLLM (arXiv 2512.08786, arXiv 2604.04261); here all of
them are scaled to the range from 0 to 1. If the answer is a single option, the forms `probability` and `kl` give the same
number. In shapes, O is the number of options.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.predictor.metrics import wasserstein_score

Shares = NDArray[np.floating]  # (O,), sum 1
Scale = Sequence[float | None] | None  # positions of the options on a scale; None: their order is the scale
Form = Callable[[Shares, Shares, Scale], float]


def probability(answer: Shares, group: Shares, _scale: Scale = None) -> float:
    """Returns the group's share of the answered option.

    If the answer gives shares to several options, the group's shares of these options are averaged with the answer's shares as
    weights.
    """
    return float(answer @ group)


def wasserstein(answer: Shares, group: Shares, scale: Scale = None) -> float:
    """Returns 1 - d / m: d is the Wasserstein-1 distance between answer and group, m the greatest possible distance.

    An answer close to the group's answer on the scale gets a high reward. scale: the position of each option; None means that
    the options are one step apart, in their order. If fewer than two options have a position, the reward is 0.
    """
    score = wasserstein_score(answer, group, tuple(range(len(group))) if scale is None else scale)
    return 0.0 if score is None else score


def cosine(answer: Shares, group: Shares, _scale: Scale = None) -> float:
    return float(answer @ group / (np.linalg.norm(answer) * np.linalg.norm(group)))


def kl(answer: Shares, group: Shares, _scale: Scale = None) -> float:
    """Exponential of the negative Kullback-Leibler divergence of the answer from the group: exp(-KL(answer || group))."""
    seen = answer > 0
    with np.errstate(divide="ignore"):  # an option that the group never takes: infinite divergence, reward 0
        divergence = float((answer[seen] * (np.log(answer[seen]) - np.log(group[seen]))).sum())
    return float(np.exp(-max(0.0, divergence)))


def borda(answer: Shares, group: Shares, _scale: Scale = None) -> float:
    """Borda points of the answered option in the group's ranking: 1 for the group's first option, 0 for its last.

    If the answer gives shares to several options, their points are averaged with the shares as weights.
    """
    if len(group) < 2:
        return 1.0
    below = (group[:, None] > group[None, :]).sum(1) + ((group[:, None] == group[None, :]).sum(1) - 1) / 2  # (O,)
    return float(answer @ (below / (len(group) - 1)))


def kendall(answer: Shares, group: Shares, _scale: Scale = None) -> float:
    """Kendall's tau-b (Kendall 1945) between the answer's and the group's ranking of the options, scaled to (tau + 1) / 2.

    The reward is 0.5 if all options are tied in one of the two rankings.
    """
    upper = np.triu_indices(len(group), 1)
    one = np.sign(answer[:, None] - answer[None, :])[upper]  # (O * (O - 1) / 2,)
    other = np.sign(group[:, None] - group[None, :])[upper]
    untied = np.sqrt(float((one != 0).sum()) * float((other != 0).sum()))
    return 0.5 if untied == 0 else float((one @ other) / untied + 1) / 2


def binary(answer: Shares, group: Shares, _scale: Scale = None) -> float:
    """Returns 1 if the same option has the largest share in the answer and in the group, else 0."""
    return float(int(np.argmax(answer)) == int(np.argmax(group)))


FORMS: Mapping[str, Form] = {
    form.__name__: form for form in (probability, wasserstein, cosine, kl, borda, kendall, binary)
}
