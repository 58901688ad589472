"""Attack 28: what one update shows, what a masked one shows, and what a sum of three shows, to who tries the same on each."""

import numpy as np
import pytest
from leak.passive import membership_of_update
from leak.replay import Replay, invert
from leak.setting import Flat, distance, predicted, update_of
from numpy.typing import NDArray
from support.private_members import digest
from support.small_survey import small_group, small_spec

from pluralllm.common.private_rounds.masks import add_masks
from pluralllm.common.private_rounds.ring import Ring, clipping_of, decoded_mean, quantised
from pluralllm.experiment.federated import first_values

SEED, ROUND = 5, 2
CLIP_NORM, WEIGHT = 40.0, 100
STEPS = 8
SPEC = small_spec(
    {
        "rounds": 4,
        "predictor": {"dropout": 0.1},
        "training": {"loss": "alignment", "sharpness_spread": 0.3, "local_steps": 3, "learning_rate": 3e-3},
    }
)


def numbers(update: Flat, members: int, rounding: int) -> NDArray[np.uint32]:
    """Returns an update as it is before it is masked."""
    ring = Ring(members, CLIP_NORM, WEIGHT)
    return quantised(update, clipping_of(update, ring), WEIGHT, ring, np.random.default_rng(rounding))


def decoded(total: NDArray[np.uint32], members: int) -> Flat:
    """Returns what the coordinator takes for the mean of a sum of that many updates."""
    return decoded_mean(total, Ring(3, CLIP_NORM, WEIGHT), members * WEIGHT).astype(np.float32)


@pytest.fixture(scope="module")
def seen() -> dict[str, Flat]:
    """Returns the numbers that the coordinator has in a plain round and in a private one of three, the victim among them."""
    base = first_values(SPEC)
    updates = [update_of(SPEC, base, small_group("abc"[n], seed=1 + n), SEED, ROUND) for n in range(3)]
    three = [numbers(update, 3, rounding) for rounding, update in enumerate(updates)]
    masked = three[0].copy()
    add_masks(masked, 64, [(digest("self"), 1), (digest("pair with b"), 1), (digest("pair with c"), -1)])
    total = three[0] + three[1] + three[2]
    return {"plain": updates[0], "masked": decoded(masked, 1), "sum": decoded(total, 3)}


@pytest.mark.slow
def test_28_an_inversion_finds_answers_in_a_plain_update_and_none_in_a_masked_one(seen: dict[str, Flat]) -> None:
    """The attacker knows the seed, too, which no coordinator knows, and still has nothing from the masked update."""
    data, base = small_group("a"), first_values(SPEC)
    replay, start = Replay(SPEC, base, data, SEED, ROUND), predicted(SPEC, base, data)
    before = distance(data, start, replay.targets)
    left = {
        kind: distance(data, invert(replay, update, start, STEPS)[0], replay.targets) / before
        for kind, update in seen.items()
        if kind != "sum"  # benchmarks/privacy_leak.py reports it
    }
    print(f"share of the distance that an inversion leaves: {left}")
    assert left["plain"] < 0.9
    assert left["masked"] > 0.98


def test_28_the_questions_of_an_update_are_told_by_a_plain_one_and_not_by_a_masked_one(seen: dict[str, Flat]) -> None:
    data, base = small_group("a"), first_values(SPEC)
    targets = Replay(SPEC, base, data, SEED, ROUND).targets
    before, everything = predicted(SPEC, base, data), range(len(data.questions))
    chances = {
        kind: membership_of_update(data, before, predicted(SPEC, base + update, data), targets, everything)
        for kind, update in seen.items()
    }
    print(f"chance to tell a question of the update from another one: {chances}")
    assert chances["plain"] > 0.6
    assert abs(chances["masked"] - 0.5) < 0.1
