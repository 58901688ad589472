"""The commands in the documentation: lines of its indented shell blocks, and text between backticks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "RESULTS.md",
    ROOT / "client" / "src" / "pluralllm" / "cli" / "quickstart" / "quickstart.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
# First lines of indented blocks that are not shell: Python, settings, drawings, lists.
OTHER = re.compile(
    r"from |import |\w+ = |\w+\.\w+\(|\S+/ +\w|.*(-->|<--)| {4}|operator +coordinator|administrator +coordinator"
)


@dataclass(frozen=True, slots=True)
class Block:
    """The lines between two blank lines of a page, without their indent."""

    page: str
    section: str
    lines: tuple[str, ...]

    @property
    def commands(self) -> tuple[str, ...]:
        """The lines without their comments; lines that are only a comment are left out."""
        bare = (re.sub(r"\s+# .*| {3,}#.*", "", line).rstrip() for line in self.lines)
        return tuple(line for line in bare if line)


def blocks(page: Path) -> Iterator[Block]:
    """Yields a page's shell blocks; blocks of Python, TOML and drawings, and those between fences, are left out."""
    section, held, is_fenced = "", list[str](), False
    for line in [*page.read_text().splitlines(), "end"]:
        is_fenced ^= line.startswith("```")
        if line.startswith("    ") and not is_fenced:
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
    """Yields the project's commands that stand between backticks."""
    text = re.sub(r"^    .*$", "", page.read_text(), flags=re.MULTILINE)
    yield from re.findall(r"`(pluralllm(?:-server|-client)?(?: [^`]*)?)`", text)
