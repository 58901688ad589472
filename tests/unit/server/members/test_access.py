"""Who may read which run."""

import pytest

from pluralllm.common.errors.membership import RunNotShared
from pluralllm.common.words.ids import ClientId, RunId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole, Groups
from pluralllm.server.members.access import ALL_RUNS, Principal, check_may_read, may_read

R = RunId("r")
OPEN = Groups()
NAMED = Groups(train=("A",), held_out=("B",))


def client(group: str | None) -> Principal:
    return Principal(ClientId("ann"), MemberRole.CLIENT, "1f", group)


def observer(*runs: str) -> Principal:
    return Principal(ClientId("eve"), MemberRole.OBSERVER, "1f", "", GroupRole.TRAIN, runs)


@pytest.mark.parametrize(
    ("who", "groups", "may"),
    [
        (client("A"), NAMED, True),
        (client("B"), NAMED, True),
        (client("C"), NAMED, False),
        (client(""), NAMED, False),
        (client("C"), OPEN, True),
        (client(None), NAMED, True),  # plain text
        (observer("r"), NAMED, True),
        (observer("q", "r"), NAMED, True),
        (observer(ALL_RUNS), NAMED, True),
        (observer("q"), NAMED, False),
        (observer("q"), OPEN, False),
        (observer(), OPEN, False),
        (Principal(ClientId("root"), MemberRole.ADMIN), NAMED, True),
    ],
)
def test_clients_read_the_runs_of_their_group_and_observers_those_of_their_invite(
    who: Principal, groups: Groups, may: bool
) -> None:
    assert may_read(who, R, groups) is may
    if may:
        check_may_read(who, R, groups)
    else:
        with pytest.raises(RunNotShared, match=f"{who.name} may not read run r"):
            check_may_read(who, R, groups)
