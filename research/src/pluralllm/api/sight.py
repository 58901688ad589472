"""The numbers that a coordinator has of one group in a round: plain, masked, and in the sum. For a notebook, in this process.

The run is one of the preset sums, whose updates give away most: they are linear in the answers, so that an attack is a few lines
of linear algebra and exact. The updates, their rounding and the masks are those of the service. The keys of the masks are drawn
here, because all members are in this process; docs/private-rounds.md has the protocol that agrees on them.
"""

import itertools
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.align.group_reward import DEFAULT_CACHE
from pluralllm.api.arguments import names_arguments
from pluralllm.api.simulation import check_questions, spec_for
from pluralllm.api.surveys import Answers, Spec, answers_of, path_of
from pluralllm.client.work.sums import GroupTerms
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.predictor.data import GroupData, make_points
from pluralllm.common.predictor.fourier_kernel import SHARE_FLOOR
from pluralllm.common.predictor.metrics import js_distances
from pluralllm.common.predictor.model import new_predictor
from pluralllm.common.private_rounds.masks import Numbers, add_masks
from pluralllm.common.private_rounds.ring import Ring, clipping_of, decoded_sum, quantised
from pluralllm.common.weights.update_format import TAIL
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.groups import embed_groups

CPU = torch.device("cpu")
LEAST = 1e-9  # singular values below this part of the largest one are rounding
EXACT = 0.01  # a guess that is nearer to the answer counts as recovered
KEY_BYTES = 32
EQUAL, PLAIN, MASKED, SUM = "equal shares", "plain update", "masked update", "sum of all updates"

Exact = NDArray[np.float64]
Flat = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CoordinatorSight:
    """The numbers that a coordinator has of one group's first update, and the answers that an attacker computes from them.

    Shapes: V values of the update, Q questions of the group.
    """

    group: str
    plain: Flat  # (V,) the update itself: what the coordinator reads in a plain round
    masked: Numbers  # (V,) the update as it leaves the client in a private round
    sum_is_exact: bool  # whether the sum of the masked updates has the bits of the sum of the updates
    distances: Mapping[
        str, Exact
    ]  # (Q,) by what the attacker has: Jensen-Shannon distance of its guess to the true answer

    @property
    def mean_distances(self) -> dict[str, float]:
        """The mean distance of the attacker's guesses to the true answers, by what the attacker has; 0 is exact."""
        return {what: float(each.mean()) for what, each in self.distances.items()}

    @property
    def recovered(self) -> dict[str, int]:
        """The number of questions whose answer the attacker has computed, by what the attacker has."""
        return {what: int((each < EXACT).sum()) for what, each in self.distances.items()}


@names_arguments
def coordinator_sight(
    groups: Mapping[str, Answers],
    group: str,
    spec: Spec,
    *,
    embedding_model_path: str | Path | None = None,
    cache: str | Path = DEFAULT_CACHE,
) -> CoordinatorSight:
    """Plays the first round of a run of the preset sums, and attacks one group with what the coordinator has of it.

    The attacker knows the run spec and the texts of all questions, and none of the answers.
    groups: each group's answers; all train. group: the one that is attacked. spec: a run spec of the preset sums, its values or
    its file. embedding_model_path, cache: as for PreferencePredictor.from_pretrained.
    Raises InvalidSpec, InvalidArgument, InvalidData, TooFewQuestions or ModelUnavailable.
    """
    answers = {name: answers_of(given) for name, given in groups.items()}
    checked = spec_for(answers, spec, ())
    _check(checked, group)
    chosen = {name: answers[name] for name in sorted(checked.groups.train)}
    check_questions(checked, chosen)
    path = None if embedding_model_path is None else path_of("embedding_model_path", embedding_model_path)
    data = embed_groups(checked, chosen, path, path_of("cache", cache), CPU, lambda _done, _all: None)
    prior = np.zeros(_features(checked), np.float32)
    updates = {name: GroupTerms(checked, one, CPU).of_prior(prior)[0] for name, one in data.items()}
    ring = Ring(len(updates), checked.aggregation.max_delta_norm, checked.aggregation.max_examples, adds_terms=True)
    rng = np.random.default_rng(secrets.randbits(128))
    numbers = {name: quantised(update, clipping_of(update, ring), 1, ring, rng) for name, update in updates.items()}
    own, masked = _masked(numbers)
    alone, total = masked[group].copy(), _sum(masked.values())
    # A client reveals the key of its own mask to the coordinator, and never the key of a pair: these cancel in the sum only.
    add_masks(alone, TAIL, [(own[group], -1)])
    add_masks(total, TAIL, [(key, -1) for key in own.values()])
    has: dict[str, NDArray[Any]] = {
        PLAIN: updates[group],
        MASKED: decoded_sum(alone, ring),
        SUM: decoded_sum(total, ring),
    }
    is_exact = bool(np.array_equal(total, _sum(numbers.values())))
    return CoordinatorSight(group, updates[group], masked[group], is_exact, _distances(checked, data, group, has))


def _features(spec: RunSpec) -> int:
    assert spec.sums is not None
    return spec.sums.features


def _check(spec: RunSpec, group: str) -> None:
    if spec.sums is None:
        problem = f'has the predictor {spec.predictor.architecture}; the attack is for the preset "sums"'
        raise InvalidArgument(field="spec", problem=problem)
    if group not in spec.groups.train_names:
        raise InvalidArgument(field="group", problem=f"is {group!r}, must train: {', '.join(spec.groups.train)}")
    if len(spec.groups.train) < 3:
        raise InvalidArgument(
            field="groups", problem="needs at least 3 that train: in a sum of two, each knows the other"
        )


def _masked(numbers: Mapping[str, Numbers]) -> tuple[dict[str, bytes], dict[str, Numbers]]:
    """Returns the key of each member's own mask, and each member's masked update. Shape: numbers (V,) for each member."""
    own = {name: secrets.token_bytes(KEY_BYTES) for name in numbers}
    pairs = {pair: secrets.token_bytes(KEY_BYTES) for pair in itertools.combinations(numbers, 2)}
    masked = {name: one.copy() for name, one in numbers.items()}
    for name, one in masked.items():
        shared = [(key, 1 if name == pair[0] else -1) for pair, key in pairs.items() if name in pair]
        add_masks(one, TAIL, [(own[name], 1), *shared])
    return own, masked


def _sum(members: Iterable[Numbers]) -> Numbers:
    total: Numbers = np.sum(list(members), axis=0, dtype=np.uint32)
    return total


def _distances(
    spec: RunSpec, data: Mapping[str, GroupData], group: str, has: Mapping[str, NDArray[Any]]
) -> dict[str, Exact]:
    """Returns the distances of the guess from each thing that the attacker has. has: updates of shape (V,), by their names."""
    usable = {name: one.split(spec.held_out)[0] for name, one in data.items()}
    victim, attacked = data[group], usable[group]
    holders = Counter(data[name].questions[number].id for name, numbers in usable.items() for number in numbers)
    others = _first_holders(data, usable, {victim.questions[number].id for number in attacked})
    features = np.concatenate([_public_features(spec, data[name], numbers) for name, numbers in others.items()])
    own = _public_features(spec, victim, attacked)
    sizes, shares = np.diff(victim.offsets)[list(attacked)], victim.shares[victim.points(attacked)].astype(np.float64)
    starts = np.cumsum([0, *sizes[:-1]])
    # In the sum, a question that several groups answer has the sum of their logarithms.
    times = np.repeat([holders[victim.questions[number].id] for number in attacked], sizes)
    guesses = {EQUAL: np.repeat(1 / sizes, sizes)}
    for what, update in has.items():
        logs = (
            _solved(own, update)
            if what != SUM
            else _solved(np.concatenate([own, features]), update)[: len(own)] / times
        )
        guesses[what] = _shares_of(logs, sizes)
    return {what: js_distances(guess, shares, starts) for what, guess in guesses.items()}


def _first_holders(
    data: Mapping[str, GroupData], usable: Mapping[str, tuple[int, ...]], seen: set[str]
) -> dict[str, tuple[int, ...]]:
    """Returns the questions that are not in `seen`, each once, by the first group that has it."""
    held: dict[str, tuple[int, ...]] = {}
    for name, numbers in usable.items():
        held[name] = tuple(number for number in numbers if data[name].questions[number].id not in seen)
        seen = seen | {data[name].questions[number].id for number in held[name]}
    return held


@torch.no_grad()
def _public_features(spec: RunSpec, data: GroupData, numbers: tuple[int, ...]) -> Exact:
    """Returns the features of some questions' options, as everybody who knows the texts computes them. Shape: (points, V)."""
    if not numbers:
        return np.empty((0, _features(spec)))
    model = new_predictor(spec.predictor, spec.embedding)
    features: Exact = model.embed(make_points([(data, numbers)]))[0].double().numpy()
    sizes = np.diff(data.offsets)[list(numbers)]
    means = np.add.reduceat(features, np.cumsum([0, *sizes[:-1]])) / sizes[:, None]
    return features - np.repeat(means, sizes, axis=0)


def _solved(features: Exact, update: NDArray[Any]) -> Exact:
    """Returns the logarithms y with features' y = update, by least squares. Shapes: features (points, V), result (points,)."""
    values, vectors = np.linalg.eigh(features @ features.T)
    kept = values > LEAST * values[-1]
    logs: Exact = vectors[:, kept] @ ((vectors[:, kept].T @ (features @ update.astype(np.float64))) / values[kept])
    return logs


def _shares_of(logs: Exact, sizes: NDArray[np.int64]) -> Exact:
    """Returns the shares whose shifted logarithms, centred over each question, are `logs`. Shapes: logs and result (points,)."""
    starts = np.cumsum([0, *sizes[:-1]])
    logs = logs - np.repeat(np.maximum.reduceat(logs, starts), sizes)  # a masked update's logarithms are huge
    raised = np.exp(logs)
    shifted = raised / np.repeat(np.add.reduceat(raised, starts), sizes) * np.repeat(1 + SHARE_FLOOR * sizes, sizes)
    shares = np.maximum(shifted - SHARE_FLOOR, 0) + 1e-9
    normalized: Exact = shares / np.repeat(np.add.reduceat(shares, starts), sizes)
    return normalized
