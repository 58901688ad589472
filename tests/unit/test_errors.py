"""The error tree, its drawing and its table."""

import dataclasses
import re
from typing import Any

import pytest

from pluralllm.common import errors, status
from pluralllm.common.errors import PluralError, fields_of, leaves, reason_of

EXAMPLES: dict[type, Any] = {str: "text", int: 7, float: 0.5}


def example(leaf: type[PluralError]) -> PluralError:
    return leaf(**{name: EXAMPLES[kind] for name, kind in fields_of(leaf).items()})


def test_the_table_covers_every_leaf_and_nothing_else() -> None:
    assert set(status.CODES) == set(leaves().values())


@pytest.mark.parametrize("leaf", leaves().values(), ids=leaves())
def test_a_leaf_says_what_is_wrong_in_words_and_survives_the_wire(leaf: type[PluralError]) -> None:
    error = example(leaf)
    assert "{" not in str(error)
    sent = status.to_status(error)
    assert sent.code is status.CODES[leaf]

    class Failed(Exception):
        code = staticmethod(lambda: sent.code)
        details = staticmethod(lambda: sent.details)
        trailing_metadata = staticmethod(lambda: sent.trailing_metadata)

    received = status.from_rpc_error(Failed(), "somewhere")  # type: ignore[arg-type]
    assert type(received) is leaf
    assert received.facts == error.facts


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = set(re.findall(r"[|`]- (\w+)", errors.__doc__ or ""))
    assert drawn == {leaf.__name__ for leaf in leaves().values()} | {"Refused", "Broken"}


def test_reasons_are_upper_snake() -> None:
    assert reason_of(errors.WrongBase) == "WRONG_BASE"
    assert all(dataclasses.is_dataclass(leaf) for leaf in leaves().values())
