"""Checks the built site: a browser that shows a page loads nothing from another address: `python docs/site_check.py site`.

Links that a person follows may lead elsewhere; scripts, styles, pictures, fonts and frames may not. Each page also carries the
policy that lets the browser refuse the rest, such as what a script would load later. The check prints each fault and ends with 1.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

OUTSIDE = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
# Attributes that a browser loads from without a click. Of <link> all but those that only name another page.
LOADED = {"src", "srcset", "poster", "data", "background", "xlink:href"}
NAMES_A_PAGE = {"canonical", "prev", "next", "author", "license", "help"}
IN_STYLE = re.compile(r"(?:url\(\s*|@import\s+(?:url\()?\s*)[\"']?((?:[a-z]+:)?//[^\"')\s]+)", re.IGNORECASE)
POLICY = "default-src 'self';"  # the whole list of sources: nothing stands before the semicolon


class Page(HTMLParser):
    """Collects the outside addresses that a page loads, and its policy."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.policies: list[str] = []
        self._is_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._is_style = tag == "style"
        if tag == "meta" and values.get("http-equiv", "").lower() == "content-security-policy":
            self.policies.append(values.get("content", ""))
        for name, value in values.items():
            if name == "style":
                self.loaded += IN_STYLE.findall(value)
            elif is_loaded(tag, name, values):
                # A srcset lists several addresses.
                self.loaded += [part for part in value.split(", ") if OUTSIDE.match(part)]

    def handle_data(self, data: str) -> None:
        if self._is_style:
            self.loaded += IN_STYLE.findall(data)

    def handle_endtag(self, _tag: str) -> None:
        self._is_style = False


def is_loaded(tag: str, name: str, values: dict[str, str]) -> bool:
    """Tells whether a browser loads from an attribute by itself."""
    if name == "href":
        return tag in {"use", "image", "base"} or (
            tag == "link" and not set(values.get("rel", "").split()) <= NAMES_A_PAGE
        )
    return name in LOADED


def read_page(text: str) -> Page:
    """Returns a page of HTML, or an SVG picture, after it has been read."""
    page = Page()
    page.feed(text)
    return page


def faults_of_page(text: str) -> list[str]:
    """Returns what is wrong with a page."""
    page = read_page(text)
    faults = [f"loads {address}" for address in page.loaded]
    if not any(POLICY in policy for policy in page.policies):
        faults.append("has no policy against other addresses (docs/site_theme/main.html)")
    return faults


def faults_of_style(text: str) -> list[str]:
    """Returns what is wrong with a style sheet."""
    return [f"loads {address}" for address in IN_STYLE.findall(text)]


def faults_of_picture(text: str) -> list[str]:
    """Returns what is wrong with an SVG picture, whose elements load as those of a page, and whose attributes may hold url()."""
    loaded = [f"loads {address}" for address in read_page(text).loaded]
    return list(dict.fromkeys(loaded + faults_of_style(text)))


CHECKS = {".html": faults_of_page, ".css": faults_of_style, ".svg": faults_of_picture}


def faults_of_site(folder: Path) -> Iterator[str]:
    """Yields each fault of the pages, style sheets and SVG pictures under a folder, with the file's name."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in CHECKS and path.is_file():
            found = CHECKS[path.suffix](path.read_text(encoding="utf-8"))
            yield from (f"{path.relative_to(folder)} {fault}" for fault in found)


def main() -> int:
    folder = Path(sys.argv[1])
    pages = len(list(folder.rglob("*.html")))
    if not pages:
        print(f"error: {folder} has no page; build the site first: make site")
        return 1
    faults = list(faults_of_site(folder))
    for fault in faults:
        print(f"error: {fault}")
    print(f"{pages} pages, {len(faults)} faults: {folder}/index.html")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
