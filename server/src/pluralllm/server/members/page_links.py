"""The short-lived links to the web page, and the sessions that they open. A restart of the coordinator ends all of them.

Links and sessions are known by the SHA-256 of their 256-bit secrets, in memory only. Each belongs to one certificate of a member,
so that it ends with the certificate. The module decides about time and number; the registry decides about the member.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from pluralllm.common.errors.tree import NotFound
from pluralllm.common.trust.invite import TOKEN_BYTES, token_hash
from pluralllm.server.members.access import Principal

LINK_S = 60.0
SESSION_S = 3600.0
# Largest number of links of one member at the same time, and as many sessions; a further one takes the place of the oldest.
MAX_OF_MEMBER = 4


@dataclass(frozen=True, slots=True)
class Grant:
    """A link or a session. It belongs to a certificate of a member, the owner, whose rights were these when it was made."""

    owner: Principal
    expires_s: float


class PageLinks:
    """The links and sessions of one process. now_s: returns the time in seconds of a clock that never jumps."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.address = ""  # host:port of the page for members, while it is served
        self._now_s = now_s
        self._links: dict[str, Grant] = {}  # by the token's hash, the oldest first
        self._sessions: dict[str, Grant] = {}  # by the cookie's hash, the oldest first

    def new_link(self, to: Principal) -> str:
        """Makes a link for a member and returns its token, which is kept nowhere.

        Raises NotFound if the page is not served to members.
        """
        if not self.address:
            raise NotFound(what="page for members", name="here; the coordinator's page_remote_listen opens it")
        return self._add(self._links, to, LINK_S)

    def redeem(self, token: str) -> Grant | None:
        """Takes a link out of use and returns it; None if there is no such link, or if it is used or too old."""
        link = self._links.pop(token_hash(token), None)
        return link if link is not None and self._now_s() < link.expires_s else None

    def give_back(self, token: str, link: Grant) -> None:
        """Makes a redeemed link usable again until its end, because no session could be opened for it."""
        self._links[token_hash(token)] = link

    def new_session(self, link: Grant) -> str:
        """Opens a session for the owner of a redeemed link and returns its cookie, which is kept nowhere."""
        return self._add(self._sessions, link.owner, SESSION_S)

    def session(self, cookie: str) -> Grant | None:
        """Returns the session of a cookie; None if there is no such session, or if it has expired."""
        session = self._sessions.get(token_hash(cookie))
        return session if session is not None and self._now_s() < session.expires_s else None

    def end_session(self, cookie: str) -> None:
        """Ends the session of a cookie, if there is one."""
        self._sessions.pop(token_hash(cookie), None)

    def _add(self, grants: dict[str, Grant], owner: Principal, life_s: float) -> str:
        now_s = self._now_s()
        for key in [key for key, grant in grants.items() if grant.expires_s <= now_s]:
            del grants[key]
        of_member = [key for key, grant in grants.items() if grant.owner.name == owner.name]
        if len(of_member) >= MAX_OF_MEMBER:
            del grants[of_member[0]]
        secret = secrets.token_urlsafe(TOKEN_BYTES)
        grants[token_hash(secret)] = Grant(owner, now_s + life_s)
        return secret
