"""Files as editors and spreadsheets write them: each is read, or refused with what it is and how to mend it."""

import codecs
import contextlib
import os
import subprocess
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from pluralllm.common.text.reading import (
    Unreadable,
    byte_lines,
    json_value,
    read_bytes,
    read_json,
    read_lines,
    read_text,
    read_toml,
)

MIB = 1024 * 1024
TEXT = 'name = "Zürich"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.toml"


@pytest.mark.parametrize(
    "content", [TEXT.encode(), codecs.BOM_UTF8 + TEXT.encode(), TEXT.replace("\n", "\r\n").encode()]
)
def test_utf_8_is_read_with_and_without_a_mark_and_with_each_line_end(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert read_toml(path) == {"name": "Zürich"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (TEXT.encode("utf-16"), "it is in UTF-16; save the file as UTF-8"),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "it is in UTF-16; save the file as UTF-8"),
        (TEXT.encode("utf-32"), "it is in UTF-32; save the file as UTF-8"),
        (TEXT.encode("utf-16-le"), "it is in UTF-16, or no text; save the file as UTF-8"),
        (TEXT.encode("utf-16-be"), "it is in UTF-16, or no text; save the file as UTF-8"),
        (b"a = 1\nb = '\xfc'\n", "line 2 has the byte 0xfc, which is no UTF-8; in Latin-1 or Windows-1252 it is 'ü'. "),
        (b"a = 1\nb = 2\nc = \0", "line 3 has a NUL character"),
        (b"a = 1\nb = \n", "not TOML: Invalid value (at line 2, column 5)"),
        (b"a = " + b"[" * 5_000, "not TOML: its tables and lists are nested too deep"),
    ],
)
def test_another_file_is_refused_by_name_and_line(path: Path, content: bytes, problem: str) -> None:
    path.write_bytes(content)
    with pytest.raises(Unreadable) as refused:
        read_toml(path)
    assert refused.value.problem.startswith(problem)
    assert str(refused.value).startswith(f"{path}: ")


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="there is no such file"):
        read_text(tmp_path / "none")
    with pytest.raises(Unreadable, match="it is a folder, not a file"):
        read_text(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(Unreadable, match="it cannot be read: Not a directory"):
        read_text(tmp_path / "file" / "below")


def test_a_file_may_have_the_largest_size_and_not_a_byte_more(path: Path) -> None:
    path.write_text("12345")
    assert read_text(path, 5) == "12345"
    with pytest.raises(Unreadable, match="it is too large: more than 4 bytes"):
        read_text(path, 4)


READERS = (read_text, read_bytes, lambda path: list(byte_lines(path)))


@pytest.mark.parametrize("read", READERS)
def test_a_device_is_refused_because_it_may_have_no_end(read: Callable[[Path], object]) -> None:
    for device in ("/dev/zero", "/dev/urandom"):
        with pytest.raises(Unreadable, match="it is a device, not a file"):
            read(Path(device))
    assert not read(Path("/dev/null"))


@pytest.mark.parametrize("read", [lambda path: read_text(path, 10), lambda path: list(byte_lines(path, 10))])
def test_a_pipe_is_read_up_to_its_limit(read: Callable[[Path], object]) -> None:
    with subprocess.Popen(["head", "-c", "1000", "/dev/zero"], stdout=subprocess.PIPE) as pipe:
        assert pipe.stdout is not None
        with pytest.raises(Unreadable, match="too l"):
            read(Path(f"/dev/fd/{pipe.stdout.fileno()}"))


def test_a_line_may_have_the_largest_length_and_not_a_byte_more(path: Path) -> None:
    path.write_bytes(b"12\n34\n567")
    assert list(byte_lines(path, 3)) == [b"12\n", b"34\n", b"567"]
    path.write_bytes(b"1\n2\n567")
    with pytest.raises(Unreadable, match="line 3 is too long: more than 2 bytes"):
        list(byte_lines(path, 2))


def test_a_file_that_is_too_large_is_refused_before_it_is_read(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # of holes
    with pytest.raises(Unreadable, match="it is too large"):
        read_text(path, 1 << 39)


def test_lines_end_at_line_ends_only(path: Path) -> None:
    path.write_text("a\u0085b\u2028c\nd\r\ne\rf", newline="")
    assert read_lines(path) == ["a\u0085b\u2028c", "d", "e", "f"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"{", "not JSON: Expecting property name"), (b"[" * 100_000, "not JSON: its objects and lists are nested")],
)
def test_what_is_no_json_is_refused(path: Path, content: bytes, problem: str) -> None:
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=problem):
        read_json(path)


def test_json_after_a_mark_is_read(path: Path) -> None:
    path.write_bytes(codecs.BOM_UTF8 + b'{"a": [1]}')
    assert read_json(path) == {"a": [1]}


def test_one_bad_line_of_many_stops_no_other(path: Path) -> None:
    path.write_bytes(codecs.BOM_UTF8 + b"one\n\xff\nthree")
    assert list(byte_lines(path)) == [b"one\n", b"\xff\n", b"three"]
    path.write_bytes(b"")
    assert list(byte_lines(path)) == []


def test_lines_in_another_encoding_are_refused_as_a_whole(path: Path) -> None:
    path.write_bytes("one\ntwo\n".encode("utf-16"))
    with pytest.raises(Unreadable, match="UTF-16"):
        list(byte_lines(path))
    with pytest.raises(Unreadable, match="there is no such file"):
        list(byte_lines(path.with_name("none")))


def test_a_pipe_of_a_shell_is_read_and_one_with_a_name_is_refused(tmp_path: Path) -> None:
    reading_end, writing_end = os.pipe()  # as `<(command)` of a shell
    os.write(writing_end, TEXT.encode())
    os.close(writing_end)
    assert read_text(Path(f"/dev/fd/{reading_end}")) == TEXT
    os.close(reading_end)
    os.mkfifo(tmp_path / "pipe")
    for read in (read_text, lambda path: list(byte_lines(path))):
        with pytest.raises(Unreadable, match="it is a pipe, not a file"):
            read(tmp_path / "pipe")


def test_half_a_character_in_json_is_refused_and_an_escaped_pair_is_read() -> None:
    assert json_value(r'["\ud83d\ude00", "\\ud83d"]') == ["😀", r"\ud83d"]
    for text in (r'["\ud83d"]', rb'{"\uDE00": 1}'):
        with pytest.raises(ValueError, match="half a character"):
            json_value(text)
    with pytest.raises(ValueError, match="nested too deep"):
        json_value("[" * 100_000)


def test_a_small_file_takes_little_memory_whatever_the_limit(path: Path) -> None:
    path.write_bytes(b"x")
    tracemalloc.start()
    try:
        assert read_bytes(path, 512 * MIB) == b"x"
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("limit_bytes", [3 * MIB, 3 * MIB - 1])
def test_a_pipe_is_read_to_its_end_or_to_the_limit(limit_bytes: int) -> None:
    reading, writing = os.pipe()
    content = os.urandom(3 * MIB)

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb") as file:
            file.write(content)

    thread = threading.Thread(target=write)
    thread.start()
    source = Path(f"/dev/fd/{reading}")
    if limit_bytes == len(content):
        assert read_bytes(source, limit_bytes) == content
    else:
        with pytest.raises(Unreadable, match="too large"):
            read_bytes(source, limit_bytes)
    os.close(reading)
    thread.join(5)
