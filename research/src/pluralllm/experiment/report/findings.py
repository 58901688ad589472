"""What the figures say, in sentences computed from the data. Whatever is quicker is so on an axis that is named."""

from collections.abc import Iterator

from pluralllm.experiment.convergence import NOT_REACHED, Reach, last_score, reach_of
from pluralllm.experiment.report.answers import calibrations
from pluralllm.experiment.report.page import Finding
from pluralllm.experiment.report.study import TRAINING_MEAN, Study, chosen_by_validation
from pluralllm.experiment.results import AXES, QuestionKind
from pluralllm.experiment.summary import Estimate, difference, table, unevenness

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
    """Most important first."""
    return [
        *_best(study),
        *_comparisons(study),
        *_quickness(study),
        *_fairness(study),
        *_questions(study),
        *_spread(study),
    ]


def caveats(study: Study) -> list[str]:
    """What a reader must know before believing the findings."""
    found = []
    seeds = {len(study.methods[name]) for name in study.learned}
    if seeds and min(seeds) < 3:
        found.append(
            f"{'One seed of each method' if max(seeds) == 1 else 'Fewer than three seeds of some methods'}: how much another "
            "seed would change is hardly known, and the intervals do not cover it."
        )
    if len(seeds) > 1:
        counts = ", ".join(f"{name} {len(study.methods[name])}" for name in study.learned)
        found.append(f"The methods have unlike numbers of seeds: {counts}.")
    longest = max((last_cost(study, name, "gradient_steps") or 0 for name in study.learned), default=0)
    if 0 < longest < FEW_STEPS:
        found.append(
            f"The longest training has {longest:.0f} gradient steps: this shows that everything works, not how good it is."
        )
    if not study.groups["validation"]:
        found.append(
            "No validation groups were scored: nothing here says which method to choose without looking at the test."
        )
    return found


def _best(study: Study) -> Iterator[Finding]:
    name = chosen_by_validation(study.methods, study.baselines, study.tables)
    line = study.line(name) if name else None
    if name and line:
        validation = study.line(name, "validation")
        told = f", with a mean alignment of {validation.mean.value:.3f} on them" if validation else ""
        yield Finding(
            f"The validation groups choose {name}{told}. On the unseen groups its mean alignment is {interval(line.mean)}; "
            f"its worst group is {line.worst_group} with {interval(line.worst)}."
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
    told = []
    for one, other in dict.fromkeys(pairs):
        found = difference(study.results, one, other, study.selection()) if one and other and one != other else None
        if one and other and found:
            told.append(compared(one, other, found))
    if told:
        yield Finding("Mean alignment on the unseen groups, two methods at a time on the same questions:", tuple(told))


def compared(one: str, other: str, found: Estimate) -> str:
    """A difference in words; none where its interval holds 0, or where it is too small to matter."""
    if abs(found.value) < SMALLEST_DIFFERENCE:
        return f"{one} and {other} are alike: they differ by less than {SMALLEST_DIFFERENCE}."
    if found.low <= 0 <= found.high:
        span = f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
        return f"{one} and {other} cannot be told apart: the difference is {span}."
    low, high = sorted((abs(found.low), abs(found.high)))
    word = "above" if found.value > 0 else "below"
    return f"{one} is {abs(found.value):.3f} ({low:.3f} to {high:.3f}) {word} {other}."


def _quickness(study: Study) -> Iterator[Finding]:
    """The default against the final score of the paper's FedAvg, on every axis."""
    one, other = study.roles.default, study.roles.paper
    groups = study.groups["test"]
    target = last_score(study.methods[other], groups) if one and other else None
    if not one or not other or target is None:
        return
    told = []
    for axis in AXES:
        mine, theirs = reach_of(study.methods[one], axis, groups, target), last_cost(study, other, axis)
        if mine and mine.median == 0:
            yield Finding(
                f"{other} ends no better than {one} begins: there is no time to its final score to be compared."
            )
            return
        if mine and theirs:
            told.append(quick(mine, theirs, axis))
    if told:
        yield Finding(f"{one} reaches the score at which {other} ends ({target:.3f}), by axis:", tuple(told))


def quick(mine: Reach, whole: float, axis: str) -> str:
    """One axis of a comparison; `whole` is what the other took in all."""
    if mine.median == NOT_REACHED:
        return f"{AXIS_WORDS[axis]}: not reached ({mine.reached} of {mine.seeds} seeds reach it)"
    share, span = f"{mine.median / whole:.0%}", f"{amount(axis, mine.low)} to {amount(axis, mine.high)}"
    return (
        f"{AXIS_WORDS[axis]}: in {share} of them, {amount(axis, mine.median)} of {amount(axis, whole)} (seeds: {span})"
    )


def last_cost(study: Study, method: str, axis: str) -> float | None:
    """Median over seeds of what the whole training cost; None where it has no cost on this axis."""
    costs = sorted(run.points[-1].cost[axis] for run in study.methods[method] if run.points)
    return costs[len(costs) // 2] if costs and costs[-1] > 0 else None


def _fairness(study: Study) -> Iterator[Finding]:
    roles = study.roles
    if not roles.default or not roles.central_equal:
        return
    one, other = study.line(roles.default), study.line(roles.central_equal)
    found = difference(study.results, roles.default, roles.central_equal, study.selection(), unevenness)
    if one and other and found:
        word = (
            "no clear difference" if found.low <= 0 <= found.high else "less even" if found.value > 0 else "more even"
        )
        yield Finding(
            f"Fairness, unseen groups: the coefficient of variation is {interval(one.variation)} for {one.method} and "
            f"{interval(other.variation)} for {other.method}: {word} ({found.value:+.3f}, {found.low:+.3f} to "
            f"{found.high:+.3f}). Jain's index is {one.fairness.value:.4f} and {other.fairness.value:.4f}; it is near 1 for "
            "any guess and says little."
        )


def _questions(study: Study) -> Iterator[Finding]:
    name = study.roles.default or (study.main[0] if study.main else None)
    if not name:
        return
    told = []
    for kind, words in KIND_WORDS.items():
        lines = {line.method: line for line in table(study.results, study.selection("test", (kind,)))}
        if name in lines:
            guess = lines.get(TRAINING_MEAN)
            against = f", the mean of the training groups {interval(guess.mean)}" if guess else ""
            told.append(f"{words} ({lines[name].questions}): {interval(lines[name].mean)}{against}.")
    if told:
        yield Finding(f"What {name} has on the unseen groups, by kind of question:", tuple(told))


def _spread(study: Study) -> Iterator[Finding]:
    for name, found in calibrations(study).items():
        if name in (study.roles.default, study.roles.paper):
            word = (
                "too sure of itself" if found.ratio > 1.05 else "too careful" if found.ratio < 0.95 else "about right"
            )
            yield Finding(
                f"The spread that {name} predicts is {word}: its error is {found.ratio:.2f} times the expected one, and "
                f"{found.within:.0%} of questions are within one predicted standard deviation."
            )


def interval(found: Estimate, digits: int = 3) -> str:
    return f"{found.value:.{digits}f} ({bounds(found, digits)})"


def bounds(found: Estimate, digits: int = 3) -> str:
    return f"{found.low:.{digits}f} to {found.high:.{digits}f}"


def amount(axis: str, value: float) -> str:
    """A cost as a person reads it."""
    if axis == "moved_bytes":
        for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if value >= factor:
                return f"{value / factor:.3g} {unit}"
        return f"{value:.0f} B"
    if axis == "seconds":
        return f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0")
