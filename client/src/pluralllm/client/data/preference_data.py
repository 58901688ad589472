"""Imports preferences between candidate answers from the layouts of data sets on the Hugging Face Hub, and exports pairs.

A prompt becomes a question, its candidates become the options, and votes become counts. The private file, training, evaluation
and scoring are therefore the same as for surveys. The order of the options must not reveal which candidate was chosen, so an
import sorts the options by their hash.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluralllm.client.data.counted_question import CountedQuestion, shares_of
from pluralllm.client.data.tables import table_rows
from pluralllm.common.errors.tree import InvalidData
from pluralllm.common.words.questions import Question

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROMPTS = ("prompt", "question", "instruction", "input")
CANDIDATES = ("options", "candidates", "completions", "responses", "summaries")
VOTES = ("votes", "counts", "shares", "scores")
MAX_PROBLEMS_SHOWN = 20


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
        options = [_last_text(row["chosen"]), _last_text(row["rejected"])]
        prompt = _prompt(row) or _before_last(row["chosen"])
        votes = _votes(row, group)
        votes = [float(row.get("weight") or 1.0), 0.0] if votes is None else votes
    else:
        name = next((name for name in CANDIDATES if isinstance(row.get(name), list | tuple)), None)
        if name is None:
            raise ValueError(f"no candidates: give one of {', '.join(CANDIDATES)}, or chosen and rejected")
        options, prompt, votes = [_last_text(candidate) for candidate in row[name]], _prompt(row), _votes(row, group)
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


def import_preferences(path: Path, group: str | None) -> tuple[CountedQuestion, ...]:
    """Imports the preferences of one group from JSONL, Parquet or CSV; adds up the votes of rows with equal candidates.

    group: only rows with this value in the column `group` count. If votes are listed by group, only this group's votes count.
    None means that all rows count. The result has counts where every vote is the vote of one person: rows with weights, shares or
    scores give shares only. Raises InvalidData if the file cannot be read, a row is faulty, or no row belongs to the
    group.
    """
    counts: dict[tuple[str, tuple[str, ...]], dict[str, float]] = {}
    uncounted: set[tuple[str, tuple[str, ...]]] = set()  # questions with a row that is not a number of votes
    groups: set[str] = set()
    problems: list[str] = []
    for line, row in table_rows(path):
        groups |= _groups_of(row)
        if group is not None and group not in _groups_of(row):
            continue
        try:
            question, has_votes = candidates_of(row, group)
        except (ValueError, TypeError, RecursionError) as error:
            problems.append(f"  line {line}: {error}")
            continue
        if not has_votes:
            problems.append(f"  line {line}: no votes; give one of {', '.join(VOTES)}, or chosen and rejected")
            continue
        options = tuple(sorted(question.options, key=lambda text: hashlib.sha256(text.encode()).digest()))
        votes = counts.setdefault((question.text, options), dict.fromkeys(options, 0.0))
        uncounted |= set() if _has_whole_votes(row, group) else {(question.text, options)}
        total = _total(row, group)
        for option, share in zip(question.options, question.shares, strict=True):
            votes[option] += share * total
    if problems:
        more = [f"  and {len(problems) - MAX_PROBLEMS_SHOWN} more"] if len(problems) > MAX_PROBLEMS_SHOWN else []
        raise InvalidData(file=str(path), problems="\n".join([*problems[:MAX_PROBLEMS_SHOWN], *more]))
    if group is not None and group not in groups:
        raise InvalidData(file=str(path), problems=f"  no group {group!r}; there is: {', '.join(sorted(groups)[:8])}")
    return tuple(_counted(*key, votes, is_counted=key not in uncounted) for key, votes in counts.items())


def _counted(text: str, options: tuple[str, ...], votes: Mapping[str, float], *, is_counted: bool) -> CountedQuestion:
    """Returns a question from the votes for each option. Votes are counts if each is the vote of one person."""
    numbers = tuple(votes[option] for option in options)
    total = math.fsum(numbers)
    if not is_counted:
        return CountedQuestion(text, options, shares_of(numbers, total))
    whole = tuple(float(round(number)) for number in numbers)  # a share times a total may differ in the last digit
    return CountedQuestion(text, options, shares_of(whole, sum(whole)), counts=whole, respondents=round(sum(whole)))


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
            return _last_text(row[name])
    return ""


def _last_text(value: Any) -> str:
    """Returns the text in a value: the text itself, a conversation's last message, or the field content or text of an object."""
    if isinstance(value, list | tuple):
        return _last_text(value[-1]) if value else ""
    if isinstance(value, Mapping):
        return _last_text(value.get("content", value.get("text", "")))
    return "" if value is None else str(value).strip()


def _before_last(conversation: Any) -> str:
    """Returns the messages of a conversation before its last message, as one text.

    These messages serve as the prompt, because some data sets have no column for the prompt. Such data sets repeat the prompt
    in the chosen and in the rejected conversation.
    """
    return (
        "\n".join(_last_text(message) for message in conversation[:-1])
        if isinstance(conversation, list | tuple)
        else ""
    )


def _raw_votes(row: Mapping[str, Any], group: str | None) -> Any:
    """Returns the votes of a row unchanged and unchecked, or None if the row has no votes.

    If votes are listed by group, returns the votes of `group`. Raises ValueError if votes are listed by group and `group` is
    None, or if the text of a CSV field is not JSON.
    """
    votes = next((row[name] for name in VOTES if row.get(name) not in (None, "")), None)
    if isinstance(votes, str):  # a field of a CSV file
        try:
            votes = json.loads(votes)
        except ValueError:
            raise ValueError(f"votes {votes!r} are no list of numbers") from None
    if isinstance(votes, Mapping):
        if group is None:
            raise ValueError("votes are by group; say whose are meant")
        return votes.get(group)
    return votes


def _votes(row: Mapping[str, Any], group: str | None) -> list[float] | None:
    """Returns the votes of a row as numbers, or None if the row has no votes.

    Raises ValueError if the votes are no list of numbers.
    """
    votes = _raw_votes(row, group)
    if votes is None:
        return None
    if not isinstance(votes, Sequence) or not all(isinstance(vote, int | float) for vote in votes):
        raise ValueError(f"votes {votes!r} are no list of numbers")
    return [float(vote) for vote in votes]


def _total(row: Mapping[str, Any], group: str | None) -> float:
    """Returns the number of votes in a row. A row with shares or scores counts as one vote, or as many as its weight."""
    votes = _votes(row, group)
    counted = row.get("votes") is not None or row.get("counts") is not None
    return math.fsum(votes) if votes is not None and counted else float(row.get("weight") or 1.0)


def _has_whole_votes(row: Mapping[str, Any], group: str | None) -> bool:
    """Returns whether a row is one choice without a weight, or has a whole number of votes for each candidate."""
    if row.get("weight") not in (None, "", 1, 1.0, "1"):
        return False
    votes = _votes(row, group)
    if votes is None:
        return True
    counted = row.get("votes") is not None or row.get("counts") is not None
    return counted and all(vote == int(vote) for vote in votes)


def _groups_of(row: Mapping[str, Any]) -> set[str]:
    """Returns the groups that a row names, in its column `group` or in its votes."""
    votes = row.get("votes")
    named = {str(row["group"])} if row.get("group") else set()
    return named | ({str(name) for name in votes} if isinstance(votes, Mapping) else set())


def _scale(row: Mapping[str, Any], options: int) -> tuple[float | None, ...] | None:
    """Returns the position of each option on the row's scale, or None if the scale has not one position for each option.

    options: number of options.
    """
    scale = row.get("scale")
    return tuple(scale) if isinstance(scale, list | tuple) and len(scale) == options else None
