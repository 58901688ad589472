"""The one way to read a text file: TOML, JSON, JSON lines, CSV, and texts of one line.

Files come from editors and spreadsheets of every kind. A file with a byte order mark is read; a file that is not UTF-8, that
is no text, or that is too large is refused with a text that says what it is and how to mend it. Every other module reads its
files with the functions here, and a test enforces it.
"""

import codecs
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

PIECE_BYTES = 1024 * 1024
MAX_TEXT_BYTES = 64 * 1024 * 1024
MAX_DATA_BYTES = 4 * 1024 * 1024 * 1024  # of a file with one record in each line
DEVICES = Path("/dev")
EMPTY = Path("/dev/null")
LINE_END = re.compile(r"\r\n|\n|\r")  # not str.splitlines: it cuts at characters that may stand inside a text
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # the escape of half a character
OTHER_MARKS = (  # of UTF-32 first, because the mark of UTF-16 is its beginning
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class Unreadable(ValueError):
    """The error for a file that cannot be read as text. `problem` says why, and how to mend it."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Returns a text file's content, without a byte order mark. Line ends are as in the file.

    Raises Unreadable if the file cannot be opened, is larger than `max_bytes`, or is no text in UTF-8.
    """
    return text_of(read_bytes(path, max_bytes), path, max_bytes)


def read_bytes(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Returns a file's content. Raises Unreadable if the file cannot be opened, or is larger than `max_bytes`."""
    try:
        with opened(path) as file:
            size_bytes = path.stat().st_size  # 0 for a pipe
            content = _read_at_most(file, max_bytes + 1, size_bytes) if size_bytes <= max_bytes else b""
    except OSError as error:
        raise not_opened(path, error) from error
    _check_size(path, max(size_bytes, len(content)), max_bytes)
    return content


def _read_at_most(file: BinaryIO, count: int, size_bytes: int) -> bytes:
    """Reads a file to its end, or `count` bytes of it. size_bytes: the file's probable size.

    A single call for `count` bytes would reserve memory for all of them, for the smallest file, too.
    """
    asked = min(size_bytes + 1, count)
    first, rest = file.read(asked), bytearray()
    if len(first) < asked:
        return first
    while piece := file.read(min(PIECE_BYTES, count - len(first) - len(rest))):
        rest += piece  # of a pipe, or of a file that grows
    return first + rest


def text_of(content: bytes, path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Returns the text that has these bytes, without a byte order mark. path: the name of the source, for the error.

    Raises Unreadable if there are more than `max_bytes`, or if they are no text in UTF-8.
    """
    _check_size(path, len(content), max_bytes)
    _check_start(path, content)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(path, not_utf_8(content, error.start)) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise Unreadable(path, f"line {line} has a NUL character, so it is no text file, or it is damaged")
    return text


def read_lines(path: Path, max_bytes: int = MAX_DATA_BYTES) -> list[str]:
    """Returns the lines of a text file, without their ends. Raises Unreadable as `read_text` does."""
    return LINE_END.split(read_text(path, max_bytes))


def read_toml(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> dict[str, Any]:
    """Returns the table in a TOML file. Raises Unreadable if the file is no text, or no TOML."""
    import tomllib  # noqa: PLC0415 - most commands read no TOML

    text = read_text(path, max_bytes)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Unreadable(path, f"not TOML: {error}") from error
    except RecursionError as error:
        raise Unreadable(path, "not TOML: its tables and lists are nested too deep") from error


def read_json(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """Returns the value in a JSON file. Raises Unreadable if the file is no text, or no JSON."""
    text = read_text(path, max_bytes)
    try:
        return json_value(text)
    except ValueError as error:
        raise Unreadable(path, f"not JSON: {error}") from error


def json_value(text: str | bytes) -> Any:
    """Returns the value of a JSON text, for example of one line of a file. Raises ValueError, which says what is wrong.

    A value with half a character in a text (a lone surrogate, as programs leave it that cut texts) is refused, because it could
    not be written again.
    """
    whole = text if isinstance(text, str) else text.decode("utf-8")
    try:
        value = json.loads(whole)
    except RecursionError as error:
        raise ValueError("its objects and lists are nested too deep") from error
    if SURROGATE.search(whole):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("a text in it ends in half a character (a lone surrogate); mend the text") from error
    return value


def byte_lines(path: Path, max_line_bytes: int = MAX_TEXT_BYTES) -> Iterator[bytes]:
    """Yields the lines of a text file of any length, with their ends and not decoded, so that one bad line stops no other.

    A byte order mark is left out. Raises Unreadable if the file cannot be read, if it is in UTF-16 or UTF-32, or if a line is
    longer than `max_line_bytes`.
    """
    try:
        with opened(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(max_line_bytes + 1), b""), 1):
                if len(line) > max_line_bytes:
                    raise Unreadable(path, f"line {number} is too long: more than {max_line_bytes} bytes")
                if number > 1:
                    yield line
                    continue
                _check_start(path, line)
                yield from filter(None, [line.removeprefix(codecs.BOM_UTF8)])
    except OSError as error:
        raise not_opened(path, error) from error


def not_utf_8(content: bytes, start: int) -> str:
    """Returns the text of the error for bytes that are no UTF-8. start: index of the first byte that does not fit."""
    line = content.count(b"\n", 0, start) + 1
    shown = content[start : start + 1].decode("cp1252", "replace")
    return (
        f"line {line} has the byte 0x{content[start]:02x}, which is no UTF-8; in Latin-1 or Windows-1252 it is '{shown}'."
        " Save the file as UTF-8"
    )


def opened(path: Path) -> BinaryIO:
    """Opens a file for reading. Raises OSError, or Unreadable for what may have no end.

    A reader may wait for ever in a pipe with a name, and a device such as /dev/zero never ends. A pipe that a shell has made is
    read, for example of `<(command)` or of /dev/stdin, and so are a terminal and /dev/null.
    """
    kind = path.stat().st_mode
    if stat.S_ISFIFO(kind) and DEVICES not in path.parents:
        raise Unreadable(path, "it is a pipe, not a file; give a file, or <(command) in a shell")
    file = path.open("rb")
    is_device = stat.S_ISBLK(kind) or (stat.S_ISCHR(kind) and not file.isatty() and not path.samefile(EMPTY))
    if is_device:
        file.close()
        raise Unreadable(path, "it is a device, not a file")
    return file


def _check_size(path: Path, size_bytes: int, max_bytes: int) -> None:
    """Raises Unreadable if a file has more bytes than it may have."""
    if size_bytes > max_bytes:
        raise Unreadable(path, f"it is too large: more than {max_bytes} bytes")


def _check_start(path: Path, content: bytes) -> None:
    """Raises Unreadable if a file's first bytes say that it is in UTF-16 or UTF-32."""
    for mark, name in OTHER_MARKS:
        if content.startswith(mark):
            raise Unreadable(path, f"it is in {name}; save the file as UTF-8")
    if len(content) > 1 and 0 in content[:2] and any(content[:2]):
        raise Unreadable(path, "it is in UTF-16, or no text; save the file as UTF-8")


def not_opened(path: Path, error: OSError) -> Unreadable:
    """Returns the error for a file that the operating system does not open or read."""
    if isinstance(error, FileNotFoundError):
        return Unreadable(path, "there is no such file")
    if isinstance(error, IsADirectoryError):
        return Unreadable(path, "it is a folder, not a file")
    return Unreadable(path, f"it cannot be read: {error.strerror}")
