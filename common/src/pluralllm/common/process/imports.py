"""Imports of large libraries without the garbage collector, which takes a third of their time.

An import makes many objects and almost no garbage. As their number grows, the collector looks at them again and again.
"""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Collects no garbage in the block. Objects that exist at its end are never collected: they stay as long as the process."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
