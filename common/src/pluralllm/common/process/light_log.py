"""A log for modules that short commands import: it loads structlog with its first line, because loading takes a moment."""

from typing import Any


class LightLog:
    """A logger that acts as `structlog.get_logger()` does, and loads structlog when a line is written."""

    def __getattr__(self, level: str) -> Any:
        import structlog  # noqa: PLC0415 - commands that log nothing do without

        return getattr(structlog.get_logger(), level)
