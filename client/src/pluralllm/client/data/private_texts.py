"""Finds and removes texts of the private file in other texts that the partner sends away, such as logs in a support bundle.

Only letters and digits are compared, so quotation marks, escapes, spaces and line ends do not matter. A long text is recognised
by its beginning, because libraries often cut the texts that they quote.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from pluralllm.common.process.foreign_output import FOREIGN_EVENTS
from pluralllm.common.process.support_bundle import REMOVED, without_secrets
from pluralllm.common.words.questions import Question

BEGINNING = 24  # a text is recognised by this many of its first letters and digits
ESCAPED = re.compile(r"\\+(n|r|t|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})")  # as JSON and Python's repr write it
LEAST = 10  # shorter answers ("agree") are not searched for: they are words of any log


class PrivateTexts:
    """The questions and options of one private file, in a form for searches in other texts."""

    def __init__(self, questions: Iterable[Question]) -> None:
        bare = {_bare(text) for question in questions for text in (question.text, *question.options)}
        self._short = {text for text in bare if LEAST <= len(text) < BEGINNING}
        self._beginnings = {text[:BEGINNING] for text in bare if len(text) >= BEGINNING}

    def are_in(self, text: str) -> bool:
        """Returns whether the text contains a question or an option of the private file."""
        bare = _bare(text)
        windows = range(len(bare) - BEGINNING + 1)
        return any(bare[at : at + BEGINNING] in self._beginnings for at in windows) or any(
            short in bare for short in self._short
        )

    def redacted(self, text: str) -> str:
        """Returns the text without secrets such as keys; a mark replaces each line that contains a text of the private file.

        In a line of JSON, the strings at every depth are searched, too.
        """
        return "".join(
            f"{REMOVED}: a private text\n" if self.are_in(_opened(line)) else line
            for line in without_secrets(text).splitlines(keepends=True)
        )

    def redacted_log(self, text: str) -> str:
        """Returns a log without secrets such as keys; a mark replaces each line that contains a text of the private file.

        Lines that a library has made, such as its warnings, are left out, because they may quote a private text in any form.
        Such lines are no JSON objects, or events that only repeat the library's text.
        """
        kept = [line for line in text.splitlines(keepends=True) if _is_ours(_facts(line))]
        left_out = len(text.splitlines()) - len(kept)
        notes = [f"{REMOVED}: {left_out} lines of libraries, or that are no JSON\n"] if left_out else []
        return "".join([*notes, self.redacted("".join(kept))])


def _bare(text: str) -> str:
    """Returns the letters and digits of a text in lower case. An escape, such as \\u00e9, is first replaced by its character."""
    return "".join(c for c in ESCAPED.sub(_unescaped, text).casefold() if c.isalnum())


def _unescaped(escaped: re.Match[str]) -> str:
    """Returns the character that an escape stands for, and a space for an escaped line end or tab."""
    return chr(int(escaped[1][1:], 16)) if escaped[1][0] in "xu" else " "


def _facts(line: str) -> Any:
    """Parses a line of a log. Returns the JSON object in the line, or None if the line is no JSON object."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_ours(facts: Any) -> bool:
    """Returns whether a line of a log, as JSON, is an event of ours."""
    return facts is not None and not (isinstance(facts, dict) and facts.get("event") in FOREIGN_EVENTS)


def _opened(line: str) -> str:
    """Returns a JSON line, followed by all its strings without JSON's escapes. Returns any other line unchanged.

    If a string is itself a JSON object, the strings inside this object follow, too.
    """
    facts = _facts(line)
    return line if facts is None else " ".join([line, *_strings(facts)])


def _strings(value: Any) -> Iterable[str]:
    """Yields every string in a JSON value, including the keys of objects."""
    match value:
        case str():
            yield _opened(value)
        case list():
            for item in value:
                yield from _strings(item)
        case dict():
            for key, item in value.items():
                yield key
                yield from _strings(item)
