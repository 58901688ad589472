"""Fairness-aware weights: their direction, their size, and their bounds when clients report little or lie."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralllm.common.predictor.metrics import MAX_JS_DISTANCE
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import ClientId, Digest
from pluralllm.server.rounds.events import Receipt
from pluralllm.server.rounds.weighting import MAX_LEANING, FairnessHistory, shares_of, weigh, weights_of

FAIR: list[Any] = ["q_fair", "agnostic", "adaptive"]
CLIENTS = [ClientId(name) for name in ("ann", "ben", "cat", "dan")]
distances_or_none = st.none() | st.floats(0, MAX_JS_DISTANCE)


def receipts_of(*distances: float | None, examples: int = 10) -> list[Receipt]:
    return [Receipt(c, Digest(c), examples, d) for c, d in zip(CLIENTS, distances, strict=False)]


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_weights_that_follow_from_the_receipts_are_not_recorded(weighting: Any) -> None:
    assert weigh(receipts_of(0.1, 0.5), Aggregation(weighting=weighting), ()) == ((), ())


def test_uniform_weights_need_no_limit() -> None:
    receipts = [Receipt(CLIENTS[0], Digest("x"), 1), Receipt(CLIENTS[1], Digest("y"), 10**6)]
    assert weigh(receipts, Aggregation(weighting="uniform"), (), limits_members=True) == ((), ())


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ((10, 20, 30, 40), ()),
        ((10, 10, 10, 90), ()),  # exactly three even shares
        ((10, 10, 10, 91), (1 / 12, 1 / 12, 1 / 12, 3 / 4)),
        ((10, 10, 10, 10**6), (1 / 12, 1 / 12, 1 / 12, 3 / 4)),
        ((30, 30, 30, 9), ()),
        ((30, 30, 30, 8), (11 / 36, 11 / 36, 11 / 36, 1 / 12)),  # below a third of an even share
        ((10, 30), ()),
        ((10, 10**6), (1 / 6, 5 / 6)),
        ((10**6,), ()),
        ((10, 1, 10**6), (1 / 9, 1 / 9, 7 / 9)),
        ((6, 1, 1, 1, 1), ()),  # of five: three even shares, and no share below a third of an even one
        ((7, 1, 1, 1, 1), (3 / 5, 1 / 10, 1 / 10, 1 / 10, 1 / 10)),
        ((3, 12, 12), ()),
        ((3, 12, 13), (1 / 9, 4 / 9 * 24 / 25, 4 / 9 * 26 / 25)),
    ],
)
def test_weights_by_examples_stay_within_three_even_shares_where_members_are_limited(
    counts: tuple[int, ...], weights: tuple[float, ...]
) -> None:
    members = [*CLIENTS, ClientId("eve")]
    receipts = [Receipt(client, Digest("x"), count) for client, count in zip(members, counts, strict=False)]
    limited, history = weigh(receipts, Aggregation(), (), limits_members=True)
    assert limited == pytest.approx(weights, abs=1e-9)
    assert history == ()
    assert weigh(receipts, Aggregation(), ()) == ((), ())


@pytest.mark.parametrize(
    ("aggregation", "recorded", "weights", "shares"),
    [
        (Aggregation(max_examples=1_000), (), (10, 1_000), (10 / 1010, 1000 / 1010)),
        (Aggregation(weighting="uniform"), (), (1, 1), (0.5, 0.5)),
        (Aggregation(weighting="adaptive"), (0.25, 0.75), (0.25, 0.75), (0.25, 0.75)),
        (Aggregation(weighting="uniform"), (0.25, 0.25), (0.25, 0.25), (0.5, 0.5)),  # recorded weights come first
    ],
)
def test_weights_in_the_mean_are_the_recorded_ones_or_those_of_the_spec(
    aggregation: Aggregation, recorded: tuple[float, ...], weights: tuple[float, ...], shares: tuple[float, ...]
) -> None:
    receipts = [Receipt(CLIENTS[0], Digest("x"), 10), Receipt(CLIENTS[1], Digest("y"), 5_000)]
    assert weights_of(receipts, aggregation, recorded) == weights
    assert shares_of(receipts, aggregation, recorded) == pytest.approx(shares)


def test_no_receipts_have_no_shares() -> None:
    assert shares_of((), Aggregation()) == ()


def test_the_cap_on_examples_comes_before_the_limit() -> None:
    receipts = [
        Receipt(client, Digest("x"), count) for client, count in zip(CLIENTS, (100, 100, 100, 10**6), strict=True)
    ]
    assert weigh(receipts, Aggregation(max_examples=900), (), limits_members=True) == ((), ())
    assert weigh(receipts, Aggregation(max_examples=901), (), limits_members=True)[0][-1] == pytest.approx(0.75)


@pytest.mark.parametrize("weighting", FAIR)
def test_the_worse_a_client_is_predicted_the_more_it_counts(weighting: Any) -> None:
    weights, _ = weigh(receipts_of(0.2, 0.4, 0.3), Aggregation(weighting=weighting), ())
    assert weights[1] > weights[2] > weights[0]
    assert sum(weights) == pytest.approx(1)


@pytest.mark.parametrize("weighting", FAIR)
def test_more_fairness_leans_further(weighting: Any) -> None:
    little, much = (
        weigh(receipts_of(0.2, 0.3), Aggregation(weighting=weighting, fairness=fairness), ())[0]
        for fairness in (0.5, 1.0)
    )
    assert much[1] > little[1] > 0.5


def test_q_fair_weights_are_examples_times_the_distance_to_the_q() -> None:
    receipts = [Receipt(CLIENTS[0], Digest("x"), 10, 0.2), Receipt(CLIENTS[1], Digest("y"), 20, 0.3)]
    weights, _ = weigh(receipts, Aggregation(weighting="q_fair", fairness=2.0, max_examples=15), ())
    expected = [10 * 0.2**2, 15 * 0.3**2]
    assert weights == pytest.approx([each / sum(expected) for each in expected], abs=1e-11)


def test_q_fair_with_hardly_any_q_is_weighting_by_examples() -> None:
    receipts = [Receipt(CLIENTS[0], Digest("x"), 10, 0.0), Receipt(CLIENTS[1], Digest("y"), 20, 0.8)]
    weights, _ = weigh(receipts, Aggregation(weighting="q_fair", fairness=1e-12), ())
    assert weights == pytest.approx([1 / 3, 2 / 3], abs=1e-9)


@pytest.mark.parametrize("weighting", ["agnostic", "adaptive"])
def test_hardly_any_fairness_leaves_even_shares(weighting: Any) -> None:
    weights, _ = weigh(receipts_of(0.1, 0.2, 0.7), Aggregation(weighting=weighting, fairness=1e-12), ())
    assert weights == pytest.approx([1 / 3] * 3, abs=1e-9)


def test_the_agnostic_mixture_grows_by_the_exponential_of_the_distance_round_by_round() -> None:
    aggregation = Aggregation(weighting="agnostic", fairness=0.7)
    history: FairnessHistory = ()
    for number in (1, 2, 3):
        weights, history = weigh(receipts_of(0.2, 0.5), aggregation, history)
        expected = [math.exp(0.7 * 0.2 * number), math.exp(0.7 * 0.5 * number)]
        assert weights == pytest.approx([each / sum(expected) for each in expected], abs=1e-10)
        assert history == tuple(zip(CLIENTS[:2], weights, strict=True))


def test_who_is_not_in_a_round_keeps_its_place_in_the_mixture() -> None:
    aggregation = Aggregation(weighting="agnostic")
    _, history = weigh(receipts_of(0.3, 0.3, 0.3), aggregation, ())
    weights, after = weigh(receipts_of(0.2, 0.4), aggregation, history)
    assert len(weights) == 2
    assert dict(after)[CLIENTS[0]] < dict(after)[CLIENTS[2]] < dict(after)[CLIENTS[1]]
    assert sum(dict(after).values()) == pytest.approx(1)


def test_adaptive_weights_are_the_softmax_of_the_exponential_means_of_the_distances() -> None:
    aggregation = Aggregation(weighting="adaptive", fairness=2.0)
    history: FairnessHistory = ()
    for distances in ((0.2, 0.4), (0.6, 0.4)):
        weights, history = weigh(receipts_of(*distances), aggregation, history)
    assert history == ((CLIENTS[0], 0.4), (CLIENTS[1], 0.4))
    assert weights == (0.5, 0.5)


def test_a_client_that_fell_behind_late_comes_to_the_front_again() -> None:
    aggregation = Aggregation(weighting="agnostic", fairness=5.0)
    history: FairnessHistory = ()
    for _ in range(500):
        _, history = weigh(receipts_of(0.1, 0.8), aggregation, history)
    for _ in range(3):
        weights, history = weigh(receipts_of(0.8, 0.1), aggregation, history)
    assert weights[0] > weights[1]


@pytest.mark.parametrize("weighting", FAIR)
def test_who_gives_no_distance_counts_with_the_mean_of_those_given(weighting: Any) -> None:
    aggregation = Aggregation(weighting=weighting)
    silent, reported = (weigh(receipts_of(0.25, middle, 0.5), aggregation, ()) for middle in (None, 0.375))
    assert silent == reported


@pytest.mark.parametrize("weighting", FAIR)
def test_when_nobody_gives_a_distance_weights_are_by_examples_and_nothing_is_learnt(weighting: Any) -> None:
    receipts = [Receipt(CLIENTS[0], Digest("x"), 10), Receipt(CLIENTS[1], Digest("y"), 30)]
    history = ((CLIENTS[0], 0.9), (CLIENTS[1], 0.1))
    weights, after = weigh(receipts, Aggregation(weighting=weighting), history)
    assert weights == pytest.approx([0.25, 0.75])
    assert after == history


@pytest.mark.parametrize("weighting", FAIR)
def test_a_client_that_lies_gets_no_more_than_the_cap(weighting: Any) -> None:
    honest = [Receipt(ClientId(f"c{number}"), Digest("x"), 10, 0.01) for number in range(9)]
    liar = Receipt(ClientId("d"), Digest("x"), 10, MAX_JS_DISTANCE)
    weights, _ = weigh([*honest, liar], Aggregation(weighting=weighting, fairness=1e6), ())
    assert weights[-1] == pytest.approx(MAX_LEANING / 10)
    assert weights[:-1] == pytest.approx([(1 - MAX_LEANING / 10) / 9] * 9)


@given(
    weighting=st.sampled_from(FAIR),
    rounds=st.lists(st.lists(distances_or_none, min_size=1, max_size=4), min_size=1, max_size=6),
    fairness=st.floats(1e-9, 1e9),
    examples=st.lists(st.integers(1, 10**6), min_size=4, max_size=4),
)
def test_weights_are_always_shares_within_their_bounds(
    weighting: Any, rounds: list[list[float | None]], fairness: float, examples: list[int]
) -> None:
    history: FairnessHistory = ()
    for distances in rounds:
        receipts = [
            Receipt(client, Digest("x"), count, distance)
            for client, count, distance in zip(CLIENTS, examples, distances, strict=False)
        ]
        weights, history = weigh(receipts, Aggregation(weighting=weighting, fairness=fairness), history)
        even = 1 / len(receipts)
        assert len(weights) == len(receipts)
        assert sum(weights) == pytest.approx(1, abs=1e-10)
        assert all(even / MAX_LEANING - 1e-11 <= weight <= even * MAX_LEANING + 1e-11 for weight in weights)
        assert [client for client, _ in history] == sorted({client for client, _ in history})
        assert all(0 <= number <= 1 for _, number in history)


def test_a_client_that_comes_later_starts_with_an_even_share_of_the_mixture() -> None:
    aggregation = Aggregation(weighting="agnostic", fairness=0.5)
    _, before = weigh(receipts_of(0.1, 0.4), aggregation, ())
    assert dict(before) == pytest.approx({"ann": LOW / (LOW + 1), "ben": 1 / (LOW + 1)})
    _, after = weigh(receipts_of(0.2, 0.2, 0.2), aggregation, before)
    known = dict(before)
    scores = {"ann": known[CLIENTS[0]], "ben": known[CLIENTS[1]], "cat": 0.5}
    assert dict(after) == pytest.approx({client: score / 1.5 for client, score in scores.items()})


LOW = math.exp(0.5 * -0.3)  # factor of ann's weight to ben's after a round with distances 0.1 and 0.4


def test_weights_have_twelve_decimals() -> None:
    weights, history = weigh(receipts_of(0.2, 0.2, 0.2), Aggregation(weighting="adaptive"), ())
    assert weights == (0.333333333333,) * 3
    _, history = weigh(receipts_of(0.12345678901234), Aggregation(weighting="adaptive"), ())
    assert history == (("ann", 0.123456789012),)
