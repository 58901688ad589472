"""Draws the figures for the report about a live run."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pluralllm.common.predictor.metrics import coefficient_of_variation
from pluralllm.common.words.thinning import thinned
from pluralllm.experiment.report.live import LiveRun, RoundRow, Series, at_round, common_rounds
from pluralllm.experiment.report.theme import (
    FAINT,
    GREY,
    INK,
    MUTED,
    SERIES,
    SURFACE,
    EndLabel,
    Picture,
    label_ends,
    picture,
)

ROLES = {"held_out": ("unseen groups", SERIES[0], "o"), "train": ("training groups", SERIES[1], "s")}
MAX_POINTS = 200  # of a line
MAX_DOTS = 60  # a line with more points shows no dots
MAX_SCORES = 4000  # of all lines of a panel together, while each has LEAST_POINTS
LEAST_POINTS = 40
MAX_NAMED = 12  # groups with a label in a panel
MAX_ROWS = 30  # groups in the figure of the newest scores
OUTCOMES = {"closed": (SERIES[0], "closed"), "abandoned": (SERIES[1], "abandoned"), "open": (GREY, "open")}


def groups_over_rounds(live: LiveRun) -> Picture | None:
    """Returns the figure of every group's alignment over rounds; None before the first evaluation."""
    roles = [role for role in ROLES if live.scored(role)]
    if not roles:
        return None
    sentences = [
        f"{curve.group} ({ROLES[curve.role][0]}): {curve.scores[0]:.3f} to {curve.scores[-1]:.3f}"
        for role in roles
        for curve in ends(live.scored(role), MAX_NAMED)
    ]
    caption = (
        "Each group's alignment score by the round that made the model version, as the groups' own clients measured it. In "
        "colour: the mean over the groups of a panel that report their newest score. Bold: the one of them that is worst now."
        f"{_left_out(live, roles)}"
    )
    if any(curve.score_without_context is not None for curve in live.series):
        caption += " Dotted: the mean newest score with uniform answers in place of the groups' own as context."
    silent = [f"{curve.group} {curve.not_reported}" for curve in live.series if curve.not_reported]
    if silent:
        caption += f" Without a newest score: {'; '.join(silent)}."
    heights = [max(2.6, 0.22 * (min(len(live.scored(role)), MAX_NAMED) + 2)) for role in roles]
    alt = f"Line charts of alignment over rounds, first to newest. {'; '.join(sentences)}."
    return picture(
        "live-groups", caption, alt, sum(heights) + 0.4, lambda figure: _draw_groups(figure, live, roles, heights)
    )


def _draw_groups(figure: Figure, live: LiveRun, roles: Sequence[str], heights: Sequence[float]) -> None:
    panels = figure.subplots(len(roles), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, role, height in zip(panels, roles, heights, strict=True):
        series, (name, colour, marker) = live.reporting(role), ROLES[role]
        worst = min(series, key=lambda curve: curve.scores[-1], default=None)
        labels = []
        named = ends(live.scored(role), MAX_NAMED)
        for curve in live.scored(role):
            is_worst = curve is worst and len(series) > 1
            ink = INK if is_worst else GREY
            points = thinned(list(zip(curve.rounds, curve.scores, strict=True)), most_points(live.scored(role)))
            dots = "." if len(points) <= MAX_DOTS else ""
            axes.plot(*zip(*points, strict=True), color=ink, lw=1.6 if is_worst else 1.1, marker=dots, ms=5)
            if curve not in named:
                continue
            text = f"{curve.group} {curve.scores[-1]:.3f}{' (worst)' if is_worst else ''}"
            labels.append(
                EndLabel(curve.rounds[-1], curve.scores[-1], text, INK if is_worst else MUTED, is_bold=is_worst)
            )
        rounds = common_rounds(series)
        if len(series) > 1 and rounds:
            rounds = tuple(thinned(rounds, MAX_POINTS))
            means = [_mean(list(at_round(series, number).values())) for number in rounds]
            axes.plot(rounds, means, color=colour, lw=2.4, marker=marker if len(rounds) <= MAX_DOTS else "", ms=5)
            text = f"mean of {len(series)} {means[-1]:.3f}"
            labels.append(EndLabel(rounds[-1], means[-1], text, colour, is_bold=True))
        without = [score for curve in series if (score := curve.score_without_context) is not None]
        if without:
            axes.axhline(_mean(without), color=MUTED, lw=1.2, ls=":")
            labels.append(EndLabel(None, _mean(without), f"without their answers {_mean(without):.3f}", MUTED))
        axes.margins(x=0.02, y=0.08)
        axes.set_title(name)
        axes.set_ylabel("alignment score")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        label_ends(axes, labels, height - 0.5, 9)
    panels[-1].set_xlabel("round")


def fairness_over_rounds(live: LiveRun) -> Picture | None:
    """Returns the figure of the worst group's score and of the coefficient of variation over rounds.

    Groups have the role training or held out. Returns None until one of the two roles has at least two groups that report their
    newest scores, and two rounds in which all of these did so.
    """
    shown = {role: live.reporting(role) for role in ROLES if len(live.reporting(role)) > 1}
    shown = {role: series for role, series in shown.items() if len(common_rounds(series)) > 1}
    if not shown:
        return None
    sentences = []
    for role, series in shown.items():
        scores = at_round(series, common_rounds(series)[-1])
        sentences.append(
            f"{ROLES[role][0]} ({len(series)} of {len(live.of_role(role))}): worst {min(scores.values()):.3f}, "
            f"coefficient of variation {coefficient_of_variation(list(scores.values())):.3f}"
        )
    caption = (
        "How evenly the groups are served, over the groups that report their newest score, in the rounds in which all of them "
        "reported one. Left: the worst group's alignment. Right: the coefficient of variation over groups; lower is more even. "
        "Jain's index is 1 / (1 + CoV²)."
    )
    alt = f"Line charts of fairness over rounds. Now: {'; '.join(sentences)}."
    return picture("live-fairness", caption, alt, 3.2, lambda figure: _draw_fairness(figure, shown))


def _draw_fairness(figure: Figure, shown: dict[str, tuple[Series, ...]]) -> None:
    panels = figure.subplots(1, 2)
    for axes, title, measure in (
        (panels[0], "worst group's alignment", min),
        (panels[1], "CoV over groups", coefficient_of_variation),
    ):
        labels = []
        for role, series in shown.items():
            name, colour, marker = ROLES[role]
            rounds = tuple(thinned(common_rounds(series), MAX_POINTS))
            values = [float(measure(list(at_round(series, number).values()))) for number in rounds]
            axes.plot(rounds, values, color=colour, marker=marker if len(rounds) <= MAX_DOTS else "", ms=4.5)
            labels.append(EndLabel(rounds[-1], values[-1], f"{name.split()[0]} {values[-1]:.3f}", colour, is_bold=True))
        axes.margins(x=0.02, y=0.1)
        axes.set_title(title)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        label_ends(axes, labels, 2.4, 9)


def groups_now(live: LiveRun) -> Picture | None:
    """Returns the figure of each group's first and newest score; None until a group has been evaluated in two rounds."""
    series = sorted((curve for curve in live.series if len(curve.scores) > 1), key=lambda curve: curve.scores[-1])
    if not series:
        return None
    total, series = len(series), list(ends(series, MAX_ROWS))
    caption = (
        "Each group at its first (hollow) and its newest reported score (filled), best above. A ring marks the worst group of "
        "each kind among those that report their newest score. There are no intervals here: single questions' scores stay with "
        "the partners."
    )
    if total > len(series):
        caption += (
            f" Shown: the {len(series) // 2} worst and the {len(series) - len(series) // 2} best of {total} groups."
        )
    alt = "Dot plot of alignment by group. " + "; ".join(
        f"{_named(curve)}: {curve.scores[0]:.3f} to {curve.scores[-1]:.3f}" for curve in reversed(series)
    )
    return picture("live-now", caption, alt, 1.0 + 0.32 * len(series), lambda figure: _draw_now(figure, series))


def _draw_now(figure: Figure, series: Sequence[Series]) -> None:
    axes: Axes = figure.subplots()
    axes.grid(visible=False, axis="y")
    worst: set[str] = set()
    handles: dict[str, Any] = {}
    for row, curve in enumerate(series):
        name, colour, marker = ROLES[curve.role]
        axes.axhline(row, color=FAINT, lw=0.8, zorder=0)
        axes.plot([curve.scores[0], curve.scores[-1]], [row, row], color=colour, lw=1.6)
        axes.plot(curve.scores[0], row, marker, ms=6, mfc=SURFACE, mec=colour, mew=1.3)
        handles[name] = axes.plot(
            curve.scores[-1], row, marker, ms=7.5, color=colour, mec=SURFACE, mew=0.7, label=name
        )[0]
        if curve.role not in worst and not curve.not_reported:
            worst.add(curve.role)
            axes.plot(curve.scores[-1], row, "o", ms=14, mfc="none", mec=colour, mew=1.4)
    axes.set_yticks(range(len(series)), [_named(curve) for curve in series])
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=10)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-0.6, len(series) - 0.4)
    axes.margins(x=0.05)
    axes.set_xlabel("alignment score")
    figure.legend(handles=list(handles.values()), loc="outside upper left", ncols=2, frameon=False, fontsize=9.5)


def _named(curve: Series) -> str:
    return f"{curve.group} (no newest score)" if curve.not_reported else curve.group


def time_of_rounds(live: LiveRun) -> Picture | None:
    """Returns the figure of each round's duration; None before the first round."""
    if not live.rounds:
        return None
    ended = [row for row in live.rounds if row.outcome != "open"]
    lost = [row for row in live.rounds if row.outcome == "abandoned"]
    others = [row for row in live.rounds if row.outcome != "abandoned"]
    shown = sorted({*thinned(others, MAX_POINTS), *thinned(lost, MAX_POINTS)}, key=lambda row: row.number)
    caption = "Each line is the time of one round."
    if len(shown) < len(live.rounds):
        caption += f" Shown: {len(shown)} of {len(live.rounds)} rounds, evenly spaced."
    alt = f"Bar chart of the time of {len(live.rounds)} rounds; " + (
        f"median {sorted(row.seconds for row in ended)[len(ended) // 2]:.1f} s." if ended else "none has ended."
    )
    return picture("live-rounds", caption, alt, 2.6, lambda figure: _draw_rounds(figure, shown))


def _draw_rounds(figure: Figure, rounds: Sequence[RoundRow]) -> None:
    bars: Axes = figure.subplots()
    width = max(1.0, min(12.0, 400 / len(rounds)))  # points
    for outcome, (colour, label) in OUTCOMES.items():
        of_outcome = [row for row in rounds if row.outcome == outcome]
        if of_outcome:
            numbers, seconds = [row.number for row in of_outcome], [row.seconds for row in of_outcome]
            bars.vlines(numbers, 0, seconds, color=colour, lw=width, label=label)
    bars.grid(visible=False, axis="x")
    bars.set_ylabel("seconds")
    bars.set_xlabel("round")
    bars.margins(y=0.2)
    bars.set_ylim(bottom=0)
    bars.legend(frameon=False, fontsize=9, ncols=3, loc="upper right")
    bars.xaxis.set_major_locator(MaxNLocator(integer=True))


def ends(series: Sequence[Series], most: int) -> tuple[Series, ...]:
    """Returns all series, or the worst and best halves of `most` of them, worst first. Series have a newest score."""
    by_score = sorted(series, key=lambda curve: curve.scores[-1])
    if len(by_score) <= most:
        return tuple(by_score)
    return (*by_score[: most // 2], *by_score[len(by_score) - (most - most // 2) :])


def most_points(series: Sequence[Series]) -> int:
    """Returns the largest number of points of each group's line, so that a panel of many groups is drawn quickly."""
    return max(LEAST_POINTS, min(MAX_POINTS, MAX_SCORES // len(series)))


def _left_out(live: LiveRun, roles: Sequence[str]) -> str:
    if max(len(live.scored(role)) for role in roles) <= MAX_NAMED:
        return ""
    return f" Named: the {MAX_NAMED // 2} worst and the {MAX_NAMED // 2} best groups of a panel."


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
