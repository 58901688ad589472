"""Decides which connected clients the runs see. A client that comes and goes again and again stays away for a while.

A run records durably that a client has come or gone. So a client could fill the database with a connection that it opens and
leaves for a few seconds, for ever. Each coming therefore takes a token from the client's bucket. While the bucket is empty, the
client counts as gone: its polls are answered, but it gets no task. A client that keeps its polls open takes no tokens.
"""

import structlog

from pluralllm.common.process.token_bucket import TokenBucket
from pluralllm.common.words.ids import ClientId
from pluralllm.server.runs.leases import Leases
from pluralllm.server.runs.sessions import Session, Sessions

COMINGS_AT_ONCE = 30
COMING_EACH_S = 120.0  # one more each two minutes

log = structlog.get_logger()


class Presence:
    """The clients that have come and not gone, as the runs see them. It is in memory only, as sessions and leases are."""

    def __init__(self, sessions: Sessions, leases: Leases) -> None:
        self._sessions, self._leases = sessions, leases
        self._here: frozenset[ClientId] = frozenset()
        self._buckets: dict[ClientId, TokenBucket] = {}
        self._reported: set[ClientId] = set()  # clients that were logged since they last came
        self.kept_out: frozenset[ClientId] = frozenset()  # connected clients that came too often, as of the newest look
        # Clients whose membership was revoked, and that have not joined again.
        self.revoked: frozenset[ClientId] = frozenset()

    def revoke(self, client: ClientId) -> None:
        """Notes that the client's membership was revoked."""
        self.revoked |= {client}

    def readmit(self, client: ClientId) -> None:
        """Notes that the client has called Hello: a new member may have the name of a revoked one."""
        self.revoked -= {client}

    def look(self, now_s: float) -> dict[ClientId, Session]:
        """Returns the sessions of the present clients, sorted by client. A client with a lease does not go while it is silent."""
        live = {session.client: session for session in self._sessions.live(now_s)}
        kept_out = {client for client in live if client not in self._here and not self._may_come(client, now_s)}
        silent = {client for client in self._here if client not in live and self._leases.of(client) is not None}
        self._here, self.kept_out = frozenset(live.keys() - kept_out | silent), frozenset(kept_out)
        return {client: session for client, session in live.items() if client in self._here}

    def _may_come(self, client: ClientId, now_s: float) -> bool:
        bucket = self._buckets.setdefault(client, TokenBucket(COMINGS_AT_ONCE, COMING_EACH_S))
        if (wait_s := bucket.wait_s(now_s)) == 0:
            self._reported.discard(client)
            return True
        if client not in self._reported:
            self._reported.add(client)
            log.warning("client.comes_and_goes", client=client, wait_s=round(wait_s))
        return False
