"""Shorter waits than in a real federation, and a clock that a test can set, for both programs of the nemesis.

The programs call these functions when their modules are loaded, because the modules then bind the replaced values.
"""

import os
import sys
import time
import types
from pathlib import Path
from typing import Any

CLOCK = "PLURALLLM_NEMESIS_CLOCK"  # a file that holds the error of this process's wall clock, in seconds
KEEPALIVE_MS, KEEPALIVE_LIMIT_MS = 1_500, 5_000  # on a slow link, an answer waits


def faster_keepalive(options: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
    """Returns options that detect a silent connection within seconds instead of within 25 seconds."""
    values = {
        "grpc.keepalive_time_ms": KEEPALIVE_MS,
        "grpc.keepalive_timeout_ms": KEEPALIVE_LIMIT_MS,
        "grpc.http2.ping_timeout_ms": KEEPALIVE_LIMIT_MS,
        "grpc.http2.min_ping_interval_without_data_ms": KEEPALIVE_MS // 2,
    }
    return tuple((name, values.get(name, value)) for name, value in options)


def wrong_clock() -> None:
    """Sets the wall clock of all code in pluralllm. gRPC's deadlines stay right, because C code reads their clock."""
    path = Path(os.environ[CLOCK])

    def wrong_time() -> float:
        return time.time() + (float(path.read_text()) if path.exists() else 0.0)

    clock = types.ModuleType("time")
    vars(clock).update(vars(time))
    clock.time = wrong_time  # type: ignore[attr-defined]
    for name, module in list(sys.modules.items()):
        if name.startswith("pluralllm."):
            if vars(module).get("time") is time:
                module.time = clock  # type: ignore[attr-defined]
            for value in list(vars(module).values()):
                if isinstance(value, types.FunctionType):  # skips loggers, which would be initialised by any access
                    _replace_default(value, time.time, wrong_time)


def _replace_default(function: types.FunctionType, old: object, new: object) -> None:
    """Replaces the default of each argument whose default is the clock."""
    plain: Any = getattr(function, "__wrapped__", function)
    if plain.__defaults__ and old in plain.__defaults__:
        plain.__defaults__ = tuple(new if value is old else value for value in plain.__defaults__)
