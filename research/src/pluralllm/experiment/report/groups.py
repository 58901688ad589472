"""Draws the scores of each group, of each kind of question, and of each number of context questions."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pluralllm.experiment.report.study import Study
from pluralllm.experiment.report.theme import (
    FAINT,
    GREY,
    INK,
    MUTED,
    NAME_WIDTH,
    RULE,
    SURFACE,
    EndLabel,
    Picture,
    label_ends,
    picture,
    short,
    spread_out,
    two_lines,
)
from pluralllm.experiment.results import QuestionKind
from pluralllm.experiment.summary import Line, Selection, contexts_of, left_out, table

PART_NAMES = {
    "test": "unseen groups",
    "validation": "validation groups",
    "train": "training groups, withheld questions",
}
A, U, W = QuestionKind.ANSWERED, QuestionKind.UNANSWERED, QuestionKind.WITHHELD
KINDS = (
    ("test", (A,), "unseen groups,\nquestions trained on"),
    ("test", (U,), "unseen groups, questions\nno training group has"),
    ("test", (W,), "unseen groups,\nwithheld questions"),
    ("train", (W,), "training groups,\nwithheld questions"),
)


def by_group(study: Study, group_part: str) -> Picture | None:
    """Returns the figure of each group's score by each method that is drawn in colour, with intervals.

    group_part: train, validation or test. Returns None if no group of the part was scored.
    """
    lines = [line for line in study.tables[group_part] if line.groups]
    if not lines:
        return None
    main = [line for name in study.main if (line := study.line(name, group_part)) is not None] or lines[:1]
    first = main[0]
    groups = sorted(first.groups, key=lambda group: first.groups[group].value)  # worst first, drawn at the bottom
    caption = (
        f"{PART_NAMES[group_part].capitalize()}, each by itself, {study.context} context questions. Dots: methods in colour with "
        "95 % intervals; a ring marks each method's worst group. Small grey dots: other methods; grey strokes: guesses that "
        "need no training."
    )
    alt = f"Dot plot of {PART_NAMES[group_part]}. " + "; ".join(
        f"{line.method}: worst {line.worst_group} at {line.worst.value:.3f}, mean {line.mean.value:.3f}"
        for line in main
    )
    height = 0.9 + len(groups) * (0.22 + 0.13 * len(main))
    return picture(
        f"groups-{group_part}", caption, alt, height, lambda figure: _draw_groups(figure, study, lines, main, groups)
    )


def _draw_groups(figure: Figure, study: Study, lines: list[Line], main: list[Line], groups: list[str]) -> None:
    axes: Axes = figure.subplots()
    axes.grid(visible=False, axis="y")
    offsets = np.linspace(0.3, -0.3, len(main)) if len(main) > 1 else [0.0]
    for row, group in enumerate(groups):
        if row % 2 == 0:
            axes.axhspan(row - 0.5, row + 0.5, color=FAINT, alpha=0.45, lw=0, zorder=0)
        for line in lines:
            if group in line.groups and line not in main:
                marker, size = ("|", 9) if line.method in study.baselines else (".", 6)
                axes.plot(line.groups[group].value, row, marker, color=GREY, ms=size, mew=1.4, alpha=0.9, zorder=1)
        for line, offset in zip(main, offsets, strict=True):
            if group not in line.groups:
                continue
            look, estimate, y = study.look(line.method), line.groups[group], row + offset
            axes.plot([estimate.low, estimate.high], [y, y], color=look.colour, lw=1.6, zorder=2)
            axes.plot(estimate.value, y, look.marker, color=look.colour, ms=6.5, mec=SURFACE, mew=0.7, zorder=4)
            if group == line.worst_group:
                axes.plot(estimate.value, y, "o", ms=12, mfc="none", mec=look.colour, mew=1.4, zorder=3)
    axes.set_yticks(range(len(groups)), groups)
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=10.5)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-0.5, len(groups) - 0.5)
    shown = [line.groups[group] for line in main for group in line.groups]
    low, high = min(e.low for e in shown), max(e.high for e in shown)
    others = [line.groups[group].value for line in lines for group in groups if group in line.groups]
    low, high = min([low, *others]), max([high, *others])
    room = (high - low) * 0.04
    axes.set_xlim(low - room, high + room)
    axes.set_xlabel("alignment score")
    top = len(groups) - 1
    labels = [
        EndLabel(None, top + offset, line.method, study.look(line.method).colour, is_bold=True)
        for line, offset in zip(main, offsets, strict=True)
    ]
    _key(axes, [(label, study.look(line.method).marker) for label, line in zip(labels, main, strict=True)], len(groups))


def _key(axes: Axes, labels: Sequence[tuple[EndLabel, str]], rows: int) -> None:
    """Writes the name of each method to the right of the top row, in the order of the methods' dots in this row.

    labels: the name and the marker of each method. rows: number of rows in the figure.
    """
    height_in = axes.figure.get_figure(root=True).get_figheight() - 0.7
    heights = spread_out([label.y for label, _ in labels], 9.5 * 1.4 / 72 / height_in * rows)
    over = max(0.0, max(heights) - (rows - 0.6))  # keeps the top name within the axes
    for (label, marker), height in zip(labels, heights, strict=True):
        where = axes.get_yaxis_transform()
        axes.plot(1.025, height - over, marker, color=label.colour, ms=6.5, transform=where, clip_on=False)
        axes.annotate(
            short(label.text, NAME_WIDTH),
            (1.045, height - over),
            xycoords=where,
            color=label.colour,
            fontsize=9.5,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )


def by_kind(study: Study) -> Picture | None:
    """Returns the figure of scores by kind of group and question.

    The four kinds are: test groups on questions that training used; test groups on questions that no training group has; test
    groups on withheld questions; training groups on withheld questions.
    Returns None if the results contain fewer than two of these kinds.
    """
    tables = [(table(study.results, study.selection(group_part, kinds)), label) for group_part, kinds, label in KINDS]
    if sum(bool(lines) for lines, _ in tables) < 2:
        return None
    names = [line.method for line in study.tables["test"] or study.tables["train"]]
    names += [line.method for lines, _ in tables for line in lines if line.method not in names]
    names = list(dict.fromkeys(names))
    lines_of = {
        (line.method, column): line for column, (lines, _) in enumerate(tables) for line in lines
    }  # by method and kind of question
    alt = "Dot plot of methods by kind of question. " + "; ".join(
        f"{name}: "
        + ", ".join(
            f"{' '.join(label.split())} {lines_of[name, column].mean.value:.3f}"
            for column, (_, label) in enumerate(tables)
            if (name, column) in lines_of
        )
        for name in names
    )
    counts = [f"{' '.join(label.split())}: {lines[0].questions} questions" for lines, label in tables if lines]
    caption = (
        f"New groups and new questions apart ({'; '.join(counts)}). Withheld questions are kept from every group's training, by "
        "hash. Mean over groups with 95 % intervals."
    )
    return picture(
        "kinds", caption, alt, 1.3 + 0.34 * len(names), lambda figure: _draw_kinds(figure, study, names, tables)
    )


def _draw_kinds(figure: Figure, study: Study, names: list[str], tables: Sequence[tuple[Sequence[Line], str]]) -> None:
    panels = figure.subplots(1, len(tables), sharex=True, sharey=True)
    for axes, (lines, label) in zip(panels, tables, strict=True):
        axes.grid(visible=False, axis="y")
        axes.set_title(label, loc="left", color=INK, fontsize=9)
        for row in range(len(names)):
            axes.axhline(-row, color=FAINT, lw=0.8, zorder=0)
        for line in lines:
            look, y = study.look(line.method), -names.index(line.method)
            axes.plot([line.mean.low, line.mean.high], [y, y], color=look.colour, lw=2 if look.is_main else 1.4)
            axes.plot(
                line.mean.value, y, look.marker, color=look.colour, ms=7 if look.is_main else 5.5, mec=SURFACE, mew=0.7
            )
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=5)
        axes.set_ylim(-len(names) + 0.4, 0.6)
    panels[0].set_yticks([-row for row in range(len(names))], [two_lines(name) for name in names])
    for text, name in zip(panels[0].get_yticklabels(), names, strict=True):
        look = study.look(name)
        text.set_color(look.colour if look.is_main else MUTED)
        text.set_fontweight("bold" if look.is_main else "normal")
        text.set_fontstyle("italic" if name in study.baselines else "normal")
        text.set_fontsize(10)
    figure.supxlabel("alignment score, mean over groups", fontsize=9.5, color=MUTED)


def by_context(study: Study) -> Picture | None:
    """Returns the figure of the test groups' mean alignment by the number of context questions.

    Returns None if the results have scores for only one number of context questions.
    """
    contexts = contexts_of(study.results)
    tables = {
        context: {line.method: line for line in table(study.results, Selection("test", context))}
        for context in contexts
    }
    tables = {context: lines for context, lines in tables.items() if lines}
    if len(tables) < 2:
        return None
    alt = "Line chart of mean alignment of unseen groups by number of context questions. " + "; ".join(
        f"{name}: "
        + ", ".join(f"{lines[name].mean.value:.3f} with {c}" for c, lines in tables.items() if name in lines)
        for name in study.main
        if any(name in lines for lines in tables.values())
    )
    caption = (
        "How much a group must tell before it is predicted: mean alignment of the unseen groups by number of context questions, "
        "with 95 % intervals. Grey: other methods; dashed: guesses that need no training."
        + "".join(
            f" With {size}: without {', '.join(missing)}, which answered too few questions."
            for size in tables
            if (missing := left_out(study.results, "test", size))
        )
    )
    return picture("contexts", caption, alt, 4.2, lambda figure: _draw_contexts(figure, study, tables))


def _draw_contexts(figure: Figure, study: Study, tables: dict[int, dict[str, Line]]) -> None:
    axes: Axes = figure.subplots()
    sizes = list(tables)
    labels: list[EndLabel] = []
    values: list[float] = []
    for name in [*study.baselines, *reversed(study.learned)]:
        means = [(at, tables[size][name].mean) for at, size in enumerate(sizes) if name in tables[size]]
        if not means:
            continue
        look, x, y = study.look(name), [float(at) for at, _ in means], [mean.value for _, mean in means]
        is_baseline = name in study.baselines
        if look.is_main:
            shift = (study.main.index(name) - (len(study.main) - 1) / 2) * 0.035  # intervals side by side
            x = [at + shift for at in x]
            axes.vlines(x, [mean.low for _, mean in means], [mean.high for _, mean in means], color=look.colour, lw=1.3)
            axes.plot(x, y, marker=look.marker, color=look.colour, ms=6.5, mec=SURFACE, mew=0.7)
        else:
            colour, style = (RULE, (0, (4, 3))) if is_baseline else (GREY, "-")
            axes.plot(x, y, color=colour, lw=1, ls=style)
        if look.is_main or is_baseline:
            labels.append(
                EndLabel(
                    float(x[-1]), y[-1], f"{short(name, NAME_WIDTH)} {y[-1]:.3f}", look.colour, is_bold=look.is_main
                )
            )
            values += [bound for _, mean in means for bound in (mean.low, mean.high)] if look.is_main else y
    room = (max(values) - min(values)) * 0.05
    axes.set_ylim(min(values) - room, max(values) + room)
    axes.set_xlim(-0.25, len(sizes) - 0.75)
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set_xlabel("context questions")
    axes.set_ylabel("mean alignment, unseen groups")
    label_ends(axes, labels, 3.5)
