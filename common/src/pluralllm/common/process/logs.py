"""Configuration of structured logs: JSON in production, or lines that a person reads on a terminal."""

import io
import logging
import sys
from typing import Any, Literal, TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from pluralllm.common.process.console import terminal
from pluralllm.common.text.printable import printable, printable_values

# By default structlog prints the local variables of every frame of a stack: tokens, keys, private questions.
TRACEBACKS = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))


def configure_logs(*, form: Literal["json", "console"], level: str = "INFO") -> None:
    """Configures structlog to write to stderr. A process's `__main__` calls this function once.

    form: JSON, or lines for a person. level: the lowest level that is logged.
    """
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=_wants_colours(), exception_formatter=_printable_traceback)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            TRACEBACKS if form == "json" else structlog.processors.StackInfoRenderer(),
            *([] if form == "json" else [_printable_fields]),  # JSON writes such characters as escapes by itself
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


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
