"""Reads rows whose columns the partner has named: `--map prompt=COLUMN,chosen=COLUMN,rejected=COLUMN`."""

from collections.abc import Mapping
from typing import Any

from pluralllm.client.data.preferences.ballots import at, text_of
from pluralllm.common.errors.tree import InvalidArgument

FIELDS = (
    "prompt",
    "chosen",
    "rejected",
    "candidates",
    "votes",
    "counts",
    "shares",
    "scores",
    "weight",
    "winner",
    "group",
)


def columns_of(text: str) -> dict[str, str]:
    """Returns the column of each field in a text such as "prompt=ask,chosen=good,rejected=bad".

    Several columns of candidates are joined by +: "candidates=answer_a+answer_b". Raises InvalidArgument if it
    cannot be read.
    """
    columns: dict[str, str] = {}
    for assignment in text.split(","):
        name, equals, column = (piece.strip() for piece in assignment.partition("="))
        if not equals or not column or name not in FIELDS or name in columns:
            problem = f"{assignment.strip()!r}: give FIELD=COLUMN, each field once; fields: {', '.join(FIELDS)}"
            raise InvalidArgument(field="--map", problem=problem)
        columns[name] = column
    if "prompt" not in columns or not ({"chosen", "rejected"} <= columns.keys() or "candidates" in columns):
        raise InvalidArgument(field="--map", problem="name prompt, and either chosen and rejected or candidates")
    if "winner" in columns and "+" not in columns.get("candidates", ""):
        raise InvalidArgument(
            field="--map", problem="winner needs candidates=COLUMN+COLUMN; it names one of them, or tie"
        )
    return columns


def mapped_row(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Returns a row of our own layout with the values of the named columns. Raises ValueError if the winner is unknown."""
    own = {name: at(row, column) for name, column in columns.items() if name not in {"candidates", "winner"}}
    names = columns.get("candidates", "").split("+")
    if len(names) > 1:
        own["candidates"] = [at(row, name.strip()) for name in names]
    elif names[0]:
        own["candidates"] = at(row, names[0])
    if "winner" in columns:
        own["votes"] = _votes_for(text_of(at(row, columns["winner"])), [name.strip() for name in names])
    return own


def _votes_for(winner: str, names: list[str]) -> list[float]:
    """Returns one vote for the candidate that `winner` names; a tie is an equal part for each."""
    if winner.lower().startswith("tie"):
        return [1 / len(names)] * len(names)
    if winner not in names:
        raise ValueError(f"winner {winner!r}; expected {', '.join(names)} or tie")
    return [float(name == winner) for name in names]
