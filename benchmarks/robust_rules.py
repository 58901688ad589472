"""Measures what hostile members do to a model under each aggregation rule, and what each rule costs an honest minority.

    .venv/bin/python benchmarks/robust_rules.py [--seeds 3] [--rounds 30]

Twelve clients train a small predictor in every round, on a made-up survey: seven groups of a majority, two groups of a minority
whose opinions differ honestly, and three hostile members. An attack is what the hostile members do:

    none          they are three more groups of the majority
    label-swapped they train to predict the least popular option as the most popular one, from true contexts
    sign-flipped  they send their honest update with the opposite sign
    scaled        they send that update a hundred times as long

The tables have four numbers for each rule and attack. The mean alignment scores of the majority and of the minority are those on
questions that nobody trained on. The weight of the minority is its share of the numbers that a value of the step is the mean of;
of a shortened update, only the part that is left counts. The pull of the hostile members is their share, times the length of
their updates in lengths of an honest one. Both are means over the model and the rounds. Even shares are 16.7 % and 25 %.
"""

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.client.work.train import draw_episodes, learning_rate
from pluralllm.common.predictor.data import Episode, GroupData, group_data
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import RunSpec, merge, preset_values
from pluralllm.experiment.federated import LocalTraining, aggregate, first_values
from pluralllm.experiment.scoring import Scorer, alignment, episode_of
from pluralllm.experiment.stacked import Flat, Learners
from pluralllm.server.aggregation.aggregator import aggregator
from pluralllm.server.aggregation.update_files import norm_of
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.clipping import clip_scales
from pluralllm.server.rounds.cohort import task_seed

RULES = ("mean", "trimmed_mean", "median", "multi_krum", "median_norm_clip")
ATTACKS = ("none", "label-swapped", "sign-flipped", "scaled")
MAJORITY, MINORITY, HOSTILE = range(7), range(7, 9), range(9, 12)
CLIENTS = tuple(ClientId(f"client-{number}") for number in range(10, 22))
HALF = 8  # numbers in each of an option's two vectors
OPINION = 5.0  # length of a group's opinion: how united its answers are
SCALED = -100.0
NUDGE = 1e-7  # a change of all numbers of a client that changes hardly any order
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one run."""

    majority: float  # mean alignment score of its groups
    minority: float
    minority_weight: float
    hostile_pull: float


def spec_of(rule: str, seed: int = 0, rounds: int = 30) -> RunSpec:
    """Returns the run spec of a small predictor. rule: aggregation.rule."""
    over = {
        "seed": seed,
        "rounds": rounds,
        "groups": {"train": list(CLIENTS)},
        "round": {"min_clients": len(CLIENTS), "target_clients": len(CLIENTS)},
        "predictor": {"features": 64, "group_rank": 3, "dropout": 0.0},
        "training": {
            "local_steps": 4,
            "learning_rate": 0.02,
            "episodes": {"min_context": 2, "max_context": 6, "min_targets": 4, "max_targets": 10},
        },
        "aggregation": {"rule": rule, "assumed_attackers": len(HOSTILE), "weighting": "uniform"},
        "evaluation": {"context_questions": 3, "draws": 2, "holdout_share": 0.3},
        "embedding": {"model": "made-up", "dimension": 2 * HALF},
    }
    return RunSpec.model_validate(merge(preset_values("default"), over))


def survey(seed: int = 0, questions: int = 60) -> dict[ClientId, GroupData]:
    """Returns the answers of all groups to the same questions. The groups of a camp differ a little from one another."""
    rng = np.random.default_rng([1, seed])
    texts = [_vectors(rng, int(rng.integers(3, 6))) for _ in range(questions)]
    camps = rng.normal(size=(2, HALF))
    camps[1] -= (camps[1] @ camps[0]) / (camps[0] @ camps[0]) * camps[0]  # the minority's opinion has nothing in common
    groups = {}
    for number, client in enumerate(CLIENTS):
        opinion = camps[int(number in MINORITY)] + 0.3 * rng.normal(size=HALF)
        opinion *= OPINION / np.linalg.norm(opinion)
        asked = [_question(number, points[:, HALF:] @ opinion) for number, points in enumerate(texts)]
        groups[client] = group_data(client, asked, texts)
    return groups


def _vectors(rng: np.random.Generator, options: int) -> NDArray[np.float32]:
    """Returns the unit vectors of a question and of its options, (options, 2 * HALF)."""
    both = rng.normal(size=(options, 2, HALF))
    both[:, 0] = both[0, 0]
    both /= np.linalg.norm(both, axis=2, keepdims=True)
    return both.reshape(options, 2 * HALF).astype(np.float32)


def _question(number: int, logits: NDArray[np.float64]) -> Question:
    shares = np.exp(logits - logits.max())
    labels = tuple(f"option {index}" for index in range(logits.size))
    return Question(f"question {number}", labels, tuple((shares / shares.sum()).tolist()))


def with_swapped(data: GroupData) -> GroupData:
    """Returns a group's data with each question twice: question q with the true answers, and question q + Q with swapped ones.

    Swapped answers give the least popular option the share of the most popular one, and so on.
    """
    shares = [np.array(question.shares, np.float32) for question in data.questions]
    swapped = [np.sort(one)[::-1][np.argsort(np.argsort(one))] for one in shares]
    twice = (np.concatenate([array, array]) for array in (data.embeddings, data.positions))
    embeddings, positions = twice
    offsets = np.concatenate([data.offsets, data.offsets[-1] + data.offsets[1:]])
    answers = np.concatenate([*shares, *swapped])
    return GroupData(data.group, data.questions * 2, embeddings, answers, offsets, positions)


def swapped_updates(spec: RunSpec, hostile: dict[ClientId, GroupData], base: Flat, number: int) -> dict[ClientId, Flat]:
    """Returns the updates of members that train to predict swapped answers from true contexts, in round `number`."""
    learners = Learners(spec, [base] * len(hostile), CPU)
    both = {client: with_swapped(data) for client, data in hostile.items()}
    rng = {client: np.random.default_rng(task_seed(spec.seed, RoundNumber(number), client)) for client in hostile}
    for step in range((number - 1) * spec.training.local_steps, number * spec.training.local_steps):
        episodes = []
        for client, data in hostile.items():
            usable = data.split(spec.held_out)[0]
            for _, drawn in draw_episodes(spec, data, usable, step, rng[client]):
                targets = tuple(len(data.questions) + target for target in drawn.targets)
                episodes.append((both[client], Episode(drawn.context, targets)))
        learners.learn(episodes, learning_rate(spec, step))
    return dict(zip(hostile, (values - base for values in learners.stack.flat()), strict=True))


def attacked(
    spec: RunSpec, attack: str, deltas: dict[ClientId, Flat], groups: dict[ClientId, GroupData], base: Flat, number: int
) -> dict[ClientId, Flat]:
    """Returns the updates of a round as they arrive: those of the hostile members are what the attack makes of them."""
    hostile = {client: groups[client] for client in (CLIENTS[place] for place in HOSTILE)}
    match attack:
        case "label-swapped":
            return deltas | swapped_updates(spec, hostile, base, number)
        case "sign-flipped" | "scaled":
            factor = np.float32(-1.0 if attack == "sign-flipped" else SCALED)
            return deltas | {client: factor * deltas[client] for client in hostile}
        case _:
            return deltas


def parts_of(spec: RunSpec, deltas: Flat, scales: tuple[float, ...]) -> tuple[float, float]:
    """Returns the weight of the minority in a round's result, and the pull of the hostile members.

    At each value of the model, a rule is a mean of some of the numbers. The numbers of a camp are moved by so little that orders
    and choices stay; the result moves by the camp's share of that. deltas: (clients, values), as they arrive. scales: as in
    ev.Average.
    """
    factors = np.array(scales or (1.0,) * len(deltas))
    exact = deltas.astype(np.float64) * factors[:, None]  # as they count
    rule, even = aggregator(spec.aggregation), np.ones(len(deltas))
    before = rule.whole(exact, even)

    def share(places: range) -> float:
        moved = exact.copy()
        moved[list(places)] += NUDGE
        return float((rule.whole(moved, even) - before).mean() / NUDGE)

    lengths = np.linalg.norm(exact, axis=1)
    longer = lengths[list(HOSTILE)].mean() / lengths[: HOSTILE.start].mean()
    return share(MINORITY) * float(factors[list(MINORITY)].mean()), share(HOSTILE) * float(longer)


def rounds_of(
    spec: RunSpec, attack: str, groups: dict[ClientId, GroupData]
) -> Iterator[tuple[Flat, tuple[float, float]]]:
    """Yields the values of each model version, and what `parts_of` returns for the step to it.

    The clients' training, the factors of updates and the aggregation are those of the service.
    """
    values, moments = first_values(spec), np.empty((0, 0), np.float32)
    training = LocalTraining(spec, groups, values, CPU)
    for number in range(1, spec.rounds + 1):
        deltas, _ = training.train_round(values, RoundNumber(number))
        deltas = attacked(spec, attack, dict(deltas), groups, values, number)
        receipts = tuple(ev.Receipt(c, Digest("x"), 1, norm=norm_of(deltas[c])) for c in CLIENTS)
        at_median = spec.aggregation.rule == "median_norm_clip"
        scales = clip_scales(receipts, (1 / len(CLIENTS),) * len(CLIENTS), at_median=at_median)
        parts = parts_of(spec, np.stack([deltas[c] for c in CLIENTS]), scales)
        average = ev.Average(RoundNumber(number), ModelVersion(number - 1), receipts, (), scales)
        values, _ = aggregate(spec, values, moments.reshape(0, values.size), average, deltas)
        yield values, parts


def score(spec: RunSpec, values: Flat, groups: dict[ClientId, GroupData], places: range) -> float:
    """Returns the mean alignment score of some groups on the questions that nobody trained on."""
    scores = []
    for place in places:
        data = groups[CLIENTS[place]]
        size, draws = spec.evaluation.context_questions, range(spec.evaluation.draws)
        scorer = Scorer(spec, values, data, CPU)
        scores.append(alignment(scorer.score(episode_of(spec, data, "train", size, draw)) for draw in draws))
    return statistics.fmean(scores)


def outcome(rule: str, attack: str, seed: int, rounds: int) -> Result:
    """Returns the outcome of one run."""
    spec, groups = spec_of(rule, seed, rounds), survey(seed)
    versions, parts = zip(*rounds_of(spec, attack, groups), strict=True)
    scores = [score(spec, versions[-1], groups, places) for places in (MAJORITY, MINORITY)]
    return Result(*scores, *np.mean(parts, axis=0).tolist())


def main() -> None:
    """Prints one table for each measured number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="Number of seeds, from 0.")
    parser.add_argument("--rounds", type=int, default=30, help="Number of rounds.")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        (rule, attack): [outcome(rule, attack, seed, chosen.rounds) for seed in range(chosen.seeds)]
        for rule in RULES
        for attack in ATTACKS
    }
    for name in ("majority", "minority", "minority_weight", "hostile_pull"):
        print(f"\n| {name} | {' | '.join(ATTACKS)} |\n|{'---|' * (1 + len(ATTACKS))}")
        for rule in RULES:
            cells = [statistics.fmean(getattr(one, name) for one in results[rule, attack]) for attack in ATTACKS]
            shown = [f"{cell:.3f}" if name.endswith("ority") else f"{cell:.1%}" for cell in cells]
            print(f"| {rule} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
