"""An experiment with private rounds has the sums of the service, without the masks that cancel in them."""

from typing import Any

import numpy as np
import pytest
import torch
from support.small_survey import small_group, small_spec

from pluralllm.common.private_rounds.masks import MaskStreams
from pluralllm.common.private_rounds.ring import Clipping, Ring, decoded_mean, quantised
from pluralllm.common.words.ids import ClientId, Digest, RoundNumber
from pluralllm.common.words.own_weights import MAX_FACTOR
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.federated import federate
from pluralllm.experiment.ring_sums import RingSums
from pluralllm.server.rounds.events import Receipt

NAMES = ("a", "b", "c", "d")
FIRST = RoundNumber(1)


def spec_of(**changes: Any) -> RunSpec:
    values: dict[str, Any] = {
        "rounds": 2,
        "groups": {"train": list(NAMES)},
        "round": {"min_clients": 3, "target_clients": 4},
        "aggregation": {"max_examples": 100},
        "private_rounds": {"colluders": 1, "clip_norm": 4.0},
    }
    return small_spec({**values, **changes})


def receipts(*examples: int, distances: tuple[float, ...] = (0.3, 0.3, 0.3, 0.3)) -> tuple[Receipt, ...]:
    return tuple(
        Receipt(ClientId(name), Digest(name), count, distance)
        for name, count, distance in zip(NAMES, examples, distances, strict=True)
    )


def deltas(*values: float, size: int = 50) -> dict[ClientId, Any]:
    return {ClientId(name): np.full(size, value, np.float32) for name, value in zip(NAMES, values, strict=True)}


def test_the_mean_is_the_weighted_mean_up_to_a_step_of_the_ring() -> None:
    mean = RingSums(spec_of()).mean(FIRST, receipts(10, 20, 30, 200), deltas(0.1, -0.2, 0.3, 0.05))
    weights = np.array([10, 20, 30, 100])  # at most max_examples
    assert mean == pytest.approx(np.full(50, weights @ [0.1, -0.2, 0.3, 0.05] / 160), abs=1e-6)


def test_masks_that_cancel_leave_the_same_bits() -> None:
    """The numbers of two members with streams of opposite sign add up to the numbers without them."""
    ring, rng = Ring(4, 4.0, 100), np.random.default_rng
    bare = [quantised(np.full(50, value, np.float32), Clipping(1.0, False), 100, ring, rng(7)) for value in (0.1, -0.2)]
    masked = [numbers.copy() for numbers in bare]
    for numbers, sign in zip(masked, (1, -1), strict=True):
        MaskStreams([(bytes(32), sign)]).add_to(numbers)
    assert (masked[0] != bare[0]).any()
    assert (decoded_mean(masked[0] + masked[1], ring, 200) == decoded_mean(bare[0] + bare[1], ring, 200)).all()


def test_a_long_update_is_shortened_to_the_clip_norm_whatever_the_others_are() -> None:
    long = 100.0 / np.sqrt(50)  # of norm 100
    mean = RingSums(spec_of()).mean(FIRST, receipts(9, 9, 9, 9), deltas(0.0, 0.0, 0.0, long))
    assert np.linalg.norm(mean) == pytest.approx(4.0 / 4, rel=1e-5)


def test_the_same_seed_rounds_the_same_way_and_another_round_another_way() -> None:
    small = deltas(1e-9, 1e-9, 1e-9, 1e-9)
    made = [
        RingSums(spec_of(**seed)).mean(RoundNumber(number), receipts(9, 9, 9, 9), small)
        for seed, number in (({}, 1), ({}, 1), ({}, 2), ({"seed": 8}, 1))
    ]
    assert [bool((made[0] == other).all()) for other in made[1:]] == [True, False, False]


def test_each_client_computes_its_own_fair_weight_from_the_mean_distance_of_the_last_sum() -> None:
    fair = {"max_examples": 100, "weighting": "q_fair", "fairness": 1.0}
    sums, update = RingSums(spec_of(aggregation=fair)), deltas(1e-2, 0.0, 0.0, 0.0)
    uneven = receipts(10, 10, 10, 10, distances=(0.6, 0.2, 0.2, 0.2))
    first, second = (sums.mean(RoundNumber(number), uneven, update)[0] / 1e-2 for number in (1, 2))
    assert first == pytest.approx(1 / 4, abs=1e-3), "no sum before: even weights"
    assert second == pytest.approx(2.0 / (2.0 + 3 * 2 / 3), abs=1e-3), "0.6 and 0.2 beside the mean 0.3"
    assert max(second, first) < MAX_FACTOR / (MAX_FACTOR + 1)


def test_a_federation_with_private_rounds_trains_as_the_plain_one_up_to_the_rounding() -> None:
    groups = {name: small_group(name, questions=20) for name in NAMES}
    plain, private = (
        list(federate(spec, groups, torch.device("cpu"))) for spec in (spec_of(private_rounds=None), spec_of())
    )
    assert private[1].values == pytest.approx(plain[1].values, abs=2e-6)
    assert private[-1].values == pytest.approx(plain[-1].values, abs=1e-3), "Adam makes more of the difference"
    assert (private[-1].values != plain[-1].values).any()
    assert private[-1].moved_bytes - plain[-1].moved_bytes == 2 * len(NAMES) * 64 * 4, "each update has a tail"
