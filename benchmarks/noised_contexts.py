"""Compares ways to make shares of noised counts, by what noise on contexts alone costs at one epsilon.

    .venv/bin/python benchmarks/noised_contexts.py DATA --work DIR [--epsilon 2] [--draws 3] [--seeds 0 1 2]

DATA is GlobalOpinionQA in its original layout (a CSV file). The models are those of benchmarks/noised_answers.py without noise;
what DIR lacks is trained. The 20 answers of a validation group that the predictor gets have noise, and its predictions are
compared with its true answers. All ways get the same noise: Gaussian numbers with a seed, as large as those of a release, because
the noise of a release has no seed. The survey is that of benchmarks/noised_answers.py: 1,000 people, 100 questions of one person.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from noised_answers import PART, Survey, Trials
from numpy.typing import NDArray
from preset_trials import CPU, PAPER, read, spec_of

from pluralllm.client.privacy.accountant import rho_of
from pluralllm.client.privacy.estimate import likely_shares
from pluralllm.client.privacy.mechanism import noise_on_counts
from pluralllm.common.predictor.data import GroupData
from pluralllm.common.predictor.metrics import js_distance
from pluralllm.experiment.groups import Groups
from pluralllm.experiment.scoring import Scorer, alignment, own_episode

PEOPLE, MOST_ANSWERED, DELTA = 1000, 100, 1e-6
Numbers = NDArray[np.float64]
Way = Callable[[Numbers, float], Numbers]  # noised counts of a question, standard deviation of the noise -> shares
EDGES = np.concatenate(
    [np.linspace(0, 0.2, 161), np.linspace(0.205, 1, 160)]
)  # of shares, finer where shares are small
MIDDLES, WIDTHS = (EDGES[1:] + EDGES[:-1]) / 2, np.diff(EDGES)


def without_negative(noised: Numbers, _: float) -> Numbers:
    """Divides the counts by their sum, negative ones as 0."""
    positive = noised.clip(0)
    total = float(positive.sum())
    return positive / total if total > 0 else np.full(len(noised), 1 / len(noised))


def less(part: float, noised: Numbers, sigma: float) -> Numbers:
    """Subtracts a part of the noise's size from each count before negative ones become 0."""
    return without_negative(noised - part * sigma, sigma)


def toward_equal(part: float, noised: Numbers, sigma: float) -> Numbers:
    """Mixes the shares with equal ones, which are also the prediction of version 0."""
    return (1 - part) * without_negative(noised, sigma) + part / len(noised)


def nearest(noised: Numbers, _: float) -> Numbers:
    """Returns the shares that are nearest to the noised ones (Euclid)."""
    shares = noised / max(float(noised.sum()), 1)
    falling = np.sort(shares)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(shares) + 1)
    projected: Numbers = (shares - excess[np.nonzero(falling > excess)[0][-1]]).clip(0)
    return projected


def beta_mean(prior: float, floor: float | None, noised: Numbers, sigma: float) -> Numbers:
    """Returns the posterior mean of each share, or of log(share + floor), under the prior Beta(a, (K - 1) a).

    prior: a. K is the number of options.
    """
    people = max(float(noised.sum()), 1)
    log_prior = (prior - 1) * np.log(MIDDLES) + ((len(noised) - 1) * prior - 1) * np.log1p(-MIDDLES) + np.log(WIDTHS)
    log_weights = log_prior - 0.5 * ((noised[:, None] - people * MIDDLES) / sigma) ** 2  # (K, middles)
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    shares = weights @ MIDDLES if floor is None else np.exp(weights @ np.log(MIDDLES + floor)) - floor
    normed: Numbers = shares / shares.sum()
    return normed


def likely(floor: float, noised: Numbers, sigma: float) -> Numbers:
    """Returns the shares of a release, with another number in place of the constant of the prior."""
    return np.asarray(likely_shares(noised.tolist(), sigma, floor))


WAYS: dict[str, Way] = {
    "negative counts as 0": without_negative,
    "the nearest shares": nearest,
    **{f"half a sigma times {2 * part:g} less, then negative as 0": partial(less, part) for part in (0.5, 1.0)},
    **{f"{part:.0%} towards equal shares": partial(toward_equal, part) for part in (0.02, 0.05, 0.1)},
    **{f"posterior mean, Beta prior {a:g}": partial(beta_mean, a, None) for a in (0.1, 0.3, 1.0)},
    **{f"posterior mean of the logarithm, Beta prior {a:g}": partial(beta_mean, a, 0.01) for a in (0.1, 0.3)},
    **{f"posterior mean of log(share + {c:g}), all equally likely": partial(likely, c) for c in (0.001, 0.003, 0.01)},
}


def noised_counts(data: GroupData, epsilon: float, chance: np.random.Generator) -> list[tuple[Numbers, float]]:
    """Returns the noised counts of each question of a group, with the standard deviation of their noise."""
    rho = rho_of(epsilon, DELTA) / MOST_ANSWERED
    sigmas = [noise_on_counts(len(question.options), rho, 1.0) for question in data.questions]
    return [
        (PEOPLE * np.asarray(question.shares) + chance.normal(0, sigma, len(question.options)), sigma)
        for question, sigma in zip(data.questions, sigmas, strict=True)
    ]


def costs(trials: Trials, epsilon: float, draws: int, distances: dict[str, list[float]]) -> dict[str, list[float]]:
    """Returns the cost of the mean alignment for each way and each draw of the noise. distances: gets those of the shares."""
    spec = trials.spec
    scored = {name: data for name, data in trials.groups.items() if name not in spec.groups.train}
    scorers = {name: Scorer(spec, trials.model(None), data, CPU) for name, data in scored.items()}

    def mean(seen: Groups) -> float:
        size = PAPER.scoring.main_context
        return statistics.fmean(
            alignment(
                scorers[name].score_with_another(episode.targets, seen[name], episode.context)
                for episode in (own_episode(spec, data, PART, size, draw) for draw in range(PAPER.scoring.draws))
            )
            for name, data in scored.items()
        )

    without, cost = mean(scored), defaultdict(list)
    for number in range(draws):
        chance = np.random.default_rng(number)
        noised = {name: noised_counts(data, epsilon, chance) for name, data in scored.items()}
        for way, shares_of in WAYS.items():
            seen: Groups = {}
            for name, data in scored.items():
                shares = [shares_of(*counts) for counts in noised[name]]
                seen[name] = replace(data, shares=np.concatenate(shares).astype(np.float32))
                pairs = zip(shares[:100], data.questions[:100], strict=True)
                distances[way].append(statistics.fmean(js_distance(share.tolist(), q.shares) for share, q in pairs))
            cost[way].append(without - mean(seen))
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="GlobalOpinionQA in its original layout, a CSV file.")
    parser.add_argument("--work", type=Path, default=Path("noised-answers-work"), help="Folder of models and vectors.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds of the models.")
    parser.add_argument("--epsilon", type=float, default=2.0, help="Bound of the noise.")
    parser.add_argument("--draws", type=int, default=3, help="Draws of the noise for each model.")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    survey = Survey(PEOPLE, MOST_ANSWERED, DELTA)
    work = chosen.work / f"{PEOPLE}-{MOST_ANSWERED}-{DELTA:g}"
    specs = [spec_of("default", {}, seed) for seed in chosen.seeds]
    groups = read(chosen.data, PART, specs[0], chosen.work / "vectors")
    cost: dict[str, list[float]] = defaultdict(list)
    distances: dict[str, list[float]] = defaultdict(list)
    for spec in specs:
        for way, found in costs(Trials(spec, groups, survey, work), chosen.epsilon, chosen.draws, distances).items():
            cost[way] += found
    print("| shares | cost of the mean (standard deviation) | distance from the true shares |\n|---|---|---|")
    for way, values in cost.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"| {way} | {statistics.fmean(values):.4f} ({spread:.4f}) | {statistics.fmean(distances[way]):.4f} |")


if __name__ == "__main__":
    main()
