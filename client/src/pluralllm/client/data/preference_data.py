"""Preferences between candidates (pairwise, best of n) in and out: the layouts that data sets on the Hub have.

A prompt and its candidates are a question and its options; votes are counts. So the private file, training, evaluation and
scoring are those of surveys. Which candidate was chosen must not show in the order: options stand by their hash.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluralllm.client.data.importers import table_rows
from pluralllm.common.errors.tree import InvalidData
from pluralllm.common.words.questions import Question

PROMPTS = ("prompt", "question", "instruction", "input")
CANDIDATES = ("options", "candidates", "completions", "responses", "summaries")
VOTES = ("votes", "counts", "shares", "scores")
MAX_PROBLEMS_TOLD = 20


def candidates_of(row: Mapping[str, Any], group: str | None = None) -> tuple[Question, bool]:
    """A row's prompt and candidates, in the row's order, and whether it tells how they were preferred (else shares are equal).

    Layouts: question or prompt with options (candidates, completions, responses, summaries), and votes, counts or shares; or
    prompt, chosen and rejected, where votes may be two numbers. Votes by group: {"group": [..]}. Conversations: the last
    message is the candidate, what is before it the prompt. Raises ValueError: what is wrong and what is wanted.
    """
    if "chosen" in row and "rejected" in row:
        options = [_last_text(row["chosen"]), _last_text(row["rejected"])]
        prompt = _prompt(row) or _before_last(row["chosen"])
        votes = _votes(row, group)
        votes = [float(row.get("weight") or 1.0), 0.0] if votes is None else votes
    else:
        name = next((name for name in CANDIDATES if isinstance(row.get(name), list | tuple)), None)
        if name is None:
            raise ValueError(f"no candidates: give one of {', '.join(CANDIDATES)}, or chosen and rejected")
        options, prompt, votes = [_last_text(each) for each in row[name]], _prompt(row), _votes(row, group)
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


def import_preferences(path: Path, group: str | None) -> tuple[Question, ...]:
    """One group's preferences from JSONL, Parquet or CSV rows; the same candidates in several rows are counted together.

    group: only rows with this value in a `group` column, or its part of votes by group. Raises InvalidData.
    """
    counts: dict[tuple[str, tuple[str, ...]], dict[str, float]] = {}
    groups: set[str] = set()
    problems: list[str] = []
    for line, row in table_rows(path):
        groups |= _groups_of(row)
        if group is not None and group not in _groups_of(row):
            continue
        try:
            question, has_votes = candidates_of(row, group)
        except ValueError as error:
            problems.append(f"  line {line}: {error}")
            continue
        if not has_votes:
            problems.append(f"  line {line}: no votes; give one of {', '.join(VOTES)}, or chosen and rejected")
            continue
        options = tuple(sorted(question.options, key=lambda text: hashlib.sha256(text.encode()).digest()))
        votes = counts.setdefault((question.text, options), dict.fromkeys(options, 0.0))
        total = _total(row, group)
        for option, share in zip(question.options, question.shares, strict=True):
            votes[option] += share * total
    if problems:
        more = [f"  and {len(problems) - MAX_PROBLEMS_TOLD} more"] if len(problems) > MAX_PROBLEMS_TOLD else []
        raise InvalidData(file=str(path), problems="\n".join([*problems[:MAX_PROBLEMS_TOLD], *more]))
    if group is not None and group not in groups:
        raise InvalidData(file=str(path), problems=f"  no group {group!r}; there is: {', '.join(sorted(groups)[:8])}")
    return tuple(
        Question(text, options, tuple(votes[option] / math.fsum(votes.values()) for option in options))
        for (text, options), votes in counts.items()
    )


def ranked_pairs(
    question: Question, shares: Sequence[float] | NDArray[np.floating], margin: float, *, every: bool
) -> Iterator[dict[str, Any]]:
    """Rows as DPO takes them: the better candidate of each pair, best against worst first.

    Pairs that are nearer than `margin`, or alike, are left out.
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
    for name in PROMPTS:
        if row.get(name):
            return _last_text(row[name])
    return ""


def _last_text(given: Any) -> str:
    """A text, a conversation's last message, or an object with a text (or content)."""
    if isinstance(given, list | tuple):
        return _last_text(given[-1]) if given else ""
    if isinstance(given, Mapping):
        return _last_text(given.get("content", given.get("text", "")))
    return "" if given is None else str(given).strip()


def _before_last(given: Any) -> str:
    """What a conversation says before its last message, for data sets whose prompt is part of both candidates."""
    return "\n".join(_last_text(each) for each in given[:-1]) if isinstance(given, list | tuple) else ""


def _raw_votes(row: Mapping[str, Any], group: str | None) -> Any:
    given = next((row[name] for name in VOTES if row.get(name) not in (None, "")), None)
    if isinstance(given, str):  # of a CSV file
        try:
            given = json.loads(given)
        except ValueError:
            raise ValueError(f"votes {given!r} are no list of numbers") from None
    if isinstance(given, Mapping):
        if group is None:
            raise ValueError("votes are by group; say whose are meant")
        return given.get(group)
    return given


def _votes(row: Mapping[str, Any], group: str | None) -> list[float] | None:
    given = _raw_votes(row, group)
    if given is None:
        return None
    if not isinstance(given, Sequence) or not all(isinstance(vote, int | float) for vote in given):
        raise ValueError(f"votes {given!r} are no list of numbers")
    return [float(vote) for vote in given]


def _total(row: Mapping[str, Any], group: str | None) -> float:
    """How many votes a row is worth: of shares and scores, one."""
    votes = _votes(row, group)
    counted = row.get("votes") is not None or row.get("counts") is not None
    return math.fsum(votes) if votes is not None and counted else float(row.get("weight") or 1.0)


def _groups_of(row: Mapping[str, Any]) -> set[str]:
    votes = row.get("votes")
    named = {str(row["group"])} if row.get("group") else set()
    return named | ({str(name) for name in votes} if isinstance(votes, Mapping) else set())


def _scale(row: Mapping[str, Any], options: int) -> tuple[float | None, ...] | None:
    scale = row.get("scale")
    return tuple(scale) if isinstance(scale, list | tuple) and len(scale) == options else None
