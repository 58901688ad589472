"""Writes a report as one HTML file that loads no other file, and its figures as PNG files beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from pluralllm.common.process.files import make_folder, storage_errors, write_durably
from pluralllm.common.text.printable import printable
from pluralllm.experiment.report.theme import Picture

PAGE = "report.html"


@dataclass(frozen=True, slots=True)
class Finding:
    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    cells: tuple[str, ...]  # the lines of a cell after its first one are printed small
    kind: str = ""  # main, baseline or empty; chooses the row's style
    number: int | None = None  # number of the series, which gives a main row its colour


@dataclass(frozen=True, slots=True)
class Table:
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    caption: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    text: str = ""
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    code: str = ""
    is_folded: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    title: str
    subtitle: str
    findings: tuple[Finding, ...]
    caveats: tuple[str, ...]
    sections: tuple[Section, ...]


def html_of(page: Page) -> str:
    """Renders the page as HTML.

    All texts are escaped and printable, because other people wrote some texts; the figures are not escaped.
    """
    source = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value, lines=True) if type(value) is str else value,
    )
    return environment.from_string(source).render(page=page)


def write_page(page: Page, out: Path) -> Path:
    """Writes the page and its figures into the folder `out`, and replaces older files. Returns the path of the page.

    Raises StorageFull if the disk is full.
    """
    pictures: Sequence[Picture] = [picture for section in page.sections for picture in section.pictures]
    with storage_errors("the report"):
        make_folder(out, 0o755)
    for picture in pictures:
        write_durably(out / f"{picture.name}.png", picture.png)
    write_durably(out / PAGE, html_of(page).encode())
    return out / PAGE
