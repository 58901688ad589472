"""Summarises results as a table of methods: each method's alignment on one part of the groups, with intervals.

A group's score is 1 minus the mean distance over its questions, all draws of the context and all seeds. The interval
of a score comes from a bootstrap over questions. A question that is drawn twice in a resample counts twice in every group,
draw and seed in which it appears. The reason is that the difficulty of a question affects every group. So the interval
shows how much other questions would change the score. The standard deviation over seeds shows how much other seeds would
change the score.

Source: Efron and Tibshirani 1993, chapter 13 (percentile intervals) and chapter 8 (resampling of independent units).
Shapes: G groups, Q questions, S seeds, R resamples.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.predictor.metrics import coefficient_of_variation, fairness_index
from pluralllm.common.words.context_gain import ignores_context, mean_gain
from pluralllm.experiment.results import AXES, Floats, QuestionKind, Result, Scores

NOT_WITHHELD = (QuestionKind.ANSWERED, QuestionKind.UNANSWERED)
RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Selection:
    """Selection of the scored questions that a summary uses."""

    part: str = "test"  # train, validation or test groups
    context: int = 20  # number of context questions
    kinds: tuple[QuestionKind, ...] | None = None  # None: the kinds that count in the part's own score
    draws: int | None = None  # number of draws, counted from the first; None: all


@dataclass(frozen=True, slots=True)
class Estimate:
    """Value with the bounds of its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """Line of the results table that summarises one method on one part of the groups (train, validation or test)."""

    method: str
    seeds: int
    questions: int
    mean: Estimate  # mean of the groups' alignment scores
    worst: Estimate  # lowest of the groups' alignment scores
    worst_group: str
    fairness: Estimate  # Jain's index
    variation: Estimate  # coefficient of variation
    groups: dict[str, Estimate]
    mean_over_seeds: tuple[float, ...]  # one for each seed
    seed_deviation: float | None  # standard deviation of the mean over seeds; None with one seed
    # Mean over groups and seeds of the score with the own context minus the score with another group's; None if not measured.
    context_gain: float | None = None
    training_groups: int = 0  # 0 for a baseline, and in results of earlier releases
    cost: Mapping[str, float] = field(default_factory=dict)  # of the whole training, median over seeds, by axis

    @property
    def ignores_context(self) -> bool:
        """Whether the predictions were measured not to depend on the group."""
        return ignores_context(self.context_gain)


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums of distances and numbers of scores, from which alignment scores are computed.

    The scores of all resamples (bootstrap draws of questions) are one matrix product of such sums.
    Shapes: S seeds, G groups, Q questions.
    """

    groups: tuple[str, ...]
    totals: Floats  # (S, G, Q) sum of a question's distances over the draws
    counts: Floats  # (S, G, Q) number of draws in which the question was a target

    def scores(self) -> Floats:
        """Returns each group's alignment score over all seeds, shape (groups,)."""
        return _score(self.totals.sum((0, 2)), self.counts.sum((0, 2)))

    def scores_by_seed(self) -> Floats:
        """Returns each group's alignment score for each seed, shape (seeds, groups)."""
        return _score(self.totals.sum(2), self.counts.sum(2))

    def resampled(self, weights: Floats) -> Floats:
        """Returns each group's alignment score in each resample (bootstrap draw of questions), shape (resamples, groups).

        weights: (resamples, questions), how often each question is in each resample. If a resample holds no question of a group,
        the group keeps its score over all questions.
        """
        totals, counts = self.totals.sum(0), self.counts.sum(0)  # (G, Q)
        scores = _score(weights @ totals.T, weights @ counts.T)  # (R, G)
        return np.where(np.isnan(scores), self.scores(), scores)


def methods_of(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Returns the results of each method, one for each seed, by the method's name."""
    by_method: dict[str, list[Result]] = {}
    for result in results:
        by_method.setdefault(result.method, []).append(result)
    return by_method


def contexts_of(results: Sequence[Result], group_part: str | None = None) -> tuple[int, ...]:
    """Returns the numbers of context questions for which the results have scores, in rising order.

    group_part: the groups whose scores count: train, validation or test; None is all groups.
    """
    scores = (scores for result in results for scores in result.scores)
    return tuple(sorted({one.context for one in scores if group_part in (None, one.part)}))


def left_out(results: Sequence[Result], group_part: str, context: int) -> tuple[str, ...]:
    """Returns the groups that were scored with other numbers of context questions, but not with the number `context`.

    Such groups have answered too few questions for a context of this size. group_part: train, validation or test.
    """
    sizes: dict[str, set[int]] = {}
    for scores in (scores for result in results for scores in result.scores if scores.part == group_part):
        sizes.setdefault(scores.group, set()).add(scores.context)
    return tuple(sorted(group for group, contexts in sizes.items() if context not in contexts))


def table(results: Sequence[Result], selection: Selection) -> list[Line]:
    """Returns one line for each method, best mean score first; a method that has no score for the selection has no line.

    All lines use the same resamples, so that `difference` can compare two methods question by question.
    """
    questions = population(results, selection)
    weights = question_weights(len(questions))
    lines = []
    for method, runs in methods_of(results).items():
        tally = tally_of(runs, selection, questions)
        if tally is not None:
            line = replace(_line(method, tally, weights), context_gain=context_gain(runs, selection))
            lines.append(replace(line, training_groups=training_groups(runs[0]), cost=costs(runs)))
    return sorted(lines, key=lambda line: (-line.mean.value, line.method))


def context_gain(runs: Sequence[Result], selection: Selection) -> float | None:
    """Returns the mean context gain over the groups of a part and all seeds; None if it was not measured for this context size.

    runs: the method's results, one for each seed. The kinds and draws of the selection do not matter.
    """
    place = selection.part, selection.context
    return mean_gain(one.gain for result in runs for one in result.gains if (one.part, one.context) == place)


def training_groups(result: Result) -> int:
    """Returns the number of groups that a method trains on; 0 for a baseline."""
    return len(((result.header.get("spec") or {}).get("groups") or {}).get("train") or ())


def costs(runs: Sequence[Result]) -> dict[str, float]:
    """Returns a method's cost of the whole training on each axis, the median over seeds; empty for a baseline."""
    ends = [run.points[-1].cost for run in runs if run.points]
    return {axis: sorted(end[axis] for end in ends)[len(ends) // 2] for axis in AXES} if ends else {}


def over_how_many(lines: Sequence[Line]) -> str:
    """Returns the number of groups that the lines' means are over, as text. Methods may have been scored on other groups."""
    counts = sorted({len(line.groups) for line in lines})
    return f"over {' or '.join(map(str, counts))} group{'s' * (counts != [1])}"


def over_groups(scores: Floats) -> Floats:
    """Mean alignment over groups in each bootstrap resample: (resamples, groups) -> (resamples,)."""
    means: Floats = scores.mean(1)
    return means


def unevenness(scores: Floats) -> Floats:
    """Coefficient of variation of the groups' scores in each bootstrap resample: (resamples, groups) -> (resamples,)."""
    variations: Floats = scores.std(1) / scores.mean(1)
    return variations


def difference(
    results: Sequence[Result],
    one: str,
    other: str,
    selection: Selection,
    measure: Callable[[Floats], Floats] = over_groups,
) -> Estimate | None:
    """Returns the measure of method `one` minus the measure of method `other`, with its bootstrap interval.

    The two methods are compared over the same groups and resamples. measure: combines the groups' scores in each resample.
    Returns None if one of the methods has no score, or if the methods were scored on different groups.
    """
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
    """Returns the numbers of all selected questions of all methods, in rising order, shape (questions,)."""
    numbers = [scores.question[mask] for result in results for scores, mask in selected(result, selection)]
    return np.unique(np.concatenate(numbers)) if numbers else np.empty(0, dtype=np.int64)


def question_weights(questions: int) -> Floats:
    """Returns how often each question is in each bootstrap resample, shape (resamples, questions).

    questions: the number of questions. The same number of questions always gives the same resamples.
    """
    if not questions:
        return np.zeros((RESAMPLES, 0))
    rng = np.random.default_rng(0)
    return rng.multinomial(questions, np.full(questions, 1 / questions), RESAMPLES).astype(np.float64)


def tally_of(runs: Sequence[Result], selection: Selection, questions: NDArray[np.int64]) -> Tally | None:
    """Returns the sums of distances of one method's results; None if the results score no question of the selection.

    runs: the method's results, one for each seed. questions: numbers of all questions that the tally has a column for.
    """
    sums_of: dict[tuple[int, str], tuple[Floats, Floats]] = {}  # by seed and group: distances and counts, (Q,) each
    for number, result in enumerate(runs):
        for scores, mask in selected(result, selection):
            at = np.searchsorted(questions, scores.question[mask])
            sums: Floats = np.bincount(at, scores.distance[mask], len(questions)).astype(np.float64)
            sums_of[number, scores.group] = (sums, np.bincount(at, minlength=len(questions)).astype(np.float64))
    groups = tuple(sorted({group for _, group in sums_of}))
    if not groups:
        return None
    shape = (len(runs), len(groups), len(questions))
    totals: Floats = np.zeros(shape)
    counts: Floats = np.zeros(shape)
    for (number, group), (total, count) in sums_of.items():
        totals[number, groups.index(group)], counts[number, groups.index(group)] = total, count
    return Tally(groups, totals, counts)


def selected(result: Result, selection: Selection) -> Iterator[tuple[Scores, NDArray[np.bool_]]]:
    """Yields each group's scores with a mask that is true for the rows of the selection; leaves out groups with no such row."""
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
    """Returns a value with its percentile interval, the range of the middle 95 % of its values in the resamples."""
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
    """Returns alignment scores from sums of distances and numbers of scores; NaN where the number is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        scores: Floats = 1 - totals / counts
    return scores
