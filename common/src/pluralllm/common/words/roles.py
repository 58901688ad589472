"""The roles of members and of groups. The table in the coordinator's module access.py lists the calls that each role may make."""

from enum import StrEnum


class MemberRole(StrEnum):
    """The role of a member. The administrator who invites the member chooses the role, and the role never changes."""

    CLIENT = "client"  # a partner's daemon: trains, evaluates, reads runs and models
    OBSERVER = "observer"  # reads the status of runs and rounds; no weights, no members
    ADMIN = "admin"  # steers runs, invites and revokes, reads everything


class GroupRole(StrEnum):
    """The role of a group in a run: the run trains on the group's data, or only evaluates models on the group's data."""

    TRAIN = "train"
    HELD_OUT = "held_out"
