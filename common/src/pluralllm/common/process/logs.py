"""Configuration of structured logs: JSON in production, or lines that a person reads on a terminal.

A log call never raises and never waits for long, because it often stands between a durable change and the effects of the change.
"""

import io
import logging
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.process.configuration import LogFormat
from pluralllm.common.process.console import say, terminal
from pluralllm.common.process.files import create_file, open_at_once, owner_hint
from pluralllm.common.process.lifetime import on_hangup
from pluralllm.common.text.printable import printable, printable_values

LogForm = Literal["json", "console"]
# By default structlog prints the local variables of every frame of a stack: tokens, keys, private questions.
TRACEBACKS = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))


READER_LIMIT_S = 0.5  # how long a line waits for the reader of a full pipe
PIECE_BYTES = 4096  # a pipe that is ready takes this many bytes at once (PIPE_BUF in pipe(7))


class LogStream:
    """The stream on which a process writes its log. Its methods never raise.

    A line is lost if the stream cannot take it: no space is left, the pipe has no reader, or the reader has stopped to read. The
    stream counts the lost lines. When it works again, its first line reports their number.
    """

    def __init__(
        self,
        stream: "TextIO | io.FileIO | LogFile | None",
        report: Callable[[int], str],
        on_loss: Callable[[], object] = lambda: None,
        encoding: str | None = None,
    ) -> None:
        """Writes to a log file, or to the bytes below a stream; None if there is no stream, and then every line is lost.

        report: makes the line, without its line end, that reports a number of lost lines. on_loss: is called for each lost line.
        """
        buffer: Any = getattr(stream, "buffer", None)
        # Python's own buffer would keep the bytes of a write that failed, and the next write would try them again.
        self._raw: Any = stream if isinstance(stream, io.FileIO | LogFile) else getattr(buffer, "raw", buffer)
        self._encoding = encoding or getattr(stream, "encoding", None) or "utf-8"
        self._report, self._on_loss = report, on_loss
        self._is_within_a_line = self._is_stuck = False
        self.lost_lines = 0  # since the last line that was written

    def write(self, line: str) -> None:
        """Writes one line; its end is a part of `line`."""
        try:
            if self._is_within_a_line:  # a part of a lost line has been written
                self._put("\n")
            if self.lost_lines:
                self._put(self._report(self.lost_lines) + "\n")
                self.lost_lines = 0
            self._put(line)
        except Exception:  # noqa: BLE001 - a caller can do nothing about its log
            self.lose()

    def flush(self) -> None:
        """Does nothing, because no line waits in a buffer."""

    def lose(self) -> None:
        """Counts a lost line."""
        self.lost_lines += 1
        self._on_loss()

    def _put(self, text: str) -> None:
        rest = memoryview(text.encode(self._encoding, "backslashreplace"))
        while rest:
            self._await_reader()
            done = self._raw.write(rest[:PIECE_BYTES])
            if not done:  # None for a stream that does not block
                raise BlockingIOError
            rest = rest[done:]
            self._is_within_a_line = bool(rest)

    def _await_reader(self) -> None:
        """Waits until the stream takes bytes. Raises TimeoutError after READER_LIMIT_S, and from then on without a wait."""
        try:
            poll = select.poll()
            poll.register(self._raw.fileno(), select.POLLOUT)
        except io.UnsupportedOperation:  # not of the operating system, so it does not block
            return
        if not poll.poll(0 if self._is_stuck else READER_LIMIT_S * 1000):
            self._is_stuck = True
            raise TimeoutError
        self._is_stuck = False


class LogFile:
    """A log file. After a SIGHUP it is opened anew, because another program (logrotate) has given the old one another name."""

    def __init__(self, path: Path) -> None:
        """Opens the file at its end. Raises InvalidConfig if it cannot be opened."""
        self._path, self._is_moved = path.absolute(), False
        try:
            self._file = self._opened()
        except OSError as error:
            problem = f"  log_file: {self._path} cannot be opened: {error.strerror}. {owner_hint(self._path)}"
            raise InvalidConfig(file="configuration", problems=problem.rstrip()) from error
        on_hangup(self._note_moved)

    def write(self, content: memoryview) -> int | None:
        """Writes bytes at the end of the file that has the configured name now."""
        if self._is_moved:
            self._is_moved = False
            try:
                old, self._file = self._file, self._opened()
                old.close()
            except OSError as error:
                fix = "the log goes on in the old file; send SIGHUP again when the cause is mended"
                say(f"log_file {self._path} cannot be opened anew: {error.strerror}; {fix}", err=True)
        return self._file.write(content)

    def fileno(self) -> int:
        return self._file.fileno()

    def _note_moved(self) -> None:
        self._is_moved = True

    def _opened(self) -> io.FileIO:
        create_file(self._path, 0o640)
        return io.FileIO(self._path, "ab", opener=open_at_once)


def log_form(log_format: LogFormat, file: Path | None) -> LogForm:
    """Returns the form of the log lines: "auto" means lines for a person if the log goes to a terminal, JSON otherwise.

    file: the log file; None stands for stderr.
    """
    if log_format != "auto":
        return log_format
    return "console" if file is None and sys.stderr.isatty() else "json"


def configure_logs(
    *,
    form: LogForm,
    level: str = "INFO",
    on_loss: Callable[[], object] = lambda: None,
    file: Path | None = None,
) -> None:
    """Configures structlog to write to a file, or to stderr. A process's `__main__` calls this function once.

    form: JSON, or lines for a person. level: the lowest level that is logged. on_loss: is called for each line that is lost.
    file: the log file; None stands for stderr. Raises InvalidConfig if the file cannot be opened.
    """
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=file is None and _wants_colours(), exception_formatter=_printable_traceback
        )
    )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        # A person compares with the clock on the wall; programs compare logs of several machines.
        structlog.processors.TimeStamper(fmt="iso" if form == "json" else "%Y-%m-%d %H:%M:%S", utc=form == "json"),
        TRACEBACKS if form == "json" else structlog.processors.StackInfoRenderer(),
        *([] if form == "json" else [_printable_fields]),  # JSON writes such characters as escapes by itself
        renderer,
    ]

    def report(lost_lines: int) -> str:
        fields: Any = {"event": "log.lines_lost", "lines": lost_lines}
        for processor in processors:
            fields = processor(None, "warning", fields)
        return str(fields)

    if file is None:
        stream = LogStream(_own_stderr(), report, on_loss, getattr(sys.stderr, "encoding", None))
    else:
        stream = LogStream(LogFile(file), report, on_loss)
    structlog.configure(
        processors=processors,
        wrapper_class=_logger_class(logging.getLevelNamesMapping()[level.upper()], stream),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", stream)),
        cache_logger_on_first_use=True,
    )


def _own_stderr() -> TextIO | io.FileIO:
    """Returns a stream of the log's own to standard error: what libraries write there may later be led into the log."""
    try:
        return io.FileIO(os.dup(sys.stderr.fileno()), "wb")
    except (AttributeError, OSError, ValueError):  # a stream of a test
        return sys.stderr


def _logger_class(level: int, stream: LogStream) -> type[Any]:
    """Returns the class of the loggers. If a line cannot be made, for example of a value without a text, the line is lost."""
    filtering: Any = structlog.make_filtering_bound_logger(level)

    class Logger(filtering):  # type: ignore[misc]
        def _proxy_to_logger(self, *positional: Any, **named: Any) -> None:
            try:
                super()._proxy_to_logger(*positional, **named)
            except Exception:  # noqa: BLE001 - as in LogStream.write
                stream.lose()

    return Logger


def _printable_traceback(stream: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    """Writes a traceback to a stream. Its texts are made printable, because an exception may repeat what the other side sent."""
    traceback = io.StringIO()
    structlog.dev.plain_traceback(traceback, exc_info)
    stream.write(printable(traceback.getvalue(), lines=True))


def _printable_fields(logger: object, method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Makes the texts of a log line printable, because some come from the other side. It is a processor of structlog."""
    del logger, method
    cleaned: dict[str, Any] = printable_values(dict(fields))
    return cleaned


def _wants_colours() -> bool:
    """Returns whether log lines should have colours: stderr is a terminal and the variable NO_COLOR (no-color.org) is not set."""
    console = terminal(stderr=True)
    return console.is_terminal and not console.no_color
