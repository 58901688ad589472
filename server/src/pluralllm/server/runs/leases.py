"""Who holds which task, and until when: liveness, kept apart from the round machine. Time comes as an argument."""

from dataclasses import dataclass, replace

from pluralllm.common.words.ids import ClientId, RunId
from pluralllm.common.words.names import TaskName


@dataclass(frozen=True, slots=True)
class Lease:
    run: RunId
    task: TaskName
    expires_s: float
    granted_s: float
    fetched: bool = False  # the client has been handed the task
    stage: str = ""  # what the client says it is doing, for people
    progress: float = 0.0  # 0..1


class Leases:
    """At most one for each client, whatever the number of runs. Not durable: a restart grants them anew."""

    def __init__(self, duration_s: float) -> None:
        self.duration_s = duration_s
        self._held: dict[ClientId, Lease] = {}

    def of(self, client: ClientId) -> Lease | None:
        return self._held.get(client)

    def grant(self, client: ClientId, run: RunId, task: TaskName, now_s: float) -> None:
        self._held[client] = Lease(run, task, now_s + self.duration_s, now_s)

    def renew(self, client: ClientId, now_s: float) -> None:
        if (lease := self._held.get(client)) is not None:
            self._held[client] = replace(lease, expires_s=now_s + self.duration_s)

    def note(self, client: ClientId, stage: str, progress: float) -> None:
        """Keeps what the client says of its task, and that it has it."""
        if (lease := self._held.get(client)) is not None:
            self._held[client] = replace(lease, fetched=True, stage=stage, progress=progress)

    def mark_fetched(self, client: ClientId) -> None:
        if (lease := self._held.get(client)) is not None and not lease.fetched:
            self._held[client] = replace(lease, fetched=True)

    def release(self, client: ClientId) -> None:
        self._held.pop(client, None)

    def held_in(self, run: RunId) -> dict[ClientId, Lease]:
        return {client: lease for client, lease in self._held.items() if lease.run == run}

    def expired(self, run: RunId, now_s: float) -> tuple[ClientId, ...]:
        """Clients of a run whose lease is over, sorted."""
        return tuple(sorted(client for client, lease in self.held_in(run).items() if now_s >= lease.expires_s))
