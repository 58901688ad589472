"""Attacks that only look: predictions of the global model, of one client's model, and of all its updates together; membership."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leak.setting import Flat, Round, Shares, auc, predicted, shares_of, trained_questions
from pluralllm.common.predictor.data import GroupData
from pluralllm.common.predictor.metrics import js_distances
from pluralllm.common.words.spec import RunSpec

FACTORS = (0.01, 0.03, 0.1, 0.3)  # of the direction of a client; the best one for the attacker is reported


def own_direction(rounds: Sequence[Round], client: str) -> Flat:
    """Returns the sum over all rounds of a client's update minus the mean of the other clients' updates. Shape (V,)."""
    total = np.zeros_like(rounds[0].base)
    for one in rounds:
        others = [delta for name, delta in one.deltas.items() if name != client]
        total += one.deltas[client] - np.mean(others, axis=0)
    return total


def from_all_updates(spec: RunSpec, final: Flat, direction: Flat, data: GroupData) -> list[Shares]:
    """Returns the predictions of the final model, moved by several factors along a client's own direction."""
    return [predicted(spec, final + np.float32(factor) * direction, data) for factor in FACTORS]


def membership_of_update(
    data: GroupData, before: Shares, after: Shares, targets: Sequence[int], questions: Sequence[int]
) -> float:
    """Returns the AUC of telling the targets of one update from other questions, by somebody who has the true answers of both.

    The score of a question is how much nearer the client's model is to the answer than the base model.
    before, after: predictions of the base model and of the client's model. questions: all that were candidates.
    """
    gain = _distances(data, before) - _distances(data, after)
    others = sorted(set(questions) - set(targets))
    return auc(gain[list(targets)], gain[others])


def membership_of_run(spec: RunSpec, data: GroupData, final: Shares) -> float:
    """Returns the AUC of telling trained questions from withheld ones. final: the predictions of the final model."""
    nearness = -_distances(data, final)
    trained, withheld = trained_questions(spec, data), data.split(spec.held_out)[1]
    return auc(nearness[list(trained)], nearness[list(withheld)])


def _distances(data: GroupData, guess: Shares) -> NDArray[np.float64]:
    return js_distances(guess, shares_of(data), data.offsets[:-1])
