"""What a completion says about the candidates: one of them, a ranking, or shares. Pure text."""

import json
import re
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Messages = Sequence[dict[str, Any]]
_LETTER = re.compile(r"^\(?([A-Za-z])\)?(?:[.:)\s]|$)")
_SHARE = re.compile(r"^(.+?)\s*[:=]\s*([0-9]*\.?[0-9]+)\s*(%?)$")


def text_of(message: str | Messages) -> str:
    """A plain text, or the last message of a conversation. Content in parts: the text parts."""
    if isinstance(message, str):
        return message
    content = message[-1].get("content", "") if message else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or () if isinstance(part, dict))


def read_answer(completion: str, options: Sequence[str]) -> NDArray[np.float64] | None:
    """Shares of the options, (options,), sum 1; None if it says nothing about them.

    "B", "B. Agree", "Agree because ..." is one option; "B > A > C" a ranking, as Borda points; "A: 0.7, B: 0.3" or a JSON
    object shares. Letters and options may be in any case.
    """
    text = completion.strip()
    if text.startswith("{"):
        return _from_json(text, options)
    lines = text.splitlines()
    if not lines:
        return None
    if ">" in lines[0] and (ranking := _ranking(lines[0], options)) is not None:
        return ranking
    if (shares := _listed_shares(text, options)) is not None:
        return shares
    chosen = _option(lines[0], options)
    return None if chosen is None else np.eye(len(options))[chosen]


def _option(text: str, options: Sequence[str]) -> int | None:
    """The option that a text begins with: as written in full (the longest), else its letter."""
    folded = text.strip().casefold()
    fits = [
        number
        for number, option in enumerate(options)
        if folded.startswith(begin := option.strip().casefold()) and not folded[len(begin) : len(begin) + 1].isalnum()
    ]
    if fits:
        return max(fits, key=lambda number: len(options[number].strip()))
    found = _LETTER.match(text.strip())
    if found is None:
        return None
    number = string.ascii_uppercase.index(found[1].upper())
    rest = text.strip()[found.end() :].strip().casefold()
    named = number < len(options) and (not rest or rest.startswith(options[number].strip().casefold()))
    return number if named else None


def _ranking(line: str, options: Sequence[str]) -> NDArray[np.float64] | None:
    ranked = [_option(part, options) for part in line.split(">")]
    if None in ranked or len(set(ranked)) < len(ranked):
        return None
    points = np.zeros(len(options))
    for place, number in enumerate(ranked):
        points[number] = len(options) - 1 - place  # who is not named shares the last places: no points
    return points / points.sum() if points.sum() > 0 else None


def _from_json(text: str, options: Sequence[str]) -> NDArray[np.float64] | None:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, dict) or not all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in given.values()
    ):
        return None
    return _shares([(str(name), float(value)) for name, value in given.items()], options)


def _listed_shares(text: str, options: Sequence[str]) -> NDArray[np.float64] | None:
    found = [_SHARE.match(part.strip()) for part in re.split(r"[,;\n]", text) if part.strip()]
    if not found or not all(found):
        return None
    return _shares([(each[1], float(each[2])) for each in found if each is not None], options)


def _shares(pairs: Sequence[tuple[str, float]], options: Sequence[str]) -> NDArray[np.float64] | None:
    shares = np.zeros(len(options))
    for name, value in pairs:
        number = _option(name, options)
        if number is None or not np.isfinite(value) or value < 0:
            return None
        shares[number] += value
    return shares / shares.sum() if shares.sum() > 0 else None
