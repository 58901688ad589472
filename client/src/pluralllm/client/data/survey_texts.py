"""Reads the meaning of single fields of a survey: texts, codes for missing answers, weights and the names of weight columns."""

import math
import re
from collections.abc import Collection, Iterable
from typing import Any

from pluralllm.client.data.table import plain_text
from pluralllm.common.words.questions import folded

WHOLE = re.compile(r"([+-]?\d+)\.0+")
# "Wt" alone is a syllable of many words, so it must begin or end a part of the name, as in WTSSALL, hh_wt and perwt.
WEIGHT_NAME = re.compile(r"weight|wgh?t|gewicht|(^|[\W_\d])wt|[a-z]wt\d*$|^wt", re.IGNORECASE)
MISSING_TEXTS = frozenset(
    {
        *("na", "n/a", "n.a.", "#n/a", ".", "..", "nan", "null", "missing", "system missing", "refused", "refusal"),
        *("prefer not to say", "prefer not to answer", "no answer", "not asked", "not applicable", "inapplicable"),
        *("not available", "skipped", "(refused)", "dk/ref", "dk/refused"),
    }
)
# Codes that surveys use for missing answers, each beside a scale that ends well below it.
HIGH_CODES = frozenset(
    {*range(77, 80), 88, 89, *range(95, 100), 777, 888, *range(995, 1000), 7777, 8888, *range(9995, 10_000)}
)
LOW_CODES = frozenset({7, 8, 9})


def text_of(value: Any) -> str:
    """Returns the text of a field; empty for an empty field. A number, also 0, is a text of its own.

    Unicode's composed form (NFC) is used, each run of spaces becomes one, and a whole number has no decimals (5.0 is "5").
    """
    if isinstance(value, float) and math.isnan(value):
        return ""
    text = folded(plain_text(value))
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


def weight_of(value: Any) -> float | None:
    """Returns the weight in a row's field: 1 for an empty field, and None for a value that is negative or not a number."""
    if isinstance(value, bool):
        return None
    if value is None or (isinstance(value, str) and not value.strip()):
        return 1.0
    try:
        weight = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return weight if math.isfinite(weight) and weight >= 0 else None


def weight_names(columns: Iterable[str]) -> list[str]:
    """Returns the names of columns that look like weights of respondents, such as WEIGHT_W26, anweight and wtssall."""
    return [name for name in columns if WEIGHT_NAME.search(name)]


def missing_codes(answers: Collection[str], stated: Collection[str] = ()) -> list[str]:
    """Returns those answers to one question that look like codes for a missing answer.

    answers: the different texts. stated: answers that the partner has named as options or labels; none of them is returned.
    """
    unknown = [answer for answer in answers if answer not in stated]
    numbers = {answer: int(answer) for answer in unknown if re.fullmatch(r"[+-]?\d{1,6}", answer)}
    codes = [answer for answer in unknown if answer.casefold() in MISSING_TEXTS]
    codes += [answer for answer, number in numbers.items() if number < 0]
    for answer, number in numbers.items():
        below = [other for other in numbers.values() if 0 <= other < number and other not in HIGH_CODES]
        if not below:
            continue
        far = number in HIGH_CODES and max(below) <= 0.6 * number
        scale = [other for other in below if other not in LOW_CODES]
        near = number in LOW_CODES and max(numbers.values()) <= 9 and bool(scale) and max(scale) <= number - 2
        if far or (near and 6 not in numbers.values() and max(scale) <= 5):
            codes.append(answer)
    return codes
