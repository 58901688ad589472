"""A ballot: what one row says of the candidates for one prompt. Small readings of values that all layouts share."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pluralllm.client.data.table import plain_text

Meaning = Literal["votes", "shares", "scores"]
# What reading a row of a file can raise.
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Ballot:
    """The numbers that a row gives to the candidates for a prompt. A ballot of one candidate holds one score."""

    prompt: str
    candidates: tuple[str, ...]
    numbers: tuple[float, ...]  # one for each candidate
    meaning: Meaning = "votes"
    weight: float | None = None  # of the rater; None if every vote is the vote of one person
    facts: Mapping[str, Any] = field(default_factory=dict)  # columns of the rater, beside those of the row

    def check(self) -> None:
        """Raises ValueError if the ballot cannot be used; the message says why."""
        least = 1 if self.meaning == "scores" else 2
        if not self.prompt:
            raise ValueError("no prompt")
        if len(self.candidates) < least or not all(self.candidates) or len(set(self.candidates)) < len(self.candidates):
            raise ValueError(f"{len(self.candidates)} candidates; give at least {least}, each with a text of its own")
        if len(self.numbers) != len(self.candidates) or not all(map(math.isfinite, self.numbers)):
            raise ValueError(f"{self.meaning} {list(self.numbers)}; give one finite number for each candidate")
        if self.meaning == "scores":
            return
        if min(self.numbers) < 0 or not 0 < math.fsum(self.numbers) < math.inf:
            raise ValueError(f"{self.meaning} {list(self.numbers)}; give numbers of 0 or more, not all 0")


def text_of(value: Any) -> str:
    """Returns the text in a value: the text itself, a conversation's last message, or the content or text of an object."""
    if isinstance(value, list | tuple):
        return text_of(value[-1]) if value else ""
    if isinstance(value, Mapping):
        return text_of(value.get("content", value.get("text", "")))
    return plain_text(value).strip()


def before_last(conversation: Any) -> str:
    """Returns the messages of a conversation before its last message, as one text; empty if there is no conversation."""
    messages = conversation[:-1] if isinstance(conversation, list | tuple) else ()
    return "\n".join(text_of(message) for message in messages)


def at(row: Mapping[str, Any], path: str) -> Any:
    """Returns the value at a path such as "info.post"; None if it is absent. A column of that whole name goes first."""
    if path in row:
        return parsed(row[path])
    value: Any = row
    for name in path.split("."):
        value = parsed(value)
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return parsed(value)


def needed(row: Mapping[str, Any], path: str) -> Any:
    """Returns the value at a path. Raises ValueError if it is absent or empty."""
    value = at(row, path)
    if value is None or value == "":
        raise ValueError(f"no {path}")
    return value


def number(row: Mapping[str, Any], path: str) -> float:
    """Returns the finite number at a path. Raises ValueError if there is none."""
    value = needed(row, path)
    try:
        finite = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{path} {value!r} is not a number") from None
    if not math.isfinite(finite):
        raise ValueError(f"{path} {value!r} is not a finite number")
    return finite


def index(row: Mapping[str, Any], path: str, options: int) -> int:
    """Returns the number of a candidate at a path, 0 for the first. Raises ValueError if no candidate has this number."""
    value = number(row, path)
    if value not in range(options):
        raise ValueError(f"{path} {value:g} names none of {options} candidates; the first one is 0")
    return int(value)


def listed(row: Mapping[str, Any], path: str) -> list[Any]:
    """Returns the list at a path. Raises ValueError if there is none."""
    value = needed(row, path)
    if not isinstance(value, list | tuple):
        raise ValueError(f"{path} is not a list")  # noqa: TRY004 - a fault of the file, as all others
    return list(value)


def parsed(value: Any) -> Any:
    """Returns the list or object in a text that is its JSON, as a field of a CSV file is; any other value unchanged."""
    if isinstance(value, str) and value[:1] in {"[", "{"} and value[-1:] in {"]", "}"}:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value  # a text that begins with a bracket
    return value


def one_vote(chosen: int | None, options: int) -> tuple[float, ...]:
    """Returns one person's vote: 1 for the chosen candidate, or equal parts if `chosen` is None (a tie)."""
    return tuple(1 / options if chosen is None else float(place == chosen) for place in range(options))


def top_of(places: Sequence[float]) -> tuple[float, ...]:
    """Returns one vote for the candidate with the smallest place; candidates that share this place share the vote."""
    first = [place == min(places) for place in places]
    return tuple(one / sum(first) for one in first)
