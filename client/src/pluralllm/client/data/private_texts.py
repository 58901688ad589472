"""Whether a text holds something of the private file: for what leaves this machine by its owner's hand, a support bundle's logs.

Compared are letters and digits alone, so that quotation marks, escapes, blanks and line ends do not matter. Of a long text its
beginning is enough: libraries cut what they quote.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from pluralllm.common.process.support_bundle import REMOVED, without_secrets
from pluralllm.common.words.questions import Question

BEGINNING = 24  # letters and digits of a text that are looked for
ESCAPED = re.compile(r"\\+(n|r|t|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})")  # by JSON or by Python's repr
LEAST = 10  # shorter answers ("agree") are words of any log


class PrivateTexts:
    """Of the questions and options of one file."""

    def __init__(self, questions: Iterable[Question]) -> None:
        bare = {_bare(text) for question in questions for text in (question.text, *question.options)}
        self._short = {text for text in bare if LEAST <= len(text) < BEGINNING}
        self._beginnings = {text[:BEGINNING] for text in bare if len(text) >= BEGINNING}

    def are_in(self, text: str) -> bool:
        bare = _bare(text)
        windows = range(len(bare) - BEGINNING + 1)
        return any(bare[at : at + BEGINNING] in self._beginnings for at in windows) or any(
            short in bare for short in self._short
        )

    def redacted(self, text: str) -> str:
        """Facts or a log: lines without secrets and without private texts. Lines of JSON are looked into, however deep."""
        return "".join(
            f"{REMOVED}: a private text\n" if self.are_in(_opened(line)) else line
            for line in without_secrets(text).splitlines(keepends=True)
        )

    def redacted_log(self, text: str) -> str:
        """The same of a log. What is no JSON line (a library's warning, a stack trace) may quote anything, and is left out."""
        kept = [line for line in text.splitlines(keepends=True) if _facts(line) is not None]
        left_out = len(text.splitlines()) - len(kept)
        told = [f"{REMOVED}: {left_out} lines that are no JSON\n"] if left_out else []
        return "".join([*told, self.redacted("".join(kept))])


def _bare(text: str) -> str:
    return "".join(c for c in ESCAPED.sub(_meant, text).casefold() if c.isalnum())


def _meant(escaped: re.Match[str]) -> str:
    return chr(int(escaped[1][1:], 16)) if escaped[1][0] in "xu" else " "


def _facts(line: str) -> Any:
    """A JSON object's, else None."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _opened(line: str) -> str:
    """With every string of a JSON line as it was before it was written, also of JSON in JSON."""
    facts = _facts(line)
    return line if facts is None else " ".join([line, *_strings(facts)])


def _strings(value: Any) -> Iterable[str]:
    match value:
        case str():
            yield _opened(value)
        case list():
            for each in value:
                yield from _strings(each)
        case dict():
            for key, each in value.items():
                yield key
                yield from _strings(each)
