"""How good an answer is for a group: answer and group as shares of the same options, a number in 0 .. 1 comes out.

Forms as in the follow-up work on PluralLLM (arXiv 2512.08786, arXiv 2604.04261), brought to one range; for a single option as the
answer, `probability` and `kl` are the same number. O: options.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.predictor.metrics import wasserstein_score

Shares = NDArray[np.floating]  # (O,), sum 1
Scale = Sequence[float | None] | None  # positions of the options; None: they stand in their order
Form = Callable[[Shares, Shares, Scale], float]


def probability(answer: Shares, group: Shares, _scale: Scale = None) -> float:
    """The group's share of what was answered; of several options the mean, weighted by the answer."""
    return float(answer @ group)


def wasserstein(answer: Shares, group: Shares, scale: Scale = None) -> float:
    """1 - W1 / max W1 over the scale: an answer that is near in meaning counts. Where there is no scale the order is one."""
    found = wasserstein_score(answer, group, tuple(range(len(group))) if scale is None else scale)
    return 0.0 if found is None else found


def cosine(answer: Shares, group: Shares, _scale: Scale = None) -> float:
    return float(answer @ group / (np.linalg.norm(answer) * np.linalg.norm(group)))


def kl(answer: Shares, group: Shares, _scale: Scale = None) -> float:
    """exp(-KL(answer || group))."""
    seen = answer > 0
    with np.errstate(divide="ignore"):  # an option that the group never takes: infinite divergence, reward 0
        divergence = float((answer[seen] * (np.log(answer[seen]) - np.log(group[seen]))).sum())
    return float(np.exp(-max(0.0, divergence)))


def borda(answer: Shares, group: Shares, _scale: Scale = None) -> float:
    """Borda points of the answer in the group's ranking: 1 for its first option, 0 for its last."""
    if len(group) < 2:
        return 1.0
    below = (group[:, None] > group[None, :]).sum(1) + ((group[:, None] == group[None, :]).sum(1) - 1) / 2  # (O,)
    return float(answer @ (below / (len(group) - 1)))


def kendall(answer: Shares, group: Shares, _scale: Scale = None) -> float:
    """Kendall's tau-b (Kendall 1945) of the two rankings, as (tau + 1) / 2; without any order to compare, 0.5."""
    upper = np.triu_indices(len(group), 1)
    one = np.sign(answer[:, None] - answer[None, :])[upper]  # (O * (O - 1) / 2,)
    other = np.sign(group[:, None] - group[None, :])[upper]
    untied = np.sqrt(float((one != 0).sum()) * float((other != 0).sum()))
    return 0.5 if untied == 0 else float((one @ other) / untied + 1) / 2


def binary(answer: Shares, group: Shares, _scale: Scale = None) -> float:
    """1 if the answer's first option is the group's, else 0."""
    return float(int(np.argmax(answer)) == int(np.argmax(group)))


FORMS: Mapping[str, Form] = {
    form.__name__: form for form in (probability, wasserstein, cosine, kl, borda, kendall, binary)
}
