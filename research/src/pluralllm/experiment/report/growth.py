"""Draws alignment against the number of groups that train, and writes the table beside the figure.

Methods whose run specs are equal but for their groups are a series: one line of the figure. There is a figure if some series has
at least two numbers of groups; a series of one method is then a point.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pluralllm.common.words.context_gain import gain_text
from pluralllm.experiment.report.findings import amount, interval
from pluralllm.experiment.report.groups import PART_NAMES
from pluralllm.experiment.report.page import Finding, Row, Table
from pluralllm.experiment.report.study import Study
from pluralllm.experiment.report.theme import (
    MARKERS,
    MUTED,
    SERIES,
    SURFACE,
    EndLabel,
    Picture,
    label_ends,
    picture,
)
from pluralllm.experiment.results import Record
from pluralllm.experiment.summary import Line

# Parts of a run spec that may differ within a series: they follow from the groups, or change nothing in an experiment.
OF_NO_SERIES = ("title", "seed", "groups", "round", "aggregation.max_delta_norm")
NOT_THERE = "–"


@dataclass(frozen=True, slots=True)
class Growth:
    """One method of a series: the number of groups that it trains on, and its scores."""

    method: str
    groups: int
    cohort: int  # groups that train in one round
    line: Line

    @property
    def another(self) -> float | None:
        """Mean alignment with another group's context, for the same questions; None if it was not measured."""
        gain = self.line.context_gain
        return None if gain is None else self.line.mean.value - gain


def growth_of(study: Study) -> dict[str, tuple[Growth, ...]]:
    """Returns the series of the results, each with its methods in rising number of groups, by the series' name.

    The scores are those of the test groups; of the validation groups if no test group was scored. The name of a series says
    what sets its run specs apart from those of the other series; it is empty if there is only one.
    """
    experiment: Record = next((r.header["experiment"] for r in study.results if r.header.get("experiment")), {})
    most = {method["name"]: method.get("cohort") for method in experiment.get("methods", ())}
    members: dict[str, list[Growth]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for name in study.learned:
        line, spec = study.line(name, study.shown), study.methods[name][0].header.get("spec") or {}
        if line is None or not line.training_groups:
            continue
        cohort = int((spec.get("round") or {}).get("target_clients", line.training_groups))
        own = {key: value for key, value in flat(spec).items() if not {key, key.partition(".")[0]} & {*OF_NO_SERIES}}
        own |= {"kind": study.methods[name][0].header.get("method_kind"), "groups in a round": most.get(name)}
        key = json.dumps(own, sort_keys=True)
        settings[key] = own
        members.setdefault(key, []).append(Growth(name, line.training_groups, cohort, line))
    series = {key: tuple(sorted(trials, key=lambda one: one.groups)) for key, trials in members.items()}
    if all(len({one.groups for one in trials}) == 1 for trials in series.values()):
        return {}
    names = names_of([settings[key] for key in series])
    return dict(sorted(zip(names, series.values(), strict=True), key=lambda item: (-len(item[1]), item[0])))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a table's values by their dotted keys, such as training.local_steps."""
    keys: dict[str, Any] = {}
    for key, value in values.items():
        keys |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return keys


def names_of(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns one name for each series, made of the settings in which the series differ: "60 rounds, 12 local steps"."""
    keys = dict.fromkeys(key for own in settings for key in own)
    differing = [key for key in keys if len({json.dumps(own.get(key)) for own in settings}) > 1]
    names = []
    for own in settings:
        parts = []
        for key in differing:
            words, value = key.rpartition(".")[2].replace("_", " "), own.get(key)
            parts.append(f"{value} {words}" if type(value) is int else f"{words} {value}")
        names.append(", ".join(parts))
    return names


def growth_picture(study: Study) -> Picture | None:
    """Returns the figure of alignment against the number of groups that train; None if there is no series."""
    series = growth_of(study)
    if not series:
        return None
    scored = PART_NAMES[study.shown]
    alt = f"Line charts of the alignment of {scored} against the number of groups that train. " + "; ".join(
        f"{one.groups} groups{f', {name}' if name else ''}: mean {one.line.mean.value:.3f}, worst {one.line.worst.value:.3f}"
        + (f", another's context {one.another:.3f}" if one.another is not None else "")
        for name, trials in series.items()
        for one in trials
    )
    caption = (
        f"Alignment of {scored} against the number of groups that train, on a logarithmic axis, {study.context} context "
        "questions. Left: the mean, with their own context (solid, with 95 % intervals) and with another group's context "
        "(dashed, hollow). Right: the worst of them."
    )
    return picture("growth", caption, alt, 4.6, lambda figure: _draw(figure, study, series))


def growth_table(study: Study) -> Table | None:
    """Returns the table of the methods in the figure, with what each costs; None if there is no series."""
    series = growth_of(study)
    if not series:
        return None
    rows = []
    for number, (name, trials) in enumerate(series.items()):
        for one in trials:
            line = one.line
            rounds, moved, seconds = (line.cost.get(axis) for axis in ("rounds", "moved_bytes", "seconds"))
            cells = (
                str(one.groups),
                name or NOT_THERE,
                str(one.cohort),
                interval(line.mean, 4),
                f"{line.worst.value:.4f} {line.worst_group}",
                NOT_THERE if one.another is None else f"{one.another:.4f}",
                gain_text(line.context_gain),
                amount("moved_bytes", moved / rounds / one.cohort) if moved and rounds else NOT_THERE,
                amount("moved_bytes", moved) if moved else NOT_THERE,
                amount("seconds", seconds) if seconds else NOT_THERE,
                str(line.seeds),
            )
            rows.append(Row(cells, "main", number % len(SERIES)))
    columns = (
        *("training groups", "training", "in a round", "mean alignment", "worst group", "another's context"),
        *("context gain", "bytes a client and round", "bytes in all", "seconds of computing", "seeds"),
    )
    return Table(
        columns, tuple(rows), caption=f"{PART_NAMES[study.shown].capitalize()}, by the number of training groups."
    )


def growth_finding(study: Study) -> Finding | None:
    """Returns the finding that compares the fewest with the most training groups of the longest series; None if there is none."""
    series = growth_of(study)
    if not series:
        return None
    trials = next(iter(series.values()))
    sentences = [
        f"{one.groups} training groups: mean {interval(one.line.mean)}, worst {one.line.worst.value:.3f}, context gain "
        f"{gain_text(one.line.context_gain)}."
        for one in (trials[0], trials[-1])
    ]
    best = max((one for trials in series.values() for one in trials), key=lambda one: one.line.mean.value)
    sentences.append(f"The best, {best.method}: mean {interval(best.line.mean)}, worst {best.line.worst.value:.3f}.")
    return Finding(f"Alignment of {PART_NAMES[study.shown]} against the number of groups that train:", tuple(sentences))


def _draw(figure: Figure, study: Study, series: Mapping[str, Sequence[Growth]]) -> None:
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    numbers = sorted({one.groups for trials in series.values() for one in trials})
    labels: list[EndLabel] = []
    for at, (name, trials) in enumerate(series.items()):
        colour, marker = SERIES[at % len(SERIES)], MARKERS[at % len(MARKERS)]
        x = [float(one.groups) for one in trials]
        means, worst = [one.line.mean for one in trials], [one.line.worst for one in trials]
        left.vlines(x, [mean.low for mean in means], [mean.high for mean in means], color=colour, lw=1.2, alpha=0.5)
        left.plot(x, [mean.value for mean in means], marker=marker, color=colour, ms=6.5, mec=SURFACE, mew=0.7)
        another = [(one.groups, one.another) for one in trials if one.another is not None]
        if another:
            style: Any = {"ls": (0, (4, 3)), "lw": 1.4, "marker": marker, "ms": 5, "mfc": SURFACE}
            left.plot([x for x, _ in another], [y for _, y in another], color=colour, **style)
        right.plot(x, [one.value for one in worst], marker=marker, color=colour, ms=6.5, mec=SURFACE, mew=0.7)
        label = name or f"{worst[-1].value:.3f}"
        labels.append(EndLabel(x[-1], worst[-1].value, label, colour, is_bold=True))
    for axes, title in ((left, "mean: own context, and another's (dashed)"), (right, "worst group")):
        _name_axes(axes, numbers, title)
    left.set_ylabel(f"alignment score, {PART_NAMES[study.shown]}")
    label_ends(right, labels, 3.6, 9)


def _name_axes(axes: Axes, numbers: Sequence[int], title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(numbers[0] / 1.15, numbers[-1] * 1.15)
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.minorticks_off()
    axes.set_xlabel("groups that train (logarithmic)", color=MUTED)
    axes.set_title(title)
