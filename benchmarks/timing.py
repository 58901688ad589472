"""Measures the time of one piece of work, for the benchmarks."""

import time
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds from the start of `work` until `device` has finished all computation that `work` began."""
    began_s = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began_s
