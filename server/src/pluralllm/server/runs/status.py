"""The status of a run for people: participants, next step, problem and bytes transferred. All values are from one moment."""

from dataclasses import dataclass

from pluralllm.common.process.clock import Clock
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.blocked import why_blocked
from pluralllm.server.runs.client_rows import ClientRows
from pluralllm.server.runs.leases import Leases
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.overview import Participant, participants, what_next
from pluralllm.server.runs.presence import Presence
from pluralllm.server.runs.refusals import Refusals
from pluralllm.server.runs.sessions import Sessions
from pluralllm.server.runs.traffic import Traffic
from pluralllm.server.runs.troubles import Troubles


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The status of one run at the time `at_s`: participants, next step, problem and bytes transferred."""

    at_s: float
    participants: tuple[Participant, ...]  # sorted by client
    next: str  # one sentence: what happens next
    trouble: str  # "" if the coordinator can go on
    received_bytes: int  # since the process started
    sent_bytes: int
    blocked: str = ""  # why the run cannot go on before owners of clients act; "" if it can


class Status:
    """Collects the status of a run, which is shown to people. The class changes no state."""

    def __init__(
        self,
        clients: ClientRows,
        sessions: Sessions,
        leases: Leases,
        presence: Presence,
        clock: Clock,
        troubles: Troubles,
        traffic: Traffic,
        refusals: Refusals,
    ) -> None:
        self._clients, self._sessions, self._leases, self._clock = clients, sessions, leases, clock
        self._presence = presence
        self._troubles, self._traffic, self._refusals = troubles, traffic, refusals

    def of(self, run: LiveRun, *, with_participants: bool = True) -> RunStatus:
        """Returns the run's current status. Without its participants, it costs no look at every client.

        with_participants: whether the status has the participants.
        """
        members = self._clients.all() if with_participants else ()
        now_s, trouble = self._clock.now_s(), self._troubles.of(run.id)
        sessions = {m.client: session for m in members if (session := self._sessions.get(m.client)) is not None}
        leases = {m.client: lease for m in members if (lease := self._leases.of(m.client)) is not None}
        kept_out, revoked, refused = self._presence.kept_out, self._presence.revoked, self._refusals.of(run.id)
        trainers = self._idle_trainers(run, now_s) if run.state.phase is Phase.WAITING else 0
        blocked = why_blocked(run, self._clients.all(), revoked) if run.state.excluded and not run.is_over else ""
        return RunStatus(
            at_s=now_s,
            participants=participants(run, members, sessions, leases, now_s, refused, kept_out, revoked),
            next=what_next(run, trouble, trainers, now_s, blocked),
            trouble=trouble,
            blocked=blocked,
            received_bytes=self._traffic.received_bytes(run.id),
            sent_bytes=self._traffic.sent_bytes(run.id),
        )

    def _idle_trainers(self, run: LiveRun, now_s: float) -> int:
        """Returns the number of connected clients that train in the run and may get a task. Only a waiting run shows it."""
        barred = self._presence.kept_out | run.state.excluded_clients
        return sum(
            run.spec.groups.role_of(session.group, session.role) is GroupRole.TRAIN
            for session in self._sessions.live(now_s)
            if self._leases.of(session.client) is None and session.client not in barred
        )
