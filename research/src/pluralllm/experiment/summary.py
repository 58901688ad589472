"""From results to the table of methods: each method's alignment on one part of the groups, with intervals.

A group's score is 1 - mean distance over its questions, all draws and seeds. The interval is a bootstrap over questions: a
question that is drawn twice counts twice in every group, draw and seed it appears in, because what one question is like is
common to all of them. So the intervals say what other questions might have given. What other seeds might have given is told
beside them, by the seeds' standard deviation.

Source: Efron and Tibshirani 1993, chapter 13 (percentile interval), chapter 8 (resample what is independent).
G: groups, Q: questions, S: seeds, R: resamples.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.predictor.metrics import coefficient_of_variation, fairness_index
from pluralllm.experiment.results import Floats, QuestionKind, Result, Scores

NOT_WITHHELD = (QuestionKind.ANSWERED, QuestionKind.UNANSWERED)
RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Selection:
    """Which scored questions are looked at."""

    part: str = "test"
    context: int = 20
    kinds: tuple[QuestionKind, ...] | None = None  # of questions; None: those that make up the part's own score
    draws: int | None = None  # only the first so many


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """One method on one part of the groups."""

    method: str
    seeds: int
    questions: int
    mean: Estimate  # over groups of their alignment scores
    worst: Estimate
    worst_group: str
    fairness: Estimate  # Jain's index
    variation: Estimate  # coefficient of variation
    groups: dict[str, Estimate]
    mean_over_seeds: tuple[float, ...]  # one for each seed
    seed_deviation: float | None  # of the mean; None with one seed


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums a group's score is made of, so that resampling is one product of matrices."""

    groups: tuple[str, ...]
    totals: Floats  # (S, G, Q) distances of a question, over its draws
    counts: Floats  # (S, G, Q) how often it was a target

    def scores(self) -> Floats:
        """(G,)"""
        return _score(self.totals.sum((0, 2)), self.counts.sum((0, 2)))

    def scores_by_seed(self) -> Floats:
        """(S, G)"""
        return _score(self.totals.sum(2), self.counts.sum(2))

    def resampled(self, weights: Floats) -> Floats:
        """(R, G) for weights (R, Q). A group of which a resample holds no question keeps its score there."""
        totals, counts = self.totals.sum(0), self.counts.sum(0)  # (G, Q)
        found = _score(weights @ totals.T, weights @ counts.T)  # (R, G)
        return np.where(np.isnan(found), self.scores(), found)


def methods_of(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Each method's results, one for each seed."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.method, []).append(result)
    return found


def contexts_of(results: Sequence[Result]) -> tuple[int, ...]:
    """The sizes of context that were scored."""
    return tuple(sorted({scores.context for result in results for scores in result.scores}))


def left_out(results: Sequence[Result], part: str, context: int) -> tuple[str, ...]:
    """Groups of a part that have too few answers to be scored at this size of context, and are at others."""
    sizes: dict[str, set[int]] = {}
    for scores in (scores for result in results for scores in result.scores if scores.part == part):
        sizes.setdefault(scores.group, set()).add(scores.context)
    return tuple(sorted(group for group, found in sizes.items() if context not in found))


def table(results: Sequence[Result], selection: Selection) -> list[Line]:
    """Each method's line, best first; a method that scores no group of the part has none.

    All lines use the same resamples, so that two methods can be compared question by question: see `difference`.
    """
    questions = population(results, selection)
    weights = question_weights(len(questions))
    lines = []
    for method, runs in methods_of(results).items():
        tally = tally_of(runs, selection, questions)
        if tally is not None:
            lines.append(_line(method, tally, weights))
    return sorted(lines, key=lambda line: (-line.mean.value, line.method))


def over_groups(scores: Floats) -> Floats:
    """Mean alignment, (R, G) -> (R,)."""
    found: Floats = scores.mean(1)
    return found


def unevenness(scores: Floats) -> Floats:
    """Coefficient of variation, (R, G) -> (R,)."""
    found: Floats = scores.std(1) / scores.mean(1)
    return found


def difference(
    results: Sequence[Result],
    one: str,
    other: str,
    selection: Selection,
    measure: Callable[[Floats], Floats] = over_groups,
) -> Estimate | None:
    """The measure of `one` minus that of `other`, over the same groups and resamples. None where their groups differ."""
    methods = methods_of(results)
    questions = population(results, selection)
    tallies = [tally_of(methods.get(name, []), selection, questions) for name in (one, other)]
    if tallies[0] is None or tallies[1] is None or tallies[0].groups != tallies[1].groups:
        return None
    weights = question_weights(len(questions))
    first, second = tallies[0], tallies[1]
    drawn = measure(first.resampled(weights)) - measure(second.resampled(weights))  # (R,)
    whole = measure(first.scores()[None]) - measure(second.scores()[None])  # (1,)
    return estimate(float(whole[0]), drawn)


def population(results: Sequence[Result], selection: Selection) -> NDArray[np.int64]:
    """The numbers of all questions that are looked at, whatever the method, in order. (Q,)"""
    found = [scores.question[mask] for result in results for scores, mask in selected(result, selection)]
    return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def question_weights(questions: int) -> Floats:
    """How often each question is in each resample, (R, Q): the same for the same number of questions."""
    if not questions:
        return np.zeros((RESAMPLES, 0))
    rng = np.random.default_rng(0)
    return rng.multinomial(questions, np.full(questions, 1 / questions), RESAMPLES).astype(np.float64)


def tally_of(runs: Sequence[Result], selection: Selection, questions: NDArray[np.int64]) -> Tally | None:
    """None where these results score no question of the selection."""
    found: dict[tuple[int, str], tuple[Floats, Floats]] = {}
    for number, result in enumerate(runs):
        for scores, mask in selected(result, selection):
            at = np.searchsorted(questions, scores.question[mask])
            sums: Floats = np.bincount(at, scores.distance[mask], len(questions)).astype(np.float64)
            found[number, scores.group] = (sums, np.bincount(at, minlength=len(questions)).astype(np.float64))
    groups = tuple(sorted({group for _, group in found}))
    if not groups:
        return None
    shape = (len(runs), len(groups), len(questions))
    totals: Floats = np.zeros(shape)
    counts: Floats = np.zeros(shape)
    for (number, group), (mine, often) in found.items():
        totals[number, groups.index(group)], counts[number, groups.index(group)] = mine, often
    return Tally(groups, totals, counts)


def selected(result: Result, selection: Selection) -> Iterator[tuple[Scores, NDArray[np.bool_]]]:
    """Each group's scores with the rows of the selection, where there are any."""
    for scores in result.scores:
        if (scores.part, scores.context) != (selection.part, selection.context):
            continue
        kinds = NOT_WITHHELD if selection.part != "train" else (QuestionKind.WITHHELD,)
        mask = np.isin(scores.kind, [kind.value for kind in selection.kinds or kinds])
        if selection.draws is not None:
            mask &= scores.draw < selection.draws
        if mask.any():
            yield scores, mask


def estimate(value: float, resampled: Floats) -> Estimate:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def _line(method: str, tally: Tally, weights: Floats) -> Line:
    scores, drawn = tally.scores(), tally.resampled(weights)  # (G,), (R, G)
    worst = int(np.argmin(scores))
    variations = unevenness(drawn)  # (R,)
    by_seed = np.nanmean(tally.scores_by_seed(), axis=1)  # (S,)
    seeds = tally.totals.shape[0]
    return Line(
        method,
        seeds,
        int((tally.counts.sum((0, 1)) > 0).sum()),
        estimate(float(scores.mean()), drawn.mean(1)),
        estimate(float(scores.min()), drawn.min(1)),
        tally.groups[worst],
        estimate(fairness_index(scores.tolist()), 1 / (1 + variations**2)),
        estimate(coefficient_of_variation(scores.tolist()), variations),
        {name: estimate(float(scores[at]), drawn[:, at]) for at, name in enumerate(tally.groups)},
        tuple(by_seed.tolist()),
        float(by_seed.std(ddof=1)) if seeds > 1 else None,
    )


def _score(totals: Floats, counts: Floats) -> Floats:
    """NaN where there is nothing to score."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = 1 - totals / counts
    return found
