"""Reads rows of our own layout of preferences between candidate answers, and exports pairs.

A prompt becomes a question, and its candidates become the options.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from pluralllm.client.data.preferences.ballots import Ballot, before_last, text_of
from pluralllm.client.data.table import plain_text
from pluralllm.common.words.questions import Question

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROMPTS = ("prompt", "question", "instruction", "input")
CANDIDATES = ("options", "candidates", "completions", "responses", "summaries")
VOTES = ("votes", "counts", "shares")  # scores are no votes: scores.py


def candidates_of(row: Mapping[str, Any], group: str | None = None) -> tuple[Question, bool]:
    """Reads the prompt and the candidates of a row. Returns them as a question, and whether the row has votes.

    The candidates keep the row's order. In a row without votes, all shares are equal.
    A row has one of two layouts. In the first, the row has prompt (or question), options (or candidates, completions,
    responses, summaries) and votes (or counts, shares). In the second, the row has prompt, chosen and rejected; votes may then
    be two numbers.
    Votes may be listed by group: {"group": [..]}; `group` then selects a list. A candidate may be a conversation: its last
    message is the candidate, and the messages before it are the prompt.
    Raises ValueError if the row has another layout; the message says what is wrong and what is expected.
    """
    if "chosen" in row and "rejected" in row:
        options = [text_of(row["chosen"]), text_of(row["rejected"])]
        prompt = _prompt(row) or before_last(row["chosen"])
        votes = _votes(row, group)
        votes = [float(row.get("weight") or 1.0), 0.0] if votes is None else votes
    else:
        name = next((name for name in CANDIDATES if isinstance(row.get(name), list | tuple)), None)
        if name is None:
            raise ValueError(f"no candidates: give one of {', '.join(CANDIDATES)}, or chosen and rejected")
        options, prompt, votes = [text_of(candidate) for candidate in row[name]], _prompt(row), _votes(row, group)
    if not prompt:
        raise ValueError(f"no prompt: give one of {', '.join(PROMPTS)}")
    if len(options) < 2 or not all(options) or len(set(options)) < len(options):
        raise ValueError(f"{len(options)} candidates; give at least 2, each with a text of its own")
    if votes is None:
        return Question(
            prompt, tuple(options), tuple(1 / len(options) for _ in options), _scale(row, len(options))
        ), False
    if len(votes) != len(options) or not all(math.isfinite(vote) and vote >= 0 for vote in votes):
        raise ValueError(f"votes {votes} for {len(options)} candidates; give one number of 0 or more for each")
    total = math.fsum(votes)
    if total <= 0:
        raise ValueError("nobody has voted; leave the row out")
    return Question(prompt, tuple(options), tuple(vote / total for vote in votes), _scale(row, len(options))), True


def ranked_pairs(
    question: Question, shares: "Sequence[float] | NDArray[np.floating]", margin: float, *, every: bool
) -> Iterator[dict[str, Any]]:
    """Yields pairs of a question's candidates as rows for DPO (direct preference optimization).

    A row has prompt, chosen, rejected and margin; margin is the difference of the two candidates' shares.
    shares: one share for each candidate. every: whether all pairs of candidates are yielded; if not, only the
    pair of the best and the worst candidate.
    A pair whose shares are equal or differ by less than the parameter `margin` is left out.
    """
    order = sorted(range(len(shares)), key=lambda number: (-float(shares[number]), number))
    chosen = combinations(order, 2) if every else iter([(order[0], order[-1])])
    for better, worse in chosen:
        if (difference := float(shares[better]) - float(shares[worse])) >= margin and difference > 0:
            yield {
                "prompt": question.text,
                "chosen": question.options[better],
                "rejected": question.options[worse],
                "margin": difference,
            }


def _prompt(row: Mapping[str, Any]) -> str:
    """Returns the prompt of a row, or an empty text if the row has no prompt."""
    for name in PROMPTS:
        if row.get(name):
            return text_of(row[name])
    return ""


def _votes(row: Mapping[str, Any], group: str | None) -> list[float] | None:
    """Returns the votes or shares of a row as numbers, or None if the row has none. Raises ValueError as `_numbers` does."""
    return _numbers(next((row[name] for name in VOTES if row.get(name) not in (None, "")), None), group)


def _numbers(value: Any, group: str | None) -> list[float] | None:
    """Returns a row's votes, shares or scores as numbers; None for an empty value.

    If they are listed by group, returns those of `group`. Raises ValueError if `group` is then None, or if they are no list
    of numbers.
    """
    if isinstance(value, str) and value:  # a field of a CSV file
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"votes {value!r} are no list of numbers") from None
    if isinstance(value, Mapping):
        if group is None:
            raise ValueError("votes are by group; say whose are meant")
        value = value.get(group)
    if value is None or value == "":
        return None
    if not isinstance(value, Sequence) or not all(isinstance(vote, int | float) for vote in value):
        raise ValueError(f"votes {value!r} are no list of numbers")
    return [float(vote) for vote in value]


def plain_ballot(row: Mapping[str, Any], group: str | None) -> Ballot:
    """Reads a row of our own layout for an import: votes, shares, scores, or one choice of two.

    Raises ValueError as `candidates_of` does, and if the row says nothing of its candidates.
    """
    question, has_votes = candidates_of(row, group)
    scores = _numbers(row.get("scores"), group)
    if scores is not None and all(row.get(name) in (None, "") for name in VOTES):
        return Ballot(question.text, question.options, tuple(scores), "scores")
    if not has_votes:
        raise ValueError(f"no votes; give one of {', '.join(VOTES)}, or chosen and rejected")
    votes = _votes(row, group)
    is_weighted = row.get("weight") not in (None, "", 1, 1.0, "1")
    weight = float(row["weight"]) if is_weighted else None
    if votes is not None and (row.get("votes") is not None or row.get("counts") is not None):
        return Ballot(question.text, question.options, tuple(votes), "votes", 1.0 if is_weighted else None)
    return Ballot(question.text, question.options, question.shares, "votes" if votes is None else "shares", weight)


def groups_of(row: Mapping[str, Any]) -> set[str]:
    """Returns the groups that a row names, in its column `group` or in its votes."""
    votes = row.get("votes")
    named = {plain_text(row["group"])} if row.get("group") not in (None, "") else set()
    return named | ({str(name) for name in votes} if isinstance(votes, Mapping) else set())


def _scale(row: Mapping[str, Any], options: int) -> tuple[float | None, ...] | None:
    """Returns the position of each option on the row's scale, or None if the scale has not one position for each option.

    options: number of options. Raises ValueError if a position is neither a finite number nor null.
    """
    scale = row.get("scale")
    if not isinstance(scale, list | tuple) or len(scale) != options:
        return None
    if not all(place is None or (isinstance(place, int | float) and math.isfinite(place)) for place in scale):
        raise ValueError(f"scale {scale!r}; give a number or null for each candidate")
    return tuple(scale)
