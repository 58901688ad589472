"""Decodes text files of other programs, whose encoding is stated or found."""

import codecs
from pathlib import Path

from pluralllm.common.text.reading import OTHER_MARKS, Unreadable

CODECS = {"UTF-16": "utf-16", "UTF-32": "utf-32"}  # they read the mark themselves
SAMPLE_BYTES = 4096
USUAL = "cp1252"  # what Windows programs write in Western Europe and America


def decoded(path: Path, content: bytes, encoding: str | None = None) -> tuple[str, tuple[str, ...]]:
    """Returns the text of a file, without a byte order mark, and notes on what was guessed.

    encoding: a name such as cp1252; None: it is found. Raises Unreadable if the encoding is unknown, or is not that of the file.
    """
    chosen = encoding
    notes: tuple[str, ...] = ()
    if chosen is None:
        chosen = _marked(content)
    if chosen is None:
        try:
            return content.decode("utf-8-sig"), ()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            chosen = USUAL
            note = (
                f"line {line} is no UTF-8, so the file is read as {USUAL} (Windows); save it as UTF-8 if that is wrong"
            )
            notes = (note,)
    try:
        text = content.decode(codecs.lookup(chosen).name)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = f"line {line} has the byte 0x{content[error.start]:02x}, which is no {chosen}"
        raise Unreadable(path, f"{problem}; save the file as UTF-8, or state its encoding (--encoding)") from error
    except (LookupError, UnicodeError, ValueError, TypeError) as error:
        raise Unreadable(path, f"it cannot be read as {chosen!r}; give an encoding such as utf-8 or cp1252") from error
    return text.removeprefix("\ufeff"), notes


def _marked(content: bytes) -> str | None:
    """Returns the encoding that a byte order mark or the zeros of ASCII texts in UTF-16 say; None for neither."""
    for mark, name in OTHER_MARKS:
        if content.startswith(mark):
            return CODECS[name]
    even, odd = content[:SAMPLE_BYTES:2], content[1:SAMPLE_BYTES:2]
    if odd.count(0) > len(odd) / 2 and not even.count(0):
        return "utf-16-le"
    if even.count(0) > len(even) / 2 and not odd.count(0):
        return "utf-16-be"
    return None
