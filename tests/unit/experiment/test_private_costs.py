"""benchmarks/private_rounds.py counts a whole private round with the service's own code, and adds in the ring as it does."""

import asyncio
from pathlib import Path

import numpy as np
from round_costs import alignment
from round_costs.parties import PrivateRound, Spent, colluders_of

from pluralllm.common.private_rounds.ring import Ring
from pluralllm.common.words.ids import ClientId


def test_a_round_whose_cost_is_counted_makes_the_mean_without_those_that_dropped_out(tmp_path: Path) -> None:
    played = PrivateRound(tmp_path / "round", clients=5, megabytes=4, drops=1, seed=3)
    plain = asyncio.run(played.play_plain())
    asyncio.run(played.play())
    assert 0 < played.error() < 1e-6
    assert 0 < plain.clients_s < played.spent.clients_s
    assert plain.coordinator_s > 0
    assert played.spent.beyond(plain).total_s == played.spent.total_s - plain.clients_s - plain.coordinator_s


def test_what_each_party_spends_is_counted_apart() -> None:
    spent = Spent()
    with spent.by_client():
        sum(range(10**5))
    assert spent.clients_s > 0
    assert spent.coordinator_s == 0
    with spent.by_coordinator():
        sum(range(10**5))
    assert spent.total_s == spent.clients_s + spent.coordinator_s > spent.clients_s
    assert [colluders_of(size) for size in (4, 8, 32, 100)] == [1, 1, 6, 20]


def test_the_mean_in_the_ring_is_the_weighted_mean_of_clipped_updates() -> None:
    names = [ClientId(name) for name in "abc"]
    rng = np.random.default_rng(1)
    deltas = {name: rng.normal(0, 0.1, 500).astype(np.float32) for name in names}
    deltas[names[1]] *= 10
    weights = dict(zip(names, (10, 30, 64), strict=True))
    ring = Ring(3, 8.0, 64)
    mean, clipped = alignment.ring_mean(deltas, weights, ring, np.random.default_rng(2))
    limited = [deltas[name] * min(1, 8.0 / float(np.linalg.norm(deltas[name]))) for name in names]
    expected = np.average(limited, axis=0, weights=[weights[name] for name in names])
    assert clipped == 1
    assert np.abs(mean - expected).max() < 3 * 64 / ring.scale
