"""Texts of another party: what a terminal would obey or hide is shown as an escape, and everything else stays as it is."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralllm.common.text.printable import (
    MAX_GROUP_CHARACTERS,
    check_group_name,
    is_group_name,
    printable,
    printable_values,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jall is well", "\\x1b[2Jall is well"),
        ("\x9b31m", "\\x9b31m"),  # the one-character form of the escape sequence
        ("a\rb", "a\\rb"),
        ("a\tb\nc", "a\\tb\\nc"),
        ("gnp.\u202eexe", "gnp.\\u202eexe"),
        ("a\u200bb\u2066", "a\\u200bb\\u2066"),
        ("a\u2028b\x85", "a\\u2028b\\x85"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),  # a tag, which nobody sees
        ("日本 S. Korea\u00a0é 🜁\u3000x", "日本 S. Korea\u00a0é 🜁\u3000x"),
    ],
)
def test_what_nobody_sees_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_line_feeds_stay_in_a_text_of_several_lines_and_nothing_else_does() -> None:
    assert printable("a\nb\r\n\x1b", lines=True) == "a\nb\\r\n\\x1b"


@given(st.text(st.characters()))
def test_a_printable_text_holds_no_control_and_is_left_as_it_is(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert printable(shown) == shown


def test_texts_inside_lists_and_mappings_are_made_printable() -> None:
    assert printable_values({"a\x1b": ["\x07", 1, None, ("\x08",)]}) == {"a\\x1b": ["\\x07", 1, None, ["\\x08"]]}


@pytest.mark.parametrize("name", ["x", "S. Korea", "日本", "Côte d'Ivoire", "x" * MAX_GROUP_CHARACTERS])
def test_a_printable_line_names_a_group(name: str) -> None:
    assert check_group_name(name) == name


@pytest.mark.parametrize("name", ["", " x", "x ", "a\nb", "a\x1b[2J", "a\u202eb", "x" * (MAX_GROUP_CHARACTERS + 1)])
def test_other_texts_name_no_group(name: str) -> None:
    assert not is_group_name(name)
    with pytest.raises(ValueError, match="printable"):
        check_group_name(name)
