"""Draws two figures: predicted answers beside true answers, and the calibration of the predicted spread.

The spread is the standard deviation that a predictor states for its predicted shares.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pluralllm.experiment.calibration import Calibration, calibration_of
from pluralllm.experiment.report.study import Study
from pluralllm.experiment.report.theme import (
    FAINT,
    INK,
    MUTED,
    NAME_WIDTH,
    RULE,
    SURFACE,
    WIDTH_IN,
    Picture,
    picture,
    short,
)
from pluralllm.experiment.results import Distribution

MOST_QUESTIONS, MOST_METHODS = 8, 3
COLUMNS = 2
QUESTION_WIDTH, QUESTION_LINES, OPTION_WIDTH = 74, 3, 27  # characters
KEY_IN, LINE_IN, OPTION_IN, BELOW_IN, LABELS_IN = 0.45, 0.175, 0.33, 0.55, 1.85
Answers = Mapping[str, Distribution]  # by method, of one question in one group


def predicted_and_true(study: Study) -> Picture | None:
    """Returns the figure of predicted and true shares for a few questions; None if the results hold no shares."""
    methods = study.main[:MOST_METHODS]
    chosen = chosen_answers(study, methods)
    if not chosen:
        return None
    names = list(dict.fromkeys(name for answers in chosen for name in answers))
    caption = (
        f"What groups answered (grey bars) and what was predicted from {next(iter(chosen[0].values())).context} of their other "
        "answers (marks), first seed. The questions were chosen by the experiment, not by how well they came out."
    )
    alt = "Bar charts of true answers with predictions as marks. " + " ".join(_in_words(answers) for answers in chosen)
    return picture(
        "answers", caption, alt, _layout(chosen)[1], lambda figure: _draw_answers(figure, study, chosen, names)
    )


def chosen_answers(study: Study, methods: Sequence[str]) -> list[Answers]:
    """Returns the questions to draw, each with its true shares and the shares that every method predicts.

    The questions are spread evenly over the list of all questions with shares, in which the questions of test groups come
    first. The result is sorted by the height of the panel that a question needs, the lowest panel first.
    """
    by_question: dict[tuple[str, str, tuple[float, ...]], dict[str, Distribution]] = {}
    for method in methods:
        for result in study.methods[method]:
            for shown in result.distributions:
                by_question.setdefault((shown.group, shown.question, shown.true), {}).setdefault(method, shown)
    fullest = max((len(answers) for answers in by_question.values()), default=0)
    full = [answers for answers in by_question.values() if len(answers) == fullest]
    full.sort(key=lambda answers: next(iter(answers.values())).part != "test")
    picks = sorted({round(at) for at in np.linspace(0, max(0, len(full) - 1), min(MOST_QUESTIONS, len(full))).tolist()})
    return sorted((full[pick] for pick in picks), key=lambda answers: _panel_in(next(iter(answers.values()))))


def _layout(chosen: Sequence[Answers]) -> tuple[list[float], float]:
    """Returns the distance of each panel from the top of the figure, and the figure's height, in inches."""
    tops, at = [], KEY_IN
    for first in range(0, len(chosen), COLUMNS):
        row = [next(iter(answers.values())) for answers in chosen[first : first + COLUMNS]]
        tops += [at] * len(row)
        at += max(_panel_in(answer) for answer in row) + BELOW_IN
    return tops, at


def _panel_in(answer: Distribution) -> float:
    return _title_in(answer) + len(answer.options) * OPTION_IN


def _title_in(answer: Distribution) -> float:
    return len(_title(answer)) * LINE_IN + 0.12


def _title(answer: Distribution) -> list[str]:
    lines = textwrap.wrap(" ".join(answer.question.split()), QUESTION_WIDTH) or [""]
    cut = [*lines[: QUESTION_LINES - 1], short(" ".join(lines[QUESTION_LINES - 1 :]), QUESTION_WIDTH)]
    return [answer.group, *(line for line in cut if line)]


def _in_words(answers: Answers) -> str:
    first = next(iter(answers.values()))
    shares = ", ".join(f"{option} {share:.0%}" for option, share in zip(first.options, first.true, strict=True))
    return f"{first.group}, {first.question} True: {shares}."


def _draw_answers(figure: Figure, study: Study, chosen: Sequence[Answers], names: Sequence[str]) -> None:
    figure.set_layout_engine("none")  # every panel is positioned below
    tops, height = _layout(chosen)
    column_in = WIDTH_IN / COLUMNS
    for number, (answers, top) in enumerate(zip(chosen, tops, strict=True)):
        first = next(iter(answers.values()))
        left = number % COLUMNS * column_in
        group, *question = _title(first)
        figure.text((left + 0.1) / WIDTH_IN, 1 - top / height, group, fontweight="bold", fontsize=9.5, va="top")
        text, below = "\n".join(question), 1 - (top + LINE_IN) / height
        figure.text((left + 0.1) / WIDTH_IN, below, text, fontsize=9, va="top", linespacing=1.3)
        size = len(first.options) * OPTION_IN
        bottom = height - top - _title_in(first) - size
        bounds = (
            (left + LABELS_IN) / WIDTH_IN,
            bottom / height,
            (column_in - LABELS_IN - 0.3) / WIDTH_IN,
            size / height,
        )
        _draw_question(figure.add_axes(bounds), study, answers)
    axes = figure.axes[0]
    handles: list[Any] = [axes.barh([0], [0], color=FAINT, ec=RULE, lw=0.8, label="true")]
    handles += [axes.plot([], [], study.look(n).marker, color=study.look(n).colour, ms=7, label=n)[0] for n in names]
    figure.legend(handles=handles, loc="upper left", ncols=len(handles), frameon=False, fontsize=9.5, handletextpad=0.4)


def _draw_question(axes: Axes, study: Study, answers: Answers) -> None:
    first = next(iter(answers.values()))
    y = -np.arange(len(first.options))
    axes.barh(y, first.true, height=0.7, color=FAINT, ec=RULE, lw=0.8)
    offsets = np.linspace(0.2, -0.2, len(answers)) if len(answers) > 1 else [0.0]
    for (method, distribution), offset in zip(answers.items(), offsets, strict=True):
        look = study.look(method)
        axes.plot(
            distribution.predicted,
            y + offset,
            look.marker,
            color=look.colour,
            ms=6,
            mec=SURFACE,
            mew=0.7,
            clip_on=False,
        )
    axes.set_yticks(y, [_option(option) for option in first.options])
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=8)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.set_ylim(-len(first.options) + 0.45, 0.55)
    largest = max(*first.true, *(max(distribution.predicted) for distribution in answers.values()))
    axes.set_xlim(0, min(1.0, largest * 1.06))
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.locator_params(axis="x", nbins=5)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def _option(text: str) -> str:
    """Wraps an option's text to at most two lines; if the second line is too long, it ends with an ellipsis."""
    lines = textwrap.wrap(" ".join(text.split()), OPTION_WIDTH) or [""]
    return "\n".join([lines[0], short(" ".join(lines[1:]), OPTION_WIDTH)] if len(lines) > 1 else lines)


def calibration(study: Study) -> Picture | None:
    """Returns the figure of expected and observed error, with the questions sorted by predicted spread into bins.

    Returns None if no method that is drawn in colour is trained to predict a spread.
    """
    calibrated = calibrations(study)
    main = {name: calibrated[name] for name in study.main if name in calibrated}
    if not main:
        return None
    alt = "Calibration plot, expected against observed error. " + "; ".join(
        f"{name}: observed over expected {result.ratio:.2f}, {result.within:.0%} of questions within the predicted spread"
        for name, result in main.items()
    )
    caption = (
        "Unseen groups. Questions in ten bins by predicted standard deviation; each mark is a bin's expected error against the "
        "observed one (root mean squares). On the line the predictor knows how wrong it is; above it, it is too sure of itself. "
        "The number is observed over expected error of all questions."
    )
    columns = 4 if len(main) == 4 else 3
    height = ((WIDTH_IN - 1.0) / columns + 0.95) * math.ceil(len(main) / columns) + 0.2  # square panels
    return picture("calibration", caption, alt, height, lambda figure: _draw_calibration(figure, study, main, columns))


def calibrations(study: Study) -> dict[str, Calibration]:
    """Returns the calibration of every method that predicts a spread, by the method's name."""
    by_method = {name: calibration_of(study.methods[name], study.selection()) for name in study.learned}
    return {name: result for name, result in by_method.items() if result is not None}


def _draw_calibration(figure: Figure, study: Study, main: Mapping[str, Calibration], columns: int) -> None:
    grid = figure.subplots(math.ceil(len(main) / columns), columns, sharex=True, sharey=True, squeeze=False)
    panels = grid.ravel()
    values = np.concatenate([np.concatenate([result.expected, result.observed]) for result in main.values()])
    high = float(values.max()) * 1.08
    for axes in panels[len(main) :]:
        axes.set_axis_off()
    for axes, (name, result) in zip(panels, main.items(), strict=False):
        look = study.look(name)
        axes.plot([0, high], [0, high], color=RULE, lw=1, ls=(0, (4, 3)))
        axes.plot(
            result.expected,
            result.observed,
            marker=look.marker,
            color=look.colour,
            ms=5.5,
            mec=SURFACE,
            mew=0.7,
            lw=1.4,
        )
        axes.set_xlim(0, high)
        axes.set_ylim(0, high)
        axes.set_aspect("equal")
        axes.locator_params(nbins=4)
        title = "\n".join([*textwrap.wrap(short(name, NAME_WIDTH), 24), f"error {result.ratio:.2f} × expected"])
        axes.set_title(title, color=look.colour, fontweight="bold", fontsize=9)
    for axes in grid[:, 0]:
        axes.set_ylabel("observed error of a share")
    figure.supxlabel("expected error (predicted standard deviation)", fontsize=9.5, color=MUTED)
