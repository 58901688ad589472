"""Draws all methods in one figure: the mean alignment over the test groups, and the alignment of the worst test group."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pluralllm.experiment.report.study import Study
from pluralllm.experiment.report.theme import FAINT, INK, MUTED, SURFACE, Picture, picture, two_lines
from pluralllm.experiment.summary import Line

ROW_IN = 0.34


def overview(study: Study) -> Picture | None:
    """Returns the figure of all methods' alignment on the test groups; None if the results have no test groups."""
    lines = list(study.tables["test"])
    if not lines:
        return None
    alt = "Dot plot of every method on the unseen groups, best mean first. " + "; ".join(
        f"{line.method}: mean {line.mean.value:.3f}, worst {line.worst.value:.3f} in {line.worst_group}"
        for line in lines
    )
    caption = (
        "Every method on the groups it never saw. Filled: mean over groups; hollow: the worst group, named. Bars: 95 % intervals "
        "(bootstrap over questions); small strokes: single seeds. In colour: what the rest of this page is mostly about; in "
        "italics: guesses that need no training."
    )
    return picture("methods", caption, alt, 0.9 + ROW_IN * len(lines), lambda figure: _draw(figure, study, lines))


def _draw(figure: Figure, study: Study, lines: list[Line]) -> None:
    axes: Axes = figure.subplots()
    axes.grid(visible=False, axis="y")
    for row, line in enumerate(lines):
        look, y = study.look(line.method), -row
        axes.axhline(y, color=FAINT, lw=0.8, zorder=0)
        width = 2.4 if look.is_main else 1.6
        axes.plot([line.worst.low, line.worst.high], [y, y], color=look.colour, lw=width * 0.6, alpha=0.6)
        axes.plot(line.worst.value, y, look.marker, ms=6.5, mfc=SURFACE, mec=look.colour, mew=1.5)
        axes.plot([line.mean.low, line.mean.high], [y, y], color=look.colour, lw=width)
        axes.plot(line.mean.value, y, look.marker, ms=7.5, color=look.colour, mec=SURFACE, mew=0.8)
        if len(line.mean_over_seeds) > 1:
            axes.plot(line.mean_over_seeds, [y - 0.3] * line.seeds, "|", color=look.colour, ms=4.5, mew=1)
        axes.annotate(
            line.worst_group,
            (line.worst.low, y),
            (-6, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color=MUTED,
            fontsize=8.5,
        )
        axes.annotate(
            f"{line.mean.value:.3f}",
            (line.mean.high, y),
            (7, 0),
            textcoords="offset points",
            ha="left",
            va="center",
            color=look.colour if look.is_main else MUTED,
            fontsize=9.5,
            fontweight="bold" if look.is_main else "normal",
        )
    for estimate, side, text in ((lines[0].worst, "right", "worst group"), (lines[0].mean, "left", "mean")):
        axes.annotate(
            text,
            (estimate.value, 0),
            (0, 11),
            textcoords="offset points",
            ha=side,
            va="bottom",
            color=INK,
            fontsize=9.5,
        )
    axes.set_yticks([-row for row in range(len(lines))], [two_lines(line.method) for line in lines])
    for label, line in zip(axes.get_yticklabels(), lines, strict=True):
        look = study.look(line.method)
        label.set_color(look.colour if look.is_main else MUTED)
        label.set_fontsize(10.5)
        label.set_fontweight("bold" if look.is_main else "normal")
        label.set_fontstyle("italic" if line.method in study.baselines else "normal")
    low, high = min(line.worst.low for line in lines), max(line.mean.high for line in lines)
    axes.set_xlim(low - (high - low) * 0.16, high + (high - low) * 0.1)
    axes.set_ylim(-len(lines) + 0.4, 1.0)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"alignment score with {study.context} context questions (1 is perfect)")
