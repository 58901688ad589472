"""Writes an experiment's findings: sentences that are computed from the results.

If a sentence calls a method quicker, the sentence names the axis of cost.
"""

from collections.abc import Iterator

from pluralllm.experiment.convergence import NOT_REACHED, Reach, last_score, reach_of
from pluralllm.experiment.report.answers import calibrations
from pluralllm.experiment.report.page import Finding
from pluralllm.experiment.report.study import TRAINING_MEAN, Study, chosen_by_validation
from pluralllm.experiment.results import AXES, QuestionKind
from pluralllm.experiment.summary import Estimate, difference, over_how_many, table, unevenness

SMALLEST_DIFFERENCE = 0.0005
FEW_STEPS = 60  # gradient steps; a predictor has hardly begun to learn
KIND_WORDS = {
    QuestionKind.ANSWERED: "questions that training groups train on",
    QuestionKind.UNANSWERED: "questions that no training group has",
    QuestionKind.WITHHELD: "questions withheld from all training, not part of the score above",
}
AXIS_WORDS = {
    "rounds": "rounds",
    "gradient_steps": "gradient steps",
    "episodes": "episodes",
    "moved_bytes": "bytes moved",
    "seconds": "seconds",
}


def findings(study: Study) -> list[Finding]:
    """Returns the findings of an experiment, the most important first."""
    return [
        *_best(study),
        *_comparisons(study),
        *_quickness(study),
        *_fairness(study),
        *_questions(study),
        *_spread(study),
    ]


def caveats(study: Study) -> list[str]:
    """Returns the limits of the experiment that a reader must know before trusting the findings."""
    warnings = []
    seeds = {len(study.methods[name]) for name in study.learned}
    if seeds and min(seeds) < 3:
        warnings.append(
            f"{'One seed of each method' if max(seeds) == 1 else 'Fewer than three seeds of some methods'}: how much another "
            "seed would change is hardly known, and the intervals do not cover it."
        )
    if len(seeds) > 1:
        counts = ", ".join(f"{name} {len(study.methods[name])}" for name in study.learned)
        warnings.append(f"The methods have unlike numbers of seeds: {counts}.")
    longest = max((last_cost(study, name, "gradient_steps") or 0 for name in study.learned), default=0)
    if 0 < longest < FEW_STEPS:
        warnings.append(
            f"The longest training has {longest:.0f} gradient steps: this shows that everything works, not how good it is."
        )
    if not study.groups["validation"]:
        warnings.append(
            "No validation groups were scored: nothing here says which method to choose without looking at the test."
        )
    return warnings


def _best(study: Study) -> Iterator[Finding]:
    name = chosen_by_validation(study.methods, study.baselines, study.tables)
    line = study.line(name) if name else None
    if name and line:
        validation = study.line(name, "validation")
        on_validation = f", with a mean alignment of {validation.mean.value:.3f} on them" if validation else ""
        yield Finding(
            f"The validation groups choose {name}{on_validation}. On the unseen groups its mean alignment "
            f"{over_how_many([line])} is {interval(line.mean)}; its worst group is {line.worst_group} with "
            f"{interval(line.worst)}."
        )


def _comparisons(study: Study) -> Iterator[Finding]:
    roles = study.roles
    best = chosen_by_validation(study.methods, study.baselines, study.tables)
    guess = TRAINING_MEAN if TRAINING_MEAN in study.baselines else None
    pairs = [
        (roles.paper, roles.central_paper),
        (roles.paper, roles.central_equal),
        (roles.default, roles.paper),
        (roles.default, roles.central_equal),
        (roles.default, guess),
        (best, roles.default),
        (best, guess),
    ]
    sentences = []
    for one, other in dict.fromkeys(pairs):
        estimate = difference(study.results, one, other, study.selection()) if one and other and one != other else None
        if one and other and estimate:
            sentences.append(compared(one, other, estimate))
    if sentences:
        yield Finding(
            "Mean alignment on the unseen groups, two methods at a time on the same questions:", tuple(sentences)
        )


def compared(one: str, other: str, estimate: Estimate) -> str:
    """Returns a sentence about the difference between two methods.

    estimate: the score of `one` minus the score of `other`. If the estimate's interval contains 0, or if the difference is too
    small to matter, the sentence reports no difference.
    """
    if abs(estimate.value) < SMALLEST_DIFFERENCE:
        return f"{one} and {other} are alike: they differ by less than {SMALLEST_DIFFERENCE}."
    if estimate.low <= 0 <= estimate.high:
        span = f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"
        return f"{one} and {other} cannot be told apart: the difference is {span}."
    low, high = sorted((abs(estimate.low), abs(estimate.high)))
    word = "above" if estimate.value > 0 else "below"
    return f"{one} is {abs(estimate.value):.3f} ({low:.3f} to {high:.3f}) {word} {other}."


def _quickness(study: Study) -> Iterator[Finding]:
    """Compares this project's default method with FedAvg as in the paper, on every axis of cost.

    Yields a finding about the cost at which the default method reaches the final score of the paper's FedAvg. Yields nothing
    if the results lack one of the two methods.
    """
    one, other = study.roles.default, study.roles.paper
    groups = study.groups["test"]
    target = last_score(study.methods[other], groups) if one and other else None
    if not one or not other or target is None:
        return
    sentences = []
    for axis in AXES:
        reach, whole = reach_of(study.methods[one], axis, groups, target), last_cost(study, other, axis)
        if reach and reach.median == 0:
            yield Finding(
                f"{other} ends no better than {one} begins: there is no time to its final score to be compared."
            )
            return
        if reach and whole:
            sentences.append(quick(reach, whole, axis))
    if sentences:
        yield Finding(f"{one} reaches the score at which {other} ends ({target:.3f}), by axis:", tuple(sentences))


def quick(reach: Reach, whole: float, axis: str) -> str:
    """Returns a sentence that compares two costs on one axis: reaching a score, and the whole training of another method.

    reach: the cost at which one method reaches the other method's final score. whole: the cost of that other method's training.
    """
    if reach.median == NOT_REACHED:
        return f"{AXIS_WORDS[axis]}: not reached ({reach.reached} of {reach.seeds} seeds reach it)"
    share, span = f"{reach.median / whole:.0%}", f"{amount(axis, reach.low)} to {amount(axis, reach.high)}"
    return (
        f"{AXIS_WORDS[axis]}: in {share} of them, {amount(axis, reach.median)} of {amount(axis, whole)} (seeds: {span})"
    )


def last_cost(study: Study, method: str, axis: str) -> float | None:
    """Returns a method's cost of the whole training, the median over seeds; None if the method has no cost on this axis."""
    costs = sorted(run.points[-1].cost[axis] for run in study.methods[method] if run.points)
    return costs[len(costs) // 2] if costs and costs[-1] > 0 else None


def _fairness(study: Study) -> Iterator[Finding]:
    roles = study.roles
    if not roles.default or not roles.central_equal:
        return
    one, other = study.line(roles.default), study.line(roles.central_equal)
    estimate = difference(study.results, roles.default, roles.central_equal, study.selection(), unevenness)
    if one and other and estimate:
        word = (
            "no clear difference"
            if estimate.low <= 0 <= estimate.high
            else "less even"
            if estimate.value > 0
            else "more even"
        )
        yield Finding(
            f"Fairness, unseen groups: the coefficient of variation is {interval(one.variation)} for {one.method} and "
            f"{interval(other.variation)} for {other.method}: {word} ({estimate.value:+.3f}, {estimate.low:+.3f} to "
            f"{estimate.high:+.3f}). Jain's index is {one.fairness.value:.4f} and {other.fairness.value:.4f}; it is near 1 for "
            "any guess and says little. Neither says whether a group gets predictions of its own: the context gain does."
        )


def _questions(study: Study) -> Iterator[Finding]:
    name = study.roles.default or (study.main[0] if study.main else None)
    if not name:
        return
    sentences = []
    for kind, words in KIND_WORDS.items():
        lines = {line.method: line for line in table(study.results, study.selection("test", (kind,)))}
        if name in lines:
            guess = lines.get(TRAINING_MEAN)
            against = f", the mean of the training groups {interval(guess.mean)}" if guess else ""
            sentences.append(f"{words} ({lines[name].questions}): {interval(lines[name].mean)}{against}.")
    if sentences:
        yield Finding(f"What {name} has on the unseen groups, by kind of question:", tuple(sentences))


def _spread(study: Study) -> Iterator[Finding]:
    for name, calibration in calibrations(study).items():
        if name in (study.roles.default, study.roles.paper):
            word = (
                "too sure of itself"
                if calibration.ratio > 1.05
                else "too careful"
                if calibration.ratio < 0.95
                else "about right"
            )
            yield Finding(
                f"The spread that {name} predicts is {word}: its error is {calibration.ratio:.2f} times the expected one, and "
                f"{calibration.within:.0%} of questions are within one predicted standard deviation."
            )


def interval(estimate: Estimate, digits: int = 3) -> str:
    return f"{estimate.value:.{digits}f} ({bounds(estimate, digits)})"


def bounds(estimate: Estimate, digits: int = 3) -> str:
    return f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"


def amount(axis: str, value: float) -> str:
    """Formats a cost on one axis with a unit that suits its size."""
    if axis == "moved_bytes":
        for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if value >= factor:
                return f"{value / factor:.3g} {unit}"
        return f"{value:.0f} B"
    if axis == "seconds":
        return f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0")
