"""Look of the figures: colours, markers, sizes and labels.

The module holds the colours of the light page. In the page's SVG each colour becomes a CSS variable, so that the page also
works with a dark background. People with any kind of colour blindness can distinguish the colours of the series (after Okabe
and Ito 2008, darkened for text on white). Each series also has its own marker.
"""

import io
import logging
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, FAINT, GREY, SURFACE, RULE = "#1a1d21", "#5c636d", "#e2e5e9", "#a4abb5", "#fefefe", "#757d88"
SERIES = ("#0068a8", "#c8500a", "#00825f", "#a8488a", "#8a6a00", "#4a4fb5")
MARKERS = ("o", "s", "D", "^", "v", "p")
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    FAINT: "--faint",
    GREY: "--grey",
    SURFACE: "--surface",
    RULE: "--rule",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)},
}
WIDTH_IN = 10.0
PNG_DPI = 160
LABEL_WIDTH, NAME_WIDTH = 44, 36  # characters
SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.parse_math": False,  # a dollar sign in a question is a dollar sign
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "figure.facecolor": SURFACE,
    "svg.fonttype": "path",
}


@dataclass(frozen=True, slots=True)
class Look:
    """Colour and marker of one method; the method has the same look in all figures."""

    colour: str
    marker: str
    is_main: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """Figure of a report, as SVG for the page and as PNG for a file."""

    name: str  # name of the file, without .png
    caption: str
    alt: str
    svg: str
    png: bytes


def picture(name: str, caption: str, alt: str, height_in: float, draw: Callable[[Figure], None]) -> Picture:
    """Creates a figure, calls `draw` on it, and returns the figure as SVG and as PNG.

    name: name of the file, without .png. alt: a text that replaces the figure for readers who cannot see it.
    """
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    settings: Any = {**SETTINGS, "svg.hashsalt": name}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing"
        )  # the font lacks some scripts; the tables show these names
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        draw(figure)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None})
        figure.set_layout_engine("none")  # the layout is made; to make it once more costs as much as to draw
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return Picture(name, caption, alt, inline(svg.getvalue(), name, alt), png.getvalue())


def inline(svg: str, name: str, alt: str) -> str:
    """Turns the text of an SVG file into an element of an HTML page.

    The function removes prolog and comments, replaces colours by CSS variables, and adds the alternative text `alt`. The prefix
    `name` makes every id unique on the page.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    head, _, rest = body.partition(">")
    head = re.sub(r'\s(?:height|width)="[^"]*"', "", head).removeprefix("<svg")
    rest = re.sub(r"[ \t]*\n[ \t]*", " ", rest)
    return f'<svg role="img" aria-label="{attribute(alt)}"{head}>{rest}'


def attribute(text: str) -> str:
    """Escapes a text for use in an HTML attribute."""
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    return text


def spread_out(positions: Sequence[float], gap: float) -> list[float]:
    """Moves the positions of labels so that they are at least `gap` apart and labels do not overlap; keeps their order.

    Neighbours that are too close to each other form a block, which is centred on the mean of their positions.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    blocks: list[list[int]] = []
    centres: list[float] = []
    for index in order:
        block, centre = [index], positions[index]
        while blocks and centre - centres[-1] < gap * (len(block) + len(blocks[-1])) / 2:
            block = [*blocks.pop(), *block]
            centres.pop()
            first = sum(positions[member] - gap * number for number, member in enumerate(block)) / len(block)
            centre = first + gap * (len(block) - 1) / 2
        blocks.append(block)
        centres.append(centre)
    spread = [0.0] * len(positions)
    for block, centre in zip(blocks, centres, strict=True):
        for number, member in enumerate(block):
            spread[member] = centre + gap * (number - (len(block) - 1) / 2)
    return spread


@dataclass(frozen=True, slots=True)
class EndLabel:
    """Label that stands to the right of the axes, beside the end of a line at the point (x, y)."""

    x: float | None  # None: the line goes to the right edge
    y: float
    text: str
    colour: str
    is_bold: bool = False


def label_ends(axes: Axes, labels: Sequence[EndLabel], height_in: float, size: float = 9.5) -> None:
    """Writes labels to the right of the axes, beside the ends of their lines.

    Call the function after the limits of the axes are set. height_in: approximate height of the axes, in inches.
    """
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    shown = [label for label in labels if low <= label.y <= high]
    gap = size * 1.35 / 72 / height_in * (high - low)
    heights = spread_out([label.y for label in shown], gap)
    for label, height in zip(shown, heights, strict=True):
        start = right if label.x is None else label.x
        axes.annotate(
            short(label.text, LABEL_WIDTH),
            xy=(start, label.y),
            xytext=(1.025, height),
            textcoords=axes.get_yaxis_transform(),
            color=label.colour,
            fontsize=size,
            fontweight="bold" if label.is_bold else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": label.colour,
                "lw": 0.7,
                "alpha": 0.6,
                "shrinkA": 0,  # to cut a line costs more than to draw it
                "shrinkB": 0,
                "patchA": None,
                "relpos": (-0.03, 0.5),
            },
        )


def short(text: str, width: int) -> str:
    """Returns a text; if it is longer than `width` characters, it is cut and ends with an ellipsis."""
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def two_lines(text: str, width: int = NAME_WIDTH) -> str:
    """Returns a name for a row of a figure: on two lines if it is longer than `width` characters, cut only beyond the second."""
    return "\n".join(textwrap.wrap(text, width, max_lines=2, placeholder="…"))
