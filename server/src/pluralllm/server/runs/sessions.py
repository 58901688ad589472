"""The sessions of the connected clients. A client has one session. A newer daemon of the client replaces the older session."""

import bisect
from dataclasses import dataclass, field

from pluralllm.common.errors.tree import SessionReplaced, StaleSession
from pluralllm.common.words.ids import ClientId, GroupName
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.spec import GroupRole

GRACE_S = 5.0  # a client is silent for a moment between two polls
TAKEOVER_WINDOW_S = 600.0
# In the window. A single takeover may be an upgrade that starts the new daemon before it stops the old one.
TOLD_TAKEOVERS = 2
MAX_TAKEOVERS = 100  # that are kept; more are not counted


@dataclass(slots=True)
class Session:
    """The session of a client daemon that has called Hello since the coordinator's process started."""

    client: ClientId
    instance: str
    group: GroupName
    role: GroupRole
    training_questions: int
    software_version: str
    last_seen_s: float
    data_changed_s: float | None = None  # when the daemon has noticed the last change of its private file
    noise: NoiseStatement | None = None  # as the member declares it; None if it states nothing
    # Whether the daemon knows the protocol of private rounds and has registered its peer key.
    is_ready_for_private_rounds: bool = False
    polls_open: int = 0
    takeovers_s: tuple[
        float, ...
    ] = ()  # times at which one daemon of the client took over from another that was connected
    silence_s: float = field(default=GRACE_S, repr=False)

    def is_live(self, now_s: float) -> bool:
        """Returns whether the client counts as connected.

        A client is connected while its poll is open, and for some time after its last message. The server's setting `silence_s`
        is this time in seconds.
        """
        return self.polls_open > 0 or now_s - self.last_seen_s <= self.silence_s

    def takeovers_within_window(self, now_s: float) -> int:
        """Returns the number of takeovers in the last TAKEOVER_WINDOW_S seconds."""
        return sum(now_s - at_s <= TAKEOVER_WINDOW_S for at_s in self.takeovers_s)


class Sessions:
    """The sessions of all clients since the coordinator's process started."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._by_client: dict[ClientId, Session] = {}
        self._order: list[ClientId] = []  # the clients, sorted: every look at all of them needs the order

    def open(self, session: Session) -> bool:
        """Adds a session. The session replaces an older session of the same client.

        Returns whether the session takes over from another daemon that was polling at this moment.
        """
        session.silence_s = self._silence_s
        before = self._by_client.get(session.client)
        takes_over = before is not None and before.instance != session.instance and before.polls_open > 0
        if before is not None:
            now = (session.last_seen_s,) if takes_over else ()
            session.takeovers_s = (*before.takeovers_s, *now)[-MAX_TAKEOVERS:]
        if before is None:
            bisect.insort(self._order, session.client)
        self._by_client[session.client] = session
        return takes_over

    def of(self, client: ClientId) -> Session:
        """Returns the client's session. Raises StaleSession if the client has not called Hello since the process started."""
        if (session := self._by_client.get(client)) is None:
            raise StaleSession(client=client)
        return session

    def check(self, client: ClientId, instance: str) -> Session:
        """Returns the client's session if the session belongs to the daemon with the id `instance`.

        Raises StaleSession if the client has no session; SessionReplaced if a newer daemon of the client has connected.
        """
        session = self.of(client)
        if session.instance != instance:
            raise SessionReplaced(client=client)
        return session

    def close(self, client: ClientId) -> None:
        """Ends the client's session. The client's open poll then fails with StaleSession."""
        if self._by_client.pop(client, None) is not None:
            del self._order[bisect.bisect_left(self._order, client)]

    def get(self, client: ClientId) -> Session | None:
        return self._by_client.get(client)

    def live(self, now_s: float) -> tuple[Session, ...]:
        """Returns the sessions of connected clients, sorted by client."""
        return tuple(session for client in self._order if (session := self._by_client[client]).is_live(now_s))
