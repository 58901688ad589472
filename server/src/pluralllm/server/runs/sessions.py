"""The clients that are connected: one session for each client; the newest instance wins."""

from dataclasses import dataclass, field

from pluralllm.common.errors.tree import SessionReplaced, StaleSession
from pluralllm.common.words.ids import ClientId, GroupName
from pluralllm.common.words.spec import GroupRole

GRACE_S = 5.0  # a client is silent for a moment between two polls


@dataclass(slots=True)
class Session:
    """A client daemon that has called Hello in this process."""

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
        """True if the client holds a poll open or was silent for no longer than allowed."""
        return self.polls_open > 0 or now_s - self.last_seen_s <= self.silence_s


class Sessions:
    """The sessions of all clients of this process."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._by_client: dict[ClientId, Session] = {}

    def open(self, session: Session) -> None:
        """Opens a session, which replaces the session of an older instance of the client."""
        session.silence_s = self._silence_s
        self._by_client[session.client] = session

    def of(self, client: ClientId) -> Session:
        """The client's session. Raises StaleSession if the client has not called Hello in this process."""
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
        """Ends a client's session; its held poll then answers that the session is over."""
        self._by_client.pop(client, None)

    def get(self, client: ClientId) -> Session | None:
        return self._by_client.get(client)

    def live(self, now_s: float) -> tuple[Session, ...]:
        """The live sessions, sorted by client."""
        return tuple(s for _, s in sorted(self._by_client.items()) if s.is_live(now_s))
