"""Limits the calls that are open on the main port. Held polls are not among them: polling.py bounds them apart."""

from collections.abc import Iterator
from contextlib import contextmanager

from pluralllm.common.errors.tree import Busy
from pluralllm.v1 import federation_pb2

POLL = f"/{federation_pb2.DESCRIPTOR.services_by_name['FederationService'].full_name}/Poll"


class OpenCalls:
    """The number of open calls, and its limit.

    Every connected client holds a poll. If polls counted as well, some thousand idle clients would keep the administrator out.
    """

    def __init__(self, limit: int | None) -> None:
        """Stores the limit; None if there is no limit."""
        self._limit, self._open = limit, 0

    @contextmanager
    def enter(self, method: str) -> Iterator[None]:
        """Counts a call while the block runs. method: path of the RPC. Raises Busy if as many calls are open as allowed."""
        if method == POLL:
            yield
            return
        if self._limit is not None and self._open >= self._limit:
            problem = f"{self._limit} calls are open, as many as max_concurrent_rpcs in its configuration allows"
            raise Busy(address="this address", problem=problem)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
