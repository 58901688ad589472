"""The templates of the texts that are embedded: which fields a template may have, and how the fields are filled in.

Templates come from other machines, as parts of run specs. Therefore they are not filled in by `str.format`, which obeys widths,
conversions and attributes: 20 characters can ask it for gigabytes.
"""

from collections.abc import Iterator, Mapping
from string import Formatter

FIELDS = ("question", "options", "letter", "option")
MAX_USES = 2  # of one field in one template; each use of {options} repeats all options of a question
_FORM = "may use {question}, {options}, {letter}, {option} only, by their plain names"


def check_template(template: str) -> None:
    """Checks that the fields of a template are plain names.

    Raises ValueError if a field is unknown or used more than MAX_USES times, if a field has an index, an attribute, a
    conversion or a width, or if the braces do not match.
    """
    uses = dict.fromkeys(FIELDS, 0)
    for _, field in _pieces(template):
        if field is not None:
            uses[field] += 1
    for field, times in uses.items():
        if times > MAX_USES:
            raise ValueError(f"template {template!r} uses {{{field}}} {times} times, at most {MAX_USES} are allowed")


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Returns the text of a template after its fields are filled in. values: the text of each field in FIELDS.

    Raises ValueError if a field is not a plain name in FIELDS.
    """
    return "".join(literal if field is None else literal + values[field] for literal, field in _pieces(template))


def _pieces(template: str) -> Iterator[tuple[str, str | None]]:
    """Yields the parts of a template: a literal text, and the name of the field after the text (None after the last text)."""
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template {template!r} {_FORM}: {error}") from error
    for literal, field, form, conversion in pieces:
        if field is not None and (field not in FIELDS or form or conversion is not None):
            raise ValueError(f"template {template!r} {_FORM}")
        yield literal, field
