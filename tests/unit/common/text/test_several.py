"""A reader sees the first ones of many names, and how many the others are."""

import pytest

from pluralllm.common.text.several import shown


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, ""), (1, "a"), (8, "a, b, c, d, e, f, g, h"), (9, "a, b, c, d, e, f, g, h and 1 more")],
)
def test_eight_names_are_shown_where_no_other_number_is_asked_for(number: int, text: str) -> None:
    assert shown("abcdefghi"[:number]) == text


def test_names_beyond_those_that_fit_are_counted() -> None:
    assert shown(["ann", "ben", "cat"], 2) == "ann, ben and 1 more"
    assert shown(["ann", "ben"], 2) == "ann, ben"
