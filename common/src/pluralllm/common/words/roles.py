"""The roles of members. The table in the coordinator's access.py lists the calls that each role may make."""

from enum import StrEnum


class MemberRole(StrEnum):
    """The role of a member, fixed when an administrator invites it."""

    CLIENT = "client"  # a partner's daemon: trains, evaluates, reads runs and models
    OBSERVER = "observer"  # reads the status of runs and rounds; no weights, no members
    ADMIN = "admin"  # steers runs, invites and revokes, reads everything
