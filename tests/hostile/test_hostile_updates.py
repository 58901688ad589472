"""Hostile members send updates that do harm: the rules stop what moves the mean, and spare a minority that differs honestly.

The members are those of benchmarks/robust_rules.py: seven of a majority, two of a minority, three hostile ones.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from robust_rules import CLIENTS, HOSTILE, MINORITY, RULES, SCALED, outcome, parts_of, spec_of

from pluralllm.common.words.ids import Digest
from pluralllm.server.aggregation.aggregator import aggregator
from pluralllm.server.aggregation.arithmetic import shorten
from pluralllm.server.aggregation.update_files import norm_of
from pluralllm.server.rounds.clipping import clip_scales
from pluralllm.server.rounds.events import Receipt

VALUES = 4_000
HONEST = range(HOSTILE.start)
STOPS = {
    "trimmed_mean": ("sign-flipped", "scaled"),
    "median": ("sign-flipped", "scaled"),
    "multi_krum": ("sign-flipped", "scaled"),
    "median_norm_clip": ("scaled",),
}
# The weight of the minority in the result: without hostile members, and beside those that flip signs. An even share is 0.167.
# multi_krum leaves three updates out in any case; where nobody is hostile, the first ones that it leaves out are the minority's.
MINORITY_WEIGHTS = {
    "mean": (0.167, 0.167),
    "trimmed_mean": (0.112, 0.214),
    "median": (0.109, 0.174),
    "multi_krum": (0.0, 0.222),
    "median_norm_clip": (0.167, 0.167),
}


@dataclass(frozen=True, slots=True)
class Round:
    """The result of a round under a rule."""

    error: float  # distance from the mean of the honest updates, in lengths of that mean
    minority_weight: float


def updates(attack: str) -> NDArray[np.float32]:
    """Returns the updates of a round, (clients, values). An update is its camp's direction, and half as much of its own."""
    rng = np.random.default_rng(0)
    camps = rng.normal(size=(2, VALUES))
    camps[1] = (camps[0] + camps[1]) / 2  # the minority agrees in part
    directions = np.stack([camps[int(place in MINORITY)] for place in range(len(CLIENTS))])
    made = 0.01 * (directions + 0.5 * rng.normal(size=directions.shape))
    made[list(HOSTILE)] *= {"none": 1.0, "sign-flipped": -1.0, "scaled": SCALED}[attack]
    return made.astype(np.float32)


def one_round(rule: str, attack: str) -> Round:
    spec, deltas = spec_of(rule), updates(attack)
    honest = deltas[list(HONEST)].mean(axis=0, dtype=np.float64)
    receipts = [
        Receipt(client, Digest("x"), 1, norm=norm_of(delta)) for client, delta in zip(CLIENTS, deltas, strict=True)
    ]
    even = (1 / len(CLIENTS),) * len(CLIENTS)
    scales = clip_scales(receipts, even, at_median=rule == "median_norm_clip")
    minority_weight, _ = parts_of(spec, deltas, scales)
    shorten(deltas, scales)
    result = aggregator(spec.aggregation).whole(deltas, np.ones(len(CLIENTS)))
    return Round(float(np.linalg.norm(result - honest) / np.linalg.norm(honest)), minority_weight)


@pytest.mark.parametrize("attack", ["sign-flipped", "scaled"])
def test_a_quarter_of_hostile_members_moves_the_mean_and_not_the_rules(attack: str) -> None:
    mean = one_round("mean", attack).error
    assert mean > {"sign-flipped": 0.4, "scaled": 0.9}[attack], "the attack does harm"
    assert one_round("mean", "none").error < 0.2
    for rule, stopped in STOPS.items():
        error = one_round(rule, attack).error
        if attack in stopped:
            assert error < 0.6 * mean, rule
        else:
            assert error > 0.8 * mean, f"{rule} does not stop it, as docs/security.md says"


@pytest.mark.parametrize("rule", RULES)
def test_a_minority_that_differs_honestly_keeps_its_weight(rule: str) -> None:
    weights = [one_round(rule, attack).minority_weight for attack in ("none", "sign-flipped")]
    assert weights == pytest.approx(MINORITY_WEIGHTS[rule], abs=0.004)


def test_members_that_train_on_swapped_answers_spoil_the_mean_more_than_a_rule() -> None:
    def lost(rule: str) -> float:
        clean, spoilt = [outcome(rule, attack, seed=0, rounds=6).majority for attack in ("none", "label-swapped")]
        return clean - spoilt

    mean = lost("mean")
    assert mean > 0.03, "the attack does harm"
    assert lost("multi_krum") < 0.5 * mean
