"""The leases: a lease gives a client the right to work on one task until a given time. The current time is always an argument."""

import math
from collections import defaultdict
from dataclasses import dataclass, replace

from pluralllm.common.words.ids import ClientId, RunId
from pluralllm.common.words.names import TaskName


@dataclass(frozen=True, slots=True)
class Lease:
    """A client's right to work on one task until the time `expires_s`."""

    run: RunId
    task: TaskName
    expires_s: float
    granted_s: float
    fetched: bool = False  # the client has received the task
    stage: str = ""  # the client's report of what it does, for people
    progress: float = 0.0  # 0..1


class Leases:
    """The leases of all clients. A client has at most one lease, whatever the number of runs.

    Leases are not durable: after a restart the coordinator grants new leases.
    """

    def __init__(self, duration_s: float) -> None:
        self.duration_s = duration_s
        self._held: dict[ClientId, Lease] = {}
        self._by_run: defaultdict[RunId, dict[ClientId, None]] = defaultdict(dict)  # the clients of each run's leases
        self._earliest_s: dict[RunId, float] = {}  # no lease of the run expires before it

    def of(self, client: ClientId) -> Lease | None:
        """Returns the client's lease, or None if the client has no lease."""
        return self._held.get(client)

    def is_held(self, task: TaskName) -> bool:
        """Returns whether the task's client has a lease on this task."""
        lease = self._held.get(task.client)
        return lease is not None and lease.task == task

    def grant(self, client: ClientId, run: RunId, task: TaskName, now_s: float) -> None:
        self.release(client)
        self._held[client] = lease = Lease(run, task, now_s + self.duration_s, now_s)
        self._by_run[run][client] = None
        self._earliest_s[run] = min(self._earliest_s.get(run, math.inf), lease.expires_s)

    def renew(self, client: ClientId, now_s: float) -> None:
        if (lease := self._held.get(client)) is not None:
            self._held[client] = replace(lease, expires_s=now_s + self.duration_s)

    def note(self, client: ClientId, stage: str, progress: float) -> None:
        """Records the client's progress report in its lease.

        progress: the finished part of the task, a number from 0 to 1. stage: a text for people about the current step.
        The report also proves that the client has received the task.
        """
        if (lease := self._held.get(client)) is not None:
            self._held[client] = replace(lease, fetched=True, stage=stage, progress=progress)

    def mark_fetched(self, client: ClientId) -> None:
        if (lease := self._held.get(client)) is not None and not lease.fetched:
            self._held[client] = replace(lease, fetched=True)

    def release(self, client: ClientId) -> None:
        if (lease := self._held.pop(client, None)) is not None:
            del self._by_run[lease.run][client]

    def count_in(self, run: RunId) -> int:
        return len(self._by_run[run])

    def held_in(self, run: RunId) -> dict[ClientId, Lease]:
        return {client: self._held[client] for client in self._by_run[run]}

    def expired(self, run: RunId, now_s: float) -> tuple[ClientId, ...]:
        """Returns the clients of a run whose leases have expired at the time `now_s`, sorted by client.

        The leases are looked at only if one of them can have expired since the last look: a lease is only renewed for longer.
        """
        if now_s < self._earliest_s.get(run, math.inf):
            return ()
        held = self.held_in(run)
        self._earliest_s[run] = min((lease.expires_s for lease in held.values()), default=math.inf)
        return tuple(sorted(client for client, lease in held.items() if now_s >= lease.expires_s))
