"""The mean of all releases tells what the ledger says, and not more: each release has its charge and its own noise."""

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.gaussian_tests import failed_tests

from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.client.data.private_data import write_group
from pluralllm.client.privacy.accountant import sigma_of
from pluralllm.client.privacy.entries import Charge, totals_of
from pluralllm.client.privacy.ledger import Ledger
from pluralllm.client.privacy.mechanism import sensitivity
from pluralllm.client.privacy.release import Terms, release
from pluralllm.common.words.questions import Question

OPTIONS = 2_000
NAMES = tuple(f"option {number}" for number in range(OPTIONS))
CODEBOOK = tuple(Question(f"Question {n}?", NAMES, (1 / OPTIONS,) * OPTIONS) for n in range(2))
EPSILONS = (1.0, 2.0)  # the loss after the first release and after the second one

Noise = list[int]


class Recorded:
    """Gaussian noise that the test can see. seed: of the noise of each question."""

    def __init__(self, seed: int) -> None:
        self._chance, self.noise, self.sigma = random.Random(seed), Noise(), 0.0

    def __call__(self, numbers: Sequence[int], sigma: float) -> list[int]:
        drawn = [round(self._chance.gauss(0, sigma)) for _ in numbers]
        self.noise, self.sigma = self.noise + drawn, sigma
        return [number + more for number, more in zip(numbers, drawn, strict=True)]


def failed_by_the_mean_of_two_releases(folder: Path, seeds: Sequence[int], charges: int) -> set[str]:
    """Releases twice, and tests the most exact mean of both noises against the loss of the first charges in the ledger.

    seeds: of the two noises. charges: number of charges that count.
    """
    data, state = folder / "town.jsonl", folder / "state"
    write_group(data, [CountedQuestion(q.text, q.options, q.shares, counts=(1.0,) * OPTIONS) for q in CODEBOOK])
    draws = [Recorded(seed) for seed in seeds]
    for draw, epsilon in zip(draws, EPSILONS, strict=True):
        release(data, state, CODEBOOK, Terms("town", epsilon, 1e-6), draw=draw)
    entries = [entry for entry in Ledger(state, data.resolve()).entries if isinstance(entry, Charge)]
    assert len(entries) == len(EPSILONS)
    (rho,) = set(totals_of(entries[:charges]).values())
    weights = [draw.sigma**-2 for draw in draws]
    means = [
        sum(weight * noise for weight, noise in zip(weights, pair, strict=True)) / sum(weights)
        for pair in zip(*(draw.noise for draw in draws), strict=True)
    ]
    return failed_tests(means, sigma_of(rho, sensitivity(OPTIONS, 1.0)))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def test_two_releases_tell_what_their_two_charges_say(tmp_path: Path) -> None:
    assert failed_by_the_mean_of_two_releases(tmp_path, seeds=(1, 2), charges=2) == set()


def test_a_budget_that_is_charged_once_for_two_releases_is_found(tmp_path: Path) -> None:
    assert "variance" in failed_by_the_mean_of_two_releases(tmp_path, seeds=(1, 2), charges=1)


def test_noise_that_is_used_for_both_releases_is_found(tmp_path: Path) -> None:
    assert "variance" in failed_by_the_mean_of_two_releases(tmp_path, seeds=(1, 1), charges=2)
