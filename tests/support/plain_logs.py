"""The logs of tests: as structlog's own defaults, but with plain tracebacks."""

import structlog


def log_plainly() -> None:
    """Configures structlog. Colours and source lines in tracebacks took a tenth of the quick tests' time."""
    structlog.reset_defaults()  # also what a test before has set: loggers would keep its configuration
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.StackInfoRenderer(),
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ]
    )
