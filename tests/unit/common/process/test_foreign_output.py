"""Lines of libraries in the log: each is an event of its own, and none can fill the log or hold the process up."""

import json
import subprocess
import sys

from structlog.testing import capture_logs

from pluralllm.common.process.foreign_output import LINES_AT_ONCE, MAX_KNOWN_LINES, MAX_LINE_BYTES, ForeignLines


def logged(*pieces: bytes) -> list[object]:
    lines = ForeignLines()
    with capture_logs() as events:
        for piece in pieces:
            lines.take(piece, 0.0)
        lines.end(0.0)
    return [event.get("text") or (event["event"], event["lines"]) for event in events]


def test_each_line_is_an_event_however_the_pieces_are_cut() -> None:
    assert logged(b"E0000 one\nt", b"wo\n", b"\n  \n", b"10%\r20%\rthe rest") == [
        "E0000 one",
        "two",
        "10%",
        "20%",
        "the rest",
    ]


def test_what_is_no_text_is_logged_as_escapes() -> None:
    assert logged(b"\xff\x00\n") == ["\\xff\x00"]


def test_a_long_line_is_cut_and_its_end_is_no_line() -> None:
    line = b"x" * MAX_LINE_BYTES
    assert logged(line + b"y" * 10, b"z" * 10 + b"\nnext\n") == [line.decode(), "next"]
    assert logged(line + b"\nnext\n") == [line.decode(), "next"]


def test_a_library_that_repeats_a_line_does_not_fill_the_log() -> None:
    assert logged(b"x\n" * (LINES_AT_ONCE + 5)) == ["x"] * LINES_AT_ONCE + [("process.lines_left_out", 5)]
    lines = ForeignLines()
    with capture_logs() as events:
        lines.take(b"x\n" * (LINES_AT_ONCE + 5), 0.0)
        lines.take(b"later\n", 1.0)
    assert [event.get("lines", event.get("text")) for event in events[-2:]] == [5, "later"]


def grpc_lines(minute: int) -> bytes:
    """The lines that gRPC writes with each connection that a proxy refuses."""
    head = f"E1129 19:{minute:02}:06.099100   {21_000 + minute} http_connect.cc:114] HTTP proxy returned 407\n"
    return f"{head}=== Source Location Trace: ===\nsrc/core/util/status_helper.cc:68\n\n".encode()


def test_what_grpc_repeats_with_each_try_to_connect_is_logged_once_in_ten_minutes() -> None:
    lines = ForeignLines()
    with capture_logs() as events:
        for minute in range(12):
            lines.take(grpc_lines(minute), 60.0 * minute)
        lines.take(b"  File x\n  File x\n", 720.0)
    texts = [event.get("text", event.get("lines")) for event in events]
    assert [str(text)[:12] for text in texts] == [
        *("E1129 19:00:", "=== Source L", "src/core/uti"),
        *("27", "E1129 19:10:", "=== Source L", "src/core/uti"),
        *("3", "File x", "File x"),
    ]


def test_the_known_lines_are_few() -> None:
    lines = ForeignLines()
    with capture_logs() as events:
        for number in range(3 * MAX_KNOWN_LINES):
            lines.take(f"I1129 19:42:06.09   21 a.cc:1] peer {number}\n".encode(), float(number))
            assert len(lines._logged_s) <= MAX_KNOWN_LINES
    assert len(events) == 3 * MAX_KNOWN_LINES


PROCESS = """
import ctypes, logging, os, subprocess, sys, warnings
from pluralllm.common.process.foreign_output import foreign_output_logged
from pluralllm.common.process.logs import configure_logs
import structlog

configure_logs(form="json")
with foreign_output_logged():
    libc = ctypes.CDLL(None)
    libc.dprintf(2, b"E0000 00:00:1 ssl.cc: handshake failed\\n")
    subprocess.run([sys.executable, "-c", "import sys; print('a child', file=sys.stderr)"], check=True)
    warnings.warn("a warning")
    try:
        1 / 0
    except ZeroDivisionError:
        logging.getLogger("asyncio").exception("a record")
    structlog.get_logger().info("our.event")
print("plain", file=sys.stderr)
"""


def test_whatever_is_written_to_standard_error_is_a_line_of_json() -> None:
    done = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stderr.splitlines()
    assert last == "plain"
    events = [json.loads(line) for line in lines]
    texts = [event["text"] for event in events if event["event"] == "process.printed"]
    assert texts[:2] == ["E0000 00:00:1 ssl.cc: handshake failed", "a child"]
    assert any("a warning" in text for text in texts)
    record = next(event for event in events if event["event"] == "library.logged")
    assert (record["library"], record["text"], record["level"]) == ("asyncio", "a record", "error")
    assert record["exception"][0]["exc_type"] == "ZeroDivisionError"
    assert "our.event" in [event["event"] for event in events]


NOBODY_READS = """
import os, threading
from pluralllm.common.process import foreign_output

may_read, read = threading.Event(), foreign_output._read
foreign_output._read = lambda reading: may_read.wait(30) and read(reading)
with foreign_output.foreign_output_logged():
    written = os.write(2, b"x" * 4_000_000)
    may_read.set()
assert 0 < written < 4_000_000
"""


def test_a_library_that_writes_more_than_the_pipe_holds_never_waits_for_the_reader() -> None:
    done = subprocess.run([sys.executable, "-c", NOBODY_READS], capture_output=True, timeout=25, check=False)
    assert done.returncode == 0, done.stderr
