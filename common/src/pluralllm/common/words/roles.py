"""What a member may be. What each role may call is the table in the coordinator's access.py."""

from enum import StrEnum


class MemberRole(StrEnum):
    """Of a member; fixed when it is invited."""

    CLIENT = "client"  # a partner's daemon: trains, evaluates, reads runs and models
    OBSERVER = "observer"  # reads the status of runs and rounds; no weights, no members
    ADMIN = "admin"  # steers runs, invites and revokes, reads everything
