"""Draws alignment and fairness during training, on every axis of cost.

The axes of cost are rounds, gradient steps, episodes, bytes moved and seconds. An axis on which every curve has the shape that it
has on another axis is not drawn: the caption says the scale.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pluralllm.experiment.convergence import Curve, Measure, curve_of, mean_score, variation, worst_score
from pluralllm.experiment.report.findings import amount
from pluralllm.experiment.report.study import Study
from pluralllm.experiment.report.theme import GREY, NAME_WIDTH, RULE, EndLabel, Picture, label_ends, picture, short
from pluralllm.experiment.results import AXES
from pluralllm.experiment.summary import Selection, population, tally_of

AXIS_NAMES = {
    "rounds": "rounds",
    "gradient_steps": "gradient steps, one after the other",
    "episodes": "episodes, all clients together",
    "moved_bytes": "bytes moved",
    "seconds": "seconds of training",
}
ONE = {"gradient_steps": "gradient step", "rounds": "round", "episodes": "episode"}
MANY = {"gradient_steps": "gradient steps", "rounds": "rounds", "episodes": "episodes", "moved_bytes": "moved"}
SAME_SCALE = 1.01  # largest ratio of two methods' scales that count as one
Units = tuple[float, str]
Curves = dict[str, Curve]  # by the method's name


def convergence(study: Study) -> Picture | None:
    """Returns the figure of the test groups' mean alignment on the axes of cost that differ; None if no method has a curve."""
    groups = study.groups["test"]
    curves = {axis: curves_of(study, axis, groups, mean_score) for axis in AXES}
    if not curves["gradient_steps"]:
        return None
    ends = [f"{name} ends at {curve.middle[-1]:.3f}" for name, curve in curves["gradient_steps"].items()]
    levels = baseline_levels(study)
    shown, scales = apart(curves)
    alt = (
        f"Line charts of mean alignment of the unseen groups against {'; '.join(AXIS_NAMES[axis] for axis in shown)}. "
        f"On gradient steps: {'; '.join(ends)}. Baselines: "
        + ("; ".join(f"{name} {level:.3f}" for name, level in levels.items()) or "none")
    )
    drawn = {axis: curves[axis] for axis in shown}
    return picture("convergence", _caption(study, scales), alt, 7.6, lambda figure: _draw(figure, study, drawn, levels))


def apart(curves: Mapping[str, Curves]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the axes on which the curves are not those of an axis before, and a sentence about the scale of each other axis.

    curves: the curves of each axis. The axis of seconds is always among the first: a machine's seconds are not even.
    """
    shown, scales = ["gradient_steps"], list[str]()
    for axis in ("rounds", "episodes", "moved_bytes"):
        factors = {other: factor for other in shown if (factor := _scale(curves[axis], curves[other])) is not None}
        if not factors:
            shown.append(axis)
            continue
        other, factor = next(iter(factors.items()))
        many_to_one = factor < 1 and axis in ONE
        one, many, number = (axis, other, 1 / factor) if many_to_one else (other, axis, factor)
        scales.append(f"one {ONE[one]} is {amount(many, number)} {MANY[many]}")
    return (*shown, "seconds"), tuple(scales)


def _scale(curves: Curves, others: Curves) -> float | None:
    """Returns the cost of `curves` for one unit of `others`, if it is the same for every method; otherwise None."""
    if not curves or curves.keys() != others.keys():
        return None
    factors = [
        float(curve.x[-1]) / float(others[name].x[-1]) for name, curve in curves.items() if others[name].x[-1] > 0
    ]
    is_same = len(factors) == len(curves) and 0 < max(factors) <= SAME_SCALE * min(factors)
    return factors[0] if is_same else None


def fairness(study: Study) -> Picture | None:
    """Returns the figure of the worst test group's alignment and of the variation over groups; None if no method has a curve."""
    groups = study.groups["test"]
    shown = ("gradient_steps", "rounds")
    curves = {
        (axis, name): curves_of(study, axis, groups, measure)
        for axis in shown
        for name, measure in (("worst", worst_score), ("variation", variation))
    }
    if not curves["gradient_steps", "worst"]:
        return None
    ends = [
        f"{name}: worst group {curve.middle[-1]:.3f}, coefficient of variation "
        f"{curves['gradient_steps', 'variation'][name].middle[-1]:.3f}"
        for name, curve in curves["gradient_steps", "worst"].items()
    ]
    caption = (
        "How evenly the unseen groups are served on the way. Above: the worst group's alignment. Below: the coefficient of "
        "variation over the groups, where lower is more even. Left: by rounds, of which a central "
        "model has none; right: by gradient steps. "
        "Jain's index is 1 / (1 + CoV²), so it hardly moves where the CoV does."
    )
    alt = f"Line charts of fairness over training. At the end: {'; '.join(ends)}."
    return picture("fairness", caption, alt, 6.2, lambda figure: _draw_fairness(figure, study, curves))


def curves_of(study: Study, axis: str, groups: Collection[str], measure: Measure) -> Curves:
    """Returns the curve of each method that has a cost on this axis, by the method's name.

    measure: combines the groups' scores at one moment of training into one number.
    The methods that are drawn in colour come last, so that their lines lie over all other lines.
    """
    curves = {name: curve_of(study.methods[name], axis, groups, measure) for name in reversed(study.learned)}
    return {name: curve for name, curve in curves.items() if curve is not None}


def baseline_levels(study: Study) -> dict[str, float]:
    """Returns each baseline's mean alignment over the test groups, by the baseline's name.

    The baselines get the same contexts as the methods get during training, so that levels and curves can be compared.
    """
    selection = Selection("test", study.context, draws=study.curve_draws)
    questions = population(study.results, selection)
    tallies = {name: tally_of(study.methods[name], selection, questions) for name in study.baselines}
    return {name: float(tally.scores().mean()) for name, tally in tallies.items() if tally is not None}


def units_of(axis: str, largest: float) -> Units:
    """Returns a divisor for the values of an axis, and the name of the axis with the unit after the division.

    largest: the largest value on the axis, which decides the unit.
    """
    name = AXIS_NAMES[axis]
    if axis == "moved_bytes":
        factor, unit = next(
            (f, u) for f, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if largest >= f or f == 1
        )
        return factor, f"{name}, {unit}"
    if axis == "seconds" and largest >= 300:
        return 60, "minutes of training"
    return 1, name


def limits(study: Study, curves: Sequence[dict[str, Curve]], levels: Sequence[float]) -> tuple[float, float]:
    """Returns the lower and upper limit of the vertical axis, so that coloured curves and horizontal lines fit between them.

    levels: heights of the horizontal lines. If there is no coloured curve, the limits fit all curves.
    """
    main = [curve for by_method in curves for name, curve in by_method.items() if name in study.main]
    shown = main or [curve for by_method in curves for curve in by_method.values()]
    lowest = min(*(float(curve.low.min()) for curve in shown), *levels, np.inf)
    highest = max(*(float(curve.high.max()) for curve in shown), *levels, -np.inf)
    room = max((highest - lowest) * 0.06, 0.002)
    return lowest - room, highest + room


def draw_curves(axes: Axes, study: Study, curves: Curves, factor: float = 1) -> None:
    """Draws the curves of methods: coloured lines with bands over seeds for the main methods, thin grey lines for all others.

    The main methods are the methods that the report draws in colour. factor: every cost is divided by this number.
    """
    for name, curve in curves.items():
        look = study.look(name)
        x = curve.x / factor
        if not look.is_main:
            axes.plot(x, curve.middle, color=GREY, lw=1, alpha=0.7)
            continue
        if curve.seeds > 1:
            axes.fill_between(x, curve.low, curve.high, color=look.colour, alpha=0.16, lw=0)
        axes.plot(x, curve.middle, color=look.colour, lw=2.2)
        axes.plot(x[-1], curve.middle[-1], look.marker, color=look.colour, ms=6)
    axes.margins(x=0.02)
    axes.set_xlim(left=0)


def _draw(figure: Figure, study: Study, curves: dict[str, Curves], levels: dict[str, float]) -> None:
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    top, bottom = halves
    wide = top.subplots()
    low, high = limits(study, list(curves.values()), list(levels.values()))
    _panel(wide, study, "gradient_steps", curves["gradient_steps"], levels, (low, high))
    wide.set_ylabel("mean alignment, unseen groups")
    label_ends(wide, _end_labels(study, curves["gradient_steps"], levels), 3.4)
    rest = [axis for axis in curves if axis != "gradient_steps"]
    panels = bottom.subplots(1, len(rest), sharey=True, squeeze=False)[0]
    for number, (axes, axis) in enumerate(zip(panels, rest, strict=True)):
        _panel(axes, study, axis, curves[axis], levels, (low, high))
        if number == 0:
            axes.set_ylabel("mean alignment")


def _panel(
    axes: Axes, study: Study, axis: str, curves: Curves, levels: dict[str, float], y: tuple[float, float]
) -> None:
    for level in levels.values():
        axes.axhline(level, color=RULE, lw=1, ls=(0, (4, 3)))
    largest = max((float(curve.x[-1]) for curve in curves.values()), default=1)
    factor, name = units_of(axis, largest)
    draw_curves(axes, study, curves, factor)
    axes.set_ylim(*y)
    axes.set_xlabel(name)
    axes.locator_params(axis="x", nbins=8 if axis == "gradient_steps" else 4)
    if not curves:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=RULE)


def _end_labels(study: Study, curves: Curves, levels: dict[str, float]) -> list[EndLabel]:
    labels = []
    for name, curve in curves.items():
        look = study.look(name)
        if look.is_main:
            end = float(curve.middle[-1])
            labels.append(
                EndLabel(float(curve.x[-1]), end, f"{short(name, NAME_WIDTH)} {end:.3f}", look.colour, is_bold=True)
            )
    return [
        *labels,
        *(EndLabel(None, level, f"{name} {level:.3f}", study.look(name).colour) for name, level in levels.items()),
    ]


def _caption(study: Study, scales: Sequence[str]) -> str:
    draws = f", {study.curve_draws} draws of context" if study.curve_draws else ""
    others = len([name for name in study.learned if name not in study.main])
    grey = f" Thin grey lines: the {others} other methods." if others else ""
    return (
        f"Mean alignment of the unseen groups ({study.context} context questions{draws}) as training goes on, by each of its "
        "costs. Line: mean over seeds; band: lowest to highest seed; dashed: guesses that need no training. A method is missing "
        "where it has no cost on that axis: a central model has no rounds and moves nothing, as the data is there already."
        + (f" The same curves on other scales are not drawn again: {'; '.join(scales)}." if scales else "")
        + grey
    )


def _draw_fairness(figure: Figure, study: Study, curves: dict[tuple[str, str], dict[str, Curve]]) -> None:
    panels = figure.subplots(2, 2, sharey="row", width_ratios=(1, 1))
    for row, (measure, title) in enumerate((("worst", "worst group's alignment"), ("variation", "CoV over groups"))):
        y = limits(study, [curves["gradient_steps", measure], curves["rounds", measure]], [])
        for column, axis in enumerate(("rounds", "gradient_steps")):
            axes: Axes = panels[row, column]
            draw_curves(axes, study, curves[axis, measure])
            axes.set_ylim(*y)
            if column == 0:
                axes.set_ylabel(title)
            if row == 1:
                axes.set_xlabel(AXIS_NAMES[axis])
            axes.locator_params(axis="x", nbins=6)
            if column == 1:
                label_ends(axes, _end_labels(study, curves[axis, measure], {}), 2.5, 9)
