"""How figures look. Colours are those of the light page; in the page's SVG each becomes a CSS variable, so that dark works too.

The colours of series are told apart by people with each kind of colour blindness (after Okabe and Ito 2008, darkened for text
on white); a marker of its own goes with each.
"""

import io
import logging
import re
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
    """How one method is drawn everywhere."""

    colour: str
    marker: str
    is_main: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure: for the page and as a file."""

    name: str  # of the file, without .png
    caption: str
    alt: str
    svg: str
    png: bytes


def picture(name: str, caption: str, alt: str, height_in: float, draw: Callable[[Figure], None]) -> Picture:
    """Draws once, writes twice."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    settings: Any = {**SETTINGS, "svg.hashsalt": name}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script the font lacks: the tables have it
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        draw(figure)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None})
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return Picture(name, caption, alt, inline(svg.getvalue(), name, alt), png.getvalue())


def inline(svg: str, name: str, alt: str) -> str:
    """An SVG file as part of a page: no prolog, no comments, colours as variables, ids of its own, and the alt text."""
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
    """Text that may stand in an attribute."""
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    return text


def spread_out(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions near the wanted ones, at least `gap` apart, in the same order: labels that do not overlap.

    Neighbours that are too near become a block around the mean of what they want.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[list[int]] = []
    centres: list[float] = []
    for index in order:
        block, centre = [index], wanted[index]
        while blocks and centre - centres[-1] < gap * (len(block) + len(blocks[-1])) / 2:
            block = [*blocks.pop(), *block]
            centres.pop()
            first = sum(wanted[member] - gap * place for place, member in enumerate(block)) / len(block)
            centre = first + gap * (len(block) - 1) / 2
        blocks.append(block)
        centres.append(centre)
    found = [0.0] * len(wanted)
    for block, centre in zip(blocks, centres, strict=True):
        for place, member in enumerate(block):
            found[member] = centre + gap * (place - (len(block) - 1) / 2)
    return found


@dataclass(frozen=True, slots=True)
class EndLabel:
    """A label to the right of the axes, for a line that ends at (x, y)."""

    x: float | None  # None: the line goes to the right edge
    y: float
    text: str
    colour: str
    is_bold: bool = False


def label_ends(axes: Axes, labels: Sequence[EndLabel], height_in: float, size: float = 9.5) -> None:
    """Set the axes' limits first. `height_in`: about how high the axes are."""
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    shown = [label for label in labels if low <= label.y <= high]
    gap = size * 1.35 / 72 / height_in * (high - low)
    places = spread_out([label.y for label in shown], gap)
    for label, place in zip(shown, places, strict=True):
        start = right if label.x is None else label.x
        axes.annotate(
            short(label.text, LABEL_WIDTH),
            xy=(start, label.y),
            xytext=(1.025, place),
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
                "shrinkA": 2,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def short(text: str, width: int) -> str:
    """Cut where it is too long."""
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"
