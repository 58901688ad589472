"""The logs of tests: as structlog's own defaults, but with plain tracebacks and without anything that a logger keeps."""

from functools import partial
from typing import Any

import structlog

PLAIN: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.StackInfoRenderer(),
    # Colours and source lines in tracebacks took a tenth of the quick tests' time.
    structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
]


def log_plainly() -> None:
    """Configures structlog as the tests expect it."""
    structlog.reset_defaults()
    structlog.configure(processors=PLAIN)


def let_no_logger_keep_its_configuration() -> None:
    """Makes each later configuration hold for all loggers: a process configures once, a session of tests many times.

    Otherwise a logger that a command's test has used first would write to that test's stream for ever.
    """
    structlog.configure = partial(_configure, structlog.configure)


def _configure(configure: Any, **settings: Any) -> None:
    configure(**settings | {"cache_logger_on_first_use": False})


def is_plain() -> bool:
    """Returns whether the logs are configured as the tests expect it; capture_logs changes the same list for a while."""
    return structlog.get_config()["processors"] is PLAIN
