"""Reads a completion as an answer: one of the options, a ranking of the options, or a share for each option.

A completion is read in two steps. `candidates` (stated.py) takes away what surrounds an answer: thinking, markdown, "Answer:".
This module then reads the rest as a sequence of names and numbers, with the known options first and the longest of them, so that
options may hold commas, digits or percent signs. A text that names two options, or whose numbers do not fit, is no answer.

The module parses text only; it uses no model.
"""

import json
import math
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluralllm.align.stated import candidates, folded
from pluralllm.common.errors.tree import InvalidArgument

Messages = Sequence[dict[str, Any]]
Reader = Callable[
    [str, Sequence[str]], Any
]  # gets a completion and the options; returns a share for each option, or None

_LETTER = re.compile(r"\(?([a-z])(?:[.:)]+|(?=[\s,;&/>=-]|$))")
_NUMBER = re.compile(r"\(?\s*(\d+(?:\.\d+)?|\.\d+)(?![\d.,]*\d)\s*(%?)\)?")
_LINK = re.compile(r"\s*[:=~-]+>?\s*|\s+|(?=\()")  # between a name and its number
_GAP = re.compile(r"\s*(?:[,;/&|\n]|\band\b)\s*(?:\band\b\s*)?")  # between two entries
_ALTERNATIVE = re.compile(r"\s*(?:[,;/&|>]|\b(?:and|or|but|not)\b)\s*(?:\b(?:and|or|but|not)\b\s*)?")
_BELOW = re.compile(r"[ .]*>\s*")  # between two names of a ranking
_AFTER_LETTER = re.compile(r"[ -]*")
_MARK = re.compile(r"(?:[-*•]|\d+[.)])\s+")  # of an entry in a list
# Begins as the option "No" does, and says that there is no answer, unless an option has these words.
_NO_ANSWER = re.compile(r"no (?:idea|opinion|answer|comment|preference|clue|view|views|response|position|data|one)\b")
_ANSWER_KEYS = ("answer", "choice", "option", "final_answer")


def text_of(message: Any) -> str:
    """Returns the text of a message; for a conversation, the text of its last message.

    If the content of the last message is a list of parts, the texts of the parts are joined. A number is written as an option
    of a survey is: 5, 5.0 and numpy's int64(5) are "5"; a truth value is "True" or "False".
    Raises ValueError if the message is something else.
    """
    if isinstance(message, str):
        return str(message)  # numpy's texts as well
    if (number := _number_text(message)) is not None:
        return number
    check_text("a message", message)
    content = message[-1].get("content", "") if message else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or () if isinstance(part, dict))


def check_text(name: str, message: Any) -> None:
    """Checks that a value can be the message of `text_of`. Raises ValueError if it is neither a text nor a conversation."""
    if isinstance(message, str) or _number_text(message) is not None:
        return
    if not isinstance(message, list | tuple) or not all(isinstance(turn, dict) for turn in message):
        raise ValueError(
            f"{name} is a {type(message).__name__}; give a text, a number, or a list of messages with role and content"
        )


def _number_text(value: Any) -> str | None:
    """Returns a number as a text; None if the value is no finite number."""
    number = value.item() if isinstance(value, np.generic) else value
    if isinstance(number, bool):
        return str(number)
    if not isinstance(number, int | float) or not math.isfinite(number):
        return None
    return str(int(number)) if number == int(number) else str(number)


def read_answer(completion: str, options: Sequence[str]) -> NDArray[np.float64] | None:
    """Returns the share that a completion gives to each option, or None if it names no option, or more than one as its choice.

    "B", "B. Agree" and "Agree because ..." choose one option. "B > A > C" is a ranking; its shares are proportional to Borda
    points (one point for each option that is ranked lower). "A: 0.7, B: 0.3", "Agree 70%, Disagree 30%" or a JSON object gives
    shares. Thinking in <think> tags, markdown, code fences, \\boxed{...} and "Answer:" are taken away. Letters and options may be
    in upper or lower case. "Agree 10%" alone is no answer, because it does not say what the other 90 % are.
    Shape: (options,); the shares sum to 1.
    """
    names = _names(tuple(options))
    for text in candidates(completion):
        if (returned := _read(text, names)) is not None:
            return returned
    return None


def read_by(read: Reader | None, completion: str, options: Sequence[str]) -> NDArray[np.float64] | None:
    """Returns what a reader of the user's own makes of a completion; without one, what `read_answer` does.

    Raises InvalidArgument if the reader returns something else than None or a share of at least 0 for each option.
    """
    if read is None:
        return read_answer(completion, options)
    returned = read(completion, options)
    if returned is None:
        return None
    shares = np.asarray(returned, np.float64)
    if shares.shape != (len(options),) or not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
        problem = (
            f"returned {returned!r}; it must return None or {len(options)} shares, one for each option, of at least 0"
        )
        raise InvalidArgument(field="read", problem=problem)
    read_shares: NDArray[np.float64] = shares / shares.sum()
    return read_shares


@dataclass(frozen=True, slots=True)
class Named:
    """An option that a text names."""

    option: int
    end: int  # place in the text after the name
    is_letter: bool = False  # whether a letter alone names it


@dataclass(frozen=True, slots=True)
class Names:
    """The options of a question, as they are looked for in a text."""

    texts: tuple[str, ...]  # folded, in the order of the options

    @property
    def count(self) -> int:
        return len(self.texts)

    def at(self, text: str, start: int) -> Named | None:
        """Returns the option that stands at a place of a folded text. None if there is none.

        An option in full counts before a letter, and the longest one counts. Two options of the same text are none.
        """
        fitting = [number for number, name in enumerate(self.texts) if name and _stands(name, text, start)]
        if fitting:
            longest = max(len(self.texts[number]) for number in fitting)
            best = [number for number in fitting if len(self.texts[number]) == longest]
            return Named(best[0], start + longest) if len(best) == 1 else None
        letter = _LETTER.match(text, start)
        if letter is None or (number := string.ascii_lowercase.index(letter[1])) >= self.count:
            return None
        gap = _AFTER_LETTER.match(text, letter.end())
        if gap is not None and self.texts[number] and _stands(self.texts[number], text, gap.end()):
            return Named(number, gap.end() + len(self.texts[number]))
        return Named(number, letter.end(), is_letter=True)


@lru_cache(maxsize=4096)
def _names(options: tuple[str, ...]) -> Names:
    return Names(tuple(folded(option).strip() for option in options))


def _stands(name: str, text: str, start: int) -> bool:
    """Returns whether a name stands at a place, and does not go on as another word or another number."""
    if not text.startswith(name, start):
        return False
    rest = text[start + len(name) : start + len(name) + 2]
    if name[-1].isdigit() and (rest[:1] == "%" or (rest[:1] in tuple(".,") and rest[1:].isdigit())):
        return False
    return not (name[-1].isalnum() and rest[:1].isalnum())


def _read(text: str, names: Names) -> NDArray[np.float64] | None:
    """Reads a text that holds nothing but an answer, and perhaps reasons after it."""
    if text.startswith("{"):
        return _from_json(text, names)
    first = text.split("\n", 1)[0]
    for part in (text, first):
        for read in (_ranking, _shares_after_names, _shares_before_names):
            if (found := read(part, names)) is not None:
                return found
    return _choice(first, names)


def _choice(line: str, names: Names) -> NDArray[np.float64] | None:
    """Reads a line that begins with one option. What follows must name no other option, and give no number to it."""
    mark = _MARK.match(line)
    named = names.at(line, 0) or (names.at(line, mark.end()) if mark else None)
    if named is None:
        return None
    if _NO_ANSWER.match(line, named.end - len("no")) and names.texts[named.option] == "no":
        return None
    if named.is_letter and line[named.end :].strip(" .:)*\"'"):
        return None  # "A dog" is not option A, and "A. Disagree" contradicts itself
    link = _LINK.match(line, named.end)
    if _NUMBER.match(line, link.end() if link else named.end) is not None:
        return None  # a share that the whole text does not explain
    between = _ALTERNATIVE.match(line, named.end)
    other = None if between is None else names.at(line, between.end())
    if other is not None and other.option != named.option:
        return None
    return _only(named.option, names)


def _ranking(text: str, names: Names) -> NDArray[np.float64] | None:
    if ">" not in text:
        return None
    ranked, place = list[int](), 0
    while (named := names.at(text, place)) is not None:
        ranked.append(named.option)
        if not text[named.end :].strip(" ."):
            break
        if (gap := _BELOW.match(text, named.end)) is None:
            return None
        place = gap.end()
    else:
        return None
    if len(ranked) < 2 or len(set(ranked)) < len(ranked):
        return None
    points = np.zeros(names.count)
    for position, number in enumerate(ranked):
        points[number] = names.count - 1 - position  # options that the ranking leaves out get no points
    shares: NDArray[np.float64] | None = points / points.sum() if points.sum() > 0 else None
    return shares


@dataclass(frozen=True, slots=True)
class Entry:
    """A number that a text gives to an option."""

    option: int
    value: float
    is_percent: bool


def _shares_after_names(text: str, names: Names) -> NDArray[np.float64] | None:
    """Reads "A: 0.7, B: 0.3": each number after its name."""

    def entry(place: int) -> tuple[Entry, int] | None:
        if (named := names.at(text, place)) is None:
            return None
        link = _LINK.match(text, named.end)
        place = link.end() if link else named.end
        if (number := _NUMBER.match(text, place)) is None:
            return None
        return Entry(named.option, float(number[1]), bool(number[2])), number.end()

    return _shares(_entries(text, entry), names)


def _shares_before_names(text: str, names: Names) -> NDArray[np.float64] | None:
    """Reads "70% Agree, 30% Disagree": each percentage before its name."""

    def entry(place: int) -> tuple[Entry, int] | None:
        number = _NUMBER.match(text, place)
        if number is None or not number[2]:
            return None
        link = _LINK.match(text, number.end())
        if (named := names.at(text, link.end() if link else number.end())) is None:
            return None
        return Entry(named.option, float(number[1]), is_percent=True), named.end

    return _shares(_entries(text, entry), names)


def _entries(text: str, entry_at: Callable[[int], tuple[Entry, int] | None]) -> list[Entry]:
    """Returns all entries of a text; none if anything else stands in it."""
    entries, place, stop = [], 0, len(text.rstrip(" .\n"))
    while place < stop:
        read_entry = entry_at(place)
        if read_entry is None and (mark := _MARK.match(text, place)) is not None:
            read_entry = entry_at(mark.end())
        if read_entry is None:
            return []
        entries.append(read_entry[0])
        place = read_entry[1]
        if place < stop:
            if (gap := _GAP.match(text, place)) is None:
                return []
            place = gap.end()
    return entries


def _shares(entries: Sequence[Entry], names: Names) -> NDArray[np.float64] | None:
    """Returns the shares of the entries. Percentages and other numbers do not mix, and one number alone must be all there is."""
    if not entries or len({entry.is_percent for entry in entries}) > 1:
        return None
    if len({entry.option for entry in entries}) < len(entries):
        return None
    whole = 100.0 if entries[0].is_percent else 1.0
    if len(entries) == 1 and entries[0].value != whole:
        return None
    shares = np.zeros(names.count)
    for entry in entries:
        shares[entry.option] = entry.value
    total = shares.sum()
    return shares / total if 0 < total < math.inf else None


def _from_json(text: str, names: Names) -> NDArray[np.float64] | None:
    """Reads {"Agree": 0.7, "B": 0.3}, or an object whose key "answer" names the answer."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not values:
        return None
    entries = []
    for name, value in values.items():
        named = names.at(name, 0)
        if named is None or name[named.end :].strip() or not _is_share(value):
            return _stated_in(values, names)
        entries.append(Entry(named.option, float(value), is_percent=False))
    if len(entries) == 1 and entries[0].value > 0:  # an object lists all shares: the others are 0
        return _only(entries[0].option, names)
    return _shares(entries, names)


def _only(option: int, names: Names) -> NDArray[np.float64]:
    shares = np.zeros(names.count)
    shares[option] = 1.0
    return shares


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _stated_in(values: dict[str, Any], names: Names) -> NDArray[np.float64] | None:
    stated = [values[key] for key in _ANSWER_KEYS if isinstance(values.get(key), str)]
    return _read(stated[0].strip(), names) if len(stated) == 1 and not stated[0].strip().startswith("{") else None
