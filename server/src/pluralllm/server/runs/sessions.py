"""Who is connected: one session for each client, the newest instance wins."""

from dataclasses import dataclass, field

from pluralllm.common.errors.tree import SessionReplaced, StaleSession
from pluralllm.common.words.ids import ClientId, GroupName
from pluralllm.common.words.spec import GroupRole

GRACE_S = 5.0  # between two polls a client is silent for a moment


@dataclass(slots=True)
class Session:
    """A client daemon that has said Hello to this process."""

    client: ClientId
    instance: str
    group: GroupName
    role: GroupRole
    training_questions: int
    software_version: str
    last_seen_s: float
    polls_open: int = 0
    silence_s: float = field(default=GRACE_S, repr=False)

    def is_live(self, now_s: float) -> bool:
        """Holding a poll open, or heard from within the silence allowed."""
        return self.polls_open > 0 or now_s - self.last_seen_s <= self.silence_s


class Sessions:
    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._by_client: dict[ClientId, Session] = {}

    def open(self, session: Session) -> None:
        """The newest instance replaces any older one of the client."""
        session.silence_s = self._silence_s
        self._by_client[session.client] = session

    def of(self, client: ClientId) -> Session:
        """Raises StaleSession if the client has not said Hello to this process."""
        if (session := self._by_client.get(client)) is None:
            raise StaleSession(client=client)
        return session

    def check(self, client: ClientId, instance: str) -> Session:
        """The session of exactly this instance. Raises StaleSession or SessionReplaced."""
        session = self.of(client)
        if session.instance != instance:
            raise SessionReplaced(client=client)
        return session

    def close(self, client: ClientId) -> None:
        """Its held poll answers at once that the session is over."""
        self._by_client.pop(client, None)

    def get(self, client: ClientId) -> Session | None:
        return self._by_client.get(client)

    def live(self, now_s: float) -> tuple[Session, ...]:
        """Sorted by client."""
        return tuple(s for _, s in sorted(self._by_client.items()) if s.is_live(now_s))
