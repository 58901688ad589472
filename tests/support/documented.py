"""The commands that the documentation has people type: lines of its indented shell blocks, and what stands between backticks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "RESULTS.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
# First lines of what is indented and no shell block: Python, settings, drawings, lists.
OTHER = re.compile(
    r"from |import |\w+ = |\w+\.\w+\(|\S+/ +\w|.*(-->|<--)| {4}|operator +coordinator|administrator +coordinator"
)


@dataclass(frozen=True, slots=True)
class Block:
    """Lines between two blank ones as they stand, without their indent."""

    page: str
    section: str
    lines: tuple[str, ...]

    @property
    def commands(self) -> tuple[str, ...]:
        """Without comments."""
        bare = (re.sub(r"\s+# .*| {3,}#.*", "", line).rstrip() for line in self.lines)
        return tuple(line for line in bare if line)


def blocks(page: Path) -> Iterator[Block]:
    """Shell blocks only: Python, TOML and drawings stand apart."""
    section, held = "", list[str]()
    for line in [*page.read_text().splitlines(), "end"]:
        if line.startswith("    "):
            held.append(line[4:])
            continue
        if held and not OTHER.match(held[0]):
            yield Block(page.name, section, tuple(held))
        held = []
        if line.startswith("## "):
            section = line[3:]


def of_section(page: str, section: str) -> list[Block]:
    path = next(path for path in PAGES if path.name == page)
    return [block for block in blocks(path) if block.section == section]


def inline(page: Path) -> Iterator[str]:
    """Commands of ours between backticks."""
    text = re.sub(r"^    .*$", "", page.read_text(), flags=re.MULTILINE)
    yield from re.findall(r"`(pluralllm(?:-server|-client)?(?: [^`]*)?)`", text)
