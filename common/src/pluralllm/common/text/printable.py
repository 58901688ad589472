"""Texts of another party, made safe to show on a terminal, in a log or in a page.

A text that another party chose can hold escape sequences that rewrite what a person sees on the terminal. It can also hold
characters that turn the direction of writing round, or that nobody sees (Unicode Technical Report 36, section 2). Every text of
another party that reaches a terminal passes through the function `printable`.
"""

from typing import Any

MAX_GROUP_CHARACTERS = 200
GROUP_HELP = f"one line of 1 to {MAX_GROUP_CHARACTERS} printable characters, without a space at either end"


def printable(text: str, *, lines: bool = False) -> str:
    r"""Returns a text in which each character that nobody can see is replaced by its escape, for example \x1b or \u202e.

    Such characters are controls, marks of the writing direction, unassigned code points, and all that Unicode does not call
    printable. Spaces of every width stay. lines: keeps line feeds, too, for a text of several lines.
    """
    if text.isprintable():  # nearly every text is; this is thirty times faster
        return text
    return "".join(
        char if char.isprintable() or char == (lines and "\n") or _is_space(char) else _escaped(char) for char in text
    )


def printable_values(value: Any) -> Any:
    """Returns a value as JSON has it, with all texts in it made printable: texts, and texts in lists and in mappings."""
    if isinstance(value, str):
        return printable(value, lines=True)
    if isinstance(value, dict):
        return {printable_values(key): printable_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [printable_values(inner) for inner in value]
    return value


def is_group_name(text: str) -> bool:
    """Returns whether a text may be the name of a group: GROUP_HELP says which texts may."""
    return 0 < len(text) <= MAX_GROUP_CHARACTERS and text == text.strip() == printable(text)


def check_group_name(text: str) -> str:
    """Returns the text. Raises ValueError if it may not be the name of a group."""
    if not is_group_name(text):
        shown = printable(text[: MAX_GROUP_CHARACTERS + 1])
        raise ValueError(f"is '{shown}', must be {GROUP_HELP}")
    return text


def _is_space(char: str) -> bool:
    """Returns whether a character is a space of some width; Python calls only the ASCII space printable."""
    return char.isspace() and char not in "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
