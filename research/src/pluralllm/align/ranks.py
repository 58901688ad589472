"""Lets the ranks of a distributed training share what a reward needs of all of them.

A trainer such as GRPO spreads the completions of one prompt over its ranks, and calls the reward functions on each rank with that
rank's completions. A share among the candidates of a prompt needs the candidates of all ranks. Without torch.distributed, or with
one rank, there is nothing to share. The values travel over gloo, so that no GPU is needed, in a process group of their own, so
that they meet no other traffic.
"""

import datetime
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch.distributed as dist

Value = TypeVar("Value")
LIMIT = datetime.timedelta(hours=1)  # a rank may wait so long for another one


@dataclass(frozen=True, slots=True)
class Gathered(Generic[Value]):
    """The values of all ranks, in the order of the ranks."""

    values: list[Value]
    start: int  # number of values of the ranks before this one
    count: int  # number of values of this rank

    def own(self, results: Sequence[Any]) -> list[Any]:
        """Returns this rank's part of results that belong to the values one by one."""
        return list(results[self.start : self.start + self.count])


class Ranks:
    """The ranks that call one reward function together. Each of them must make the same calls in the same order."""

    def __init__(self) -> None:
        self._group: Any = None
        self._making = threading.Lock()

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that acts for all ranks."""
        return not _are_several() or dist.get_rank() == 0

    def gathered(self, values: Sequence[Value]) -> Gathered[Value]:
        """Returns the values of all ranks. Every rank must call it, also one without values."""
        if not _are_several():
            return Gathered(list(values), 0, len(values))
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, list(values), group=self._made())
        before = sum(map(len, parts[: dist.get_rank()]))
        return Gathered([value for part in parts for value in part], before, len(values))

    def from_first(self, value: Value) -> Value:
        """Returns the first rank's value. Every rank must call it; the values of the other ranks do not count."""
        if not _are_several():
            return value
        shared = [value]
        dist.broadcast_object_list(shared, src=0, group=self._made())
        return shared[0]

    def __getstate__(self) -> dict[str, Any]:
        """Returns nothing: a process group and a lock belong to one process."""
        return {}

    def __setstate__(self, _: dict[str, Any]) -> None:
        """Starts anew in another process."""
        Ranks.__init__(self)

    def _made(self) -> Any:
        with self._making:
            if self._group is None:
                self._group = dist.new_group(backend="gloo", timeout=LIMIT)
        return self._group


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
