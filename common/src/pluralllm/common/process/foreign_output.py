"""Output that is not ours, in our log: lines that libraries write to standard error, and records of Python's logging.

gRPC, torch and other libraries in C++ and Rust write lines to file descriptor 2. In a log of JSON lines they would break every
reader. So a long-running process leads the descriptor through a pipe into its own log, one event for each line.
"""

import contextlib
import faulthandler
import fcntl
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator

import structlog

from pluralllm.common.process.token_bucket import TokenBucket

log = structlog.get_logger()

PIPE_BYTES = 1024 * 1024
MAX_LINE_BYTES = 4096  # the rest of a longer line is left out
LINES_AT_ONCE, LINES_PER_S = 100, 10  # a library that repeats a line does not fill the log
# A line of gRPC, without its time and thread. With each try to connect, gRPC writes the same lines again.
GRPC_LINE = re.compile(r"[IWEF]\d{4} [\d:.]+ +\d+ (.*)|(=== Source Location Trace.*|src/core/\S+:\d+)")
REPEATED_AFTER_S, MAX_KNOWN_LINES = 600.0, 100
LAST_LINES_S = 1.0  # time for the last lines when the process ends
# Events whose texts are not ours: they may quote whatever the library was given, for example a private question.
FOREIGN_EVENTS = frozenset({"process.printed", "library.logged"})


class ForeignLines:
    """Cuts output into lines and logs each of them, at a bounded rate. A line of gRPC is logged once in REPEATED_AFTER_S."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_too_long = False
        self._bucket = TokenBucket(LINES_AT_ONCE, 1 / LINES_PER_S)
        self._logged_s: dict[str, float] = {}  # when each line of gRPC was logged
        self._left_out = 0

    def take(self, content: bytes, now_s: float) -> None:
        """Takes the next bytes of the output. A progress bar ends its lines with a carriage return."""
        *lines, self._rest = (self._rest + content).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if not self._is_too_long:
                self._log(line, now_s)
            self._is_too_long = False
        if len(self._rest) > MAX_LINE_BYTES:
            if not self._is_too_long:
                self._log(self._rest, now_s)
            self._rest, self._is_too_long = b"", True

    def end(self, now_s: float) -> None:
        """Logs the rest of the output, which has no line end."""
        self.take(b"\n", now_s)
        self._report_left_out()

    def _log(self, line: bytes, now_s: float) -> None:
        text = line[:MAX_LINE_BYTES].decode("utf-8", "backslashreplace").strip()
        if not text:
            return
        if self._is_known(text, now_s) or self._bucket.wait_s(now_s):
            self._left_out += 1
            return
        self._report_left_out()
        log.warning("process.printed", text=text)

    def _is_known(self, text: str, now_s: float) -> bool:
        line = GRPC_LINE.fullmatch(text)
        if line is None:
            return False
        words = line[1] or line[2]
        if now_s - self._logged_s.get(words, -REPEATED_AFTER_S) < REPEATED_AFTER_S:
            return True
        if len(self._logged_s) >= MAX_KNOWN_LINES:
            self._logged_s.clear()
        self._logged_s[words] = now_s
        return False

    def _report_left_out(self) -> None:
        if self._left_out:
            log.warning("process.lines_left_out", lines=self._left_out)
            self._left_out = 0


class _ToOurLog(logging.Handler):
    """Logs a record of Python's logging, with which libraries and asyncio report."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            log.error("library.logged", library=record.name, text=text, exc_info=record.exc_info)
        else:
            log.warning("library.logged", library=record.name, text=text)


@contextlib.contextmanager
def foreign_output_logged() -> Iterator[None]:
    """Leads all that this process and its children write to file descriptor 2 into the log, until the block ends.

    Call it after the log is configured: the log itself goes on to write to standard error. The stack of a crash goes there, too.
    """
    handler = _ToOurLog(logging.WARNING)
    logging.getLogger().addHandler(handler)
    stderr = os.dup(2)
    reading, writing = os.pipe()
    with contextlib.suppress(OSError, AttributeError):  # Linux only, and an unprivileged user may have reached a limit
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(writing, False)  # a library that writes must never wait for the thread that reads
    os.dup2(writing, 2)
    os.close(writing)
    faulthandler.enable(stderr)
    reader = threading.Thread(target=_read, args=(reading,), daemon=True)
    reader.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)  # the pipe's last writer in this process
        reader.join(LAST_LINES_S)  # a child may still have the pipe open
        faulthandler.disable()
        logging.getLogger().removeHandler(handler)
        os.close(stderr)


def _read(reading: int) -> None:
    lines = ForeignLines()
    while content := os.read(reading, PIPE_BYTES):
        lines.take(content, time.monotonic())
    lines.end(time.monotonic())
    os.close(reading)
