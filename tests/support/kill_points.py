"""The calls of the system by which a process writes files durably: a test stops the process before or after any of them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WRITING: tuple[tuple[Any, str], ...] = ((os, "fsync"), (Path, "rename"), (os, "open"))

Replacement = tuple[Any, str, Callable[..., Any]]  # owner, name of the attribute, new value


def stopping_at(number: int, stop: Callable[[], None], passed: list[str]) -> Iterator[Replacement]:
    """Yields replacements of the calls, which call `stop` at the so many-th point. Each call has two points: before and after.

    passed: gets the name of the call at each point.
    """
    for owner, name in WRITING:
        yield owner, name, _stopping(name, getattr(owner, name), number, stop, passed)


def _stopping(
    name: str, real: Callable[..., Any], number: int, stop: Callable[[], None], passed: list[str]
) -> Callable[..., Any]:
    def call(*arguments: Any, **more: Any) -> Any:
        result = None
        for is_after in (False, True):
            passed.append(name)
            if len(passed) == number:
                stop()
            if not is_after:
                result = real(*arguments, **more)
        return result

    return call
