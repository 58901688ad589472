"""Scores of a predictor that is no part of the product, by the rule of the experiments, and comparisons of two predictors."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluralllm.common.predictor.data import GroupData, log_softmax_by_question, make_points
from pluralllm.common.predictor.interface import EncodedContext, Points, PreferencePredictor
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.scoring import Scored, alignment, own_episode, scored
from pluralllm.experiment.spec import Scoring

PART = "validation"
Tune = Callable[
    [PreferencePredictor, GroupData, tuple[int, ...]], None
]  # changes a model in place by a context's answers


@dataclass(frozen=True, slots=True)
class Scores:
    """Alignment scores of the validation groups, by name."""

    own: dict[str, float]
    another: dict[str, float]  # with the contexts of the other groups
    contexts: dict[str, tuple[float, ...]]  # with each of the own contexts
    context_s: float  # CPU seconds from a context's answers to the encoded context

    @property
    def mean(self) -> float:
        return sum(self.own.values()) / len(self.own)

    @property
    def worst(self) -> float:
        return min(self.own.values())

    @property
    def mean_another(self) -> float:
        return sum(self.another.values()) / len(self.another)


def scores_of(
    spec: RunSpec, model: PreferencePredictor, groups: Mapping[str, GroupData], scoring: Scoring, tune: Tune | None
) -> Scores:
    """Scores a predictor on each group, with its own contexts and with those of all other groups, for the same questions.

    groups: the validation groups by name. tune: changes a copy of the model for each context, before it predicts.
    """
    model.eval()
    names, draws = sorted(groups), range(scoring.draws)
    episodes = {n: [own_episode(spec, groups[n], PART, scoring.main_context, draw) for draw in draws] for n in names}
    embedded = {name: embed_all(model, groups[name]) for name in names}
    own: dict[str, list[list[Scored]]] = {name: [] for name in names}
    another: dict[str, list[list[Scored]]] = {name: [] for name in names}
    began_s = time.process_time()
    spent_s = 0.0
    for answering in names:
        for draw in draws:
            context = episodes[answering][draw].context
            began_s = time.process_time()
            tuned = model
            if tune is not None:
                tuned = copy.deepcopy(model)
                tune(tuned, groups[answering], context)
            encoded = encode(tuned, groups[answering], context)
            spent_s += time.process_time() - began_s
            for name in names:
                targets = episodes[name][draw].targets
                points = embedded[name] if tuned is model else embed_all(tuned, groups[name])
                shares, log_stds = predict(tuned, encoded, groups[name], points, targets)
                row = scored(groups[name], targets, shares, log_stds)
                (own if name == answering else another)[name].append(row)
    return Scores(
        {name: alignment(rows) for name, rows in own.items()},
        {name: alignment(rows) for name, rows in another.items()},
        {name: tuple(alignment([row]) for row in rows) for name, rows in own.items()},
        spent_s / (len(names) * len(draws)),
    )


@torch.no_grad()
def embed_all(model: PreferencePredictor, data: GroupData) -> Tensor:
    """Returns what the predictor needs of each of the group's points as a target, (1, P, d)."""
    return model.embed(make_points([(data, range(len(data.questions)))]))


@torch.no_grad()
def encode(model: PreferencePredictor, data: GroupData, context: tuple[int, ...]) -> EncodedContext:
    """Returns the encoded context. context: indices of the questions whose answers the predictor reads."""
    return model.encode_context(*context_of(data, context))


def context_of(data: GroupData, context: tuple[int, ...]) -> tuple[Points, Tensor]:
    """Returns the points of some questions and the group's shares of them, (1, C)."""
    return make_points([(data, context)]), torch.from_numpy(data.shares[data.points(context)])[None]


@torch.no_grad()
def predict(
    model: PreferencePredictor, encoded: EncodedContext, data: GroupData, points: Tensor, targets: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns the predicted shares and the logarithms of their standard deviations, (T,) each.

    points: the embedded points of all questions of the group. targets: indices of the questions to predict.
    """
    index = torch.from_numpy(data.points(targets))  # (T,)
    predicted = model.predict_embedded(encoded, points[:, index])
    number = torch.from_numpy(np.repeat(np.arange(len(targets)), np.diff(data.offsets)[list(targets)]))
    log_shares = log_softmax_by_question(predicted.mean, number[None], len(targets))  # (1, T)
    return log_shares[0].exp().numpy(), predicted.log_std[0].numpy()


def difference(contexts: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """Returns the mean difference of two predictors over the same contexts, and its standard error over contexts.

    contexts, other: by group, the alignment score with each context. Every group counts alike.
    """
    pairs = np.array([contexts[name] for name in sorted(contexts)]) - np.array(
        [other[name] for name in sorted(contexts)]
    )
    deviations = pairs.var(axis=1, ddof=1)  # (groups,): the draws of a group are independent
    return float(pairs.mean()), float(np.sqrt((deviations / pairs.shape[1]).sum()) / len(pairs))
