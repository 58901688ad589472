"""Reads a completion as an answer: one of the options, a ranking of the options, or a share for each option.

The module parses text only; it uses no model.
"""

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
    """Returns the text of a message; for a conversation, the text of its last message.

    If the content of the last message is a list of parts, the texts of the parts are joined.
    """
    if isinstance(message, str):
        return message
    content = message[-1].get("content", "") if message else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or () if isinstance(part, dict))


def read_answer(completion: str, options: Sequence[str]) -> NDArray[np.float64] | None:
    """Returns the share that a completion gives to each option, or None if the completion names no option.

    "B", "B. Agree" and "Agree because ..." choose one option. "B > A > C" is a ranking; its shares are proportional to Borda
    points (one point for each option that is ranked lower).
    "A: 0.7, B: 0.3" or a JSON object gives shares. Letters and options may be in upper or lower case.
    Shape: (options,); the shares sum to 1.
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
    """Returns the number of the option that a text begins with, or None if the text begins with no option.

    An option that is written in full has priority over a letter. If several options match in full, the longest one counts.
    """
    folded = text.strip().casefold()
    matching_options = [
        number
        for number, option in enumerate(options)
        if folded.startswith(option_text := option.strip().casefold())
        and not folded[len(option_text) : len(option_text) + 1].isalnum()
    ]
    if matching_options:
        return max(matching_options, key=lambda number: len(options[number].strip()))
    letter = _LETTER.match(text.strip())
    if letter is None:
        return None
    number = string.ascii_uppercase.index(letter[1].upper())
    rest = text.strip()[letter.end() :].strip().casefold()
    named = number < len(options) and (not rest or rest.startswith(options[number].strip().casefold()))
    return number if named else None


def _ranking(line: str, options: Sequence[str]) -> NDArray[np.float64] | None:
    ranked = [_option(part, options) for part in line.split(">")]
    if None in ranked or len(set(ranked)) < len(ranked):
        return None
    points = np.zeros(len(options))
    for position, number in enumerate(ranked):
        points[number] = len(options) - 1 - position  # options that the ranking leaves out get no points
    return points / points.sum() if points.sum() > 0 else None


def _from_json(text: str, options: Sequence[str]) -> NDArray[np.float64] | None:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not all(
        isinstance(share, int | float) and not isinstance(share, bool) for share in values.values()
    ):
        return None
    return _shares([(str(name), float(share)) for name, share in values.items()], options)


def _listed_shares(text: str, options: Sequence[str]) -> NDArray[np.float64] | None:
    matches = [_SHARE.match(entry.strip()) for entry in re.split(r"[,;\n]", text) if entry.strip()]
    if not matches or not all(matches):
        return None
    return _shares([(match[1], float(match[2])) for match in matches if match is not None], options)


def _shares(pairs: Sequence[tuple[str, float]], options: Sequence[str]) -> NDArray[np.float64] | None:
    shares = np.zeros(len(options))
    for name, value in pairs:
        number = _option(name, options)
        if number is None or not np.isfinite(value) or value < 0:
            return None
        shares[number] += value
    return shares / shares.sum() if shares.sum() > 0 else None
