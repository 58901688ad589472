"""The calls that each role may make, and the runs that each member may read."""

import pytest

from pluralllm.common.errors.membership import RoleForbids, RunNotShared
from pluralllm.common.words.ids import ClientId, RunId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole, Groups
from pluralllm.server.members.access import (
    ALL_RUNS,
    ENROLMENT,
    FEDERATION,
    HEALTH,
    OPERATIONS,
    RULES,
    Principal,
    check_may_read,
    check_page,
    check_role,
    may_read,
    may_read_audit,
)

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


# Roles. The table is written out once more, as a reader of docs/security.md would write it.

CLIENT, OBSERVER, ADMIN = MemberRole.CLIENT, MemberRole.OBSERVER, MemberRole.ADMIN
ALLOWED = {
    CLIENT: {
        *(f"{FEDERATION}{name}" for name in ("Hello", "Poll", "GetRunSpec", "ListVersionRecords", "GetManifest")),
        *(f"{FEDERATION}{name}" for name in ("GetChunks", "GetRollouts", "BeginUpdate", "PutChunks", "CommitUpdate")),
        *(
            f"{FEDERATION}{name}"
            for name in ("ReportEvaluation", "ReportProgress", "ReportFailure", "GetRoster", "CompareQuestions")
        ),
        *(f"{FEDERATION}{name}" for name in ("GetRoundStep", "PutRoundStep", "GetTranscript", "GetMaskedChunks")),
        *(f"{OPERATIONS}{name}" for name in ("GetModel", "ListAuditEvents")),
    },
    OBSERVER: {f"{OPERATIONS}CreatePageLink"},
    ADMIN: {
        *(f"{FEDERATION}{name}" for name in ("ListVersionRecords", "GetManifest", "GetChunks")),
        *(f"{FEDERATION}{name}" for name in ("GetTranscript", "GetMaskedChunks")),
        *(f"{OPERATIONS}{name}" for name in ("CreateRun", "StartRun", "PauseRun", "ResumeRun", "CancelRun")),
        *(f"{OPERATIONS}{name}" for name in ("ArchiveRun", "UnarchiveRun")),
        *(f"{OPERATIONS}{name}" for name in ("AskRewards", "GetRewards", "GetModel", "ListMembers", "CreateInvite")),
        *(f"{OPERATIONS}{name}" for name in ("ApproveMember", "RevokeMember", "ResetPeerKey", "ListAuditEvents")),
        f"{OPERATIONS}CreatePageLink",
    },
}
FOR_ALL = {
    *(
        f"{OPERATIONS}{name}"
        for name in ("GetRun", "ListRuns", "GetRound", "ListRounds", "ListEvaluations", "WatchRun")
    ),
    f"{ENROLMENT}Renew",
    *(f"{HEALTH}{name}" for name in ("Check", "List", "Watch")),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}
STEERING = {
    f"{OPERATIONS}{name}" for name in ("CreateRun", "StartRun", "PauseRun", "ResumeRun", "CancelRun", "AskRewards")
} | {f"{OPERATIONS}{name}" for name in ("ArchiveRun", "UnarchiveRun", "CreatePageLink")}
REFUSALS_AUDITED = {
    *(f"{OPERATIONS}{name}" for name in ("GetRewards", "ListMembers", "CreateInvite", "ApproveMember", "RevokeMember")),
    f"{OPERATIONS}ResetPeerKey",
    f"{ENROLMENT}Renew",
}


def member(role: MemberRole) -> Principal:
    return Principal(ClientId("ann"), role, "1f")


@pytest.mark.parametrize("role", MemberRole)
def test_a_role_makes_the_calls_of_its_row_and_no_other(role: MemberRole) -> None:
    for method in RULES:
        if method in ALLOWED[role] | FOR_ALL:
            rule = check_role(member(role), method)
            assert rule is RULES[method]
            assert rule.audited == (method in STEERING)
            assert rule.refusals_audited == (method in REFUSALS_AUDITED)
        else:
            with pytest.raises(RoleForbids, match=method.rpartition("/")[2]):
                check_role(member(role), method)


@pytest.mark.parametrize("role", MemberRole)
@pytest.mark.parametrize("method", [f"{OPERATIONS}Unheard", "/other.Service/Hello", "Hello", "", f"{FEDERATION}hello"])
def test_a_method_without_a_rule_is_for_nobody(role: MemberRole, method: str) -> None:
    with pytest.raises(RoleForbids, match="nobody on this port"):
        check_role(member(role), method)


def test_the_page_is_for_observers_and_administrators() -> None:
    for role in (OBSERVER, ADMIN):
        check_page(member(role))
    with pytest.raises(RoleForbids) as refused:
        check_page(member(CLIENT))
    assert (refused.value.rpc, refused.value.allowed) == ("the page", "admin, observer")


def test_only_administrators_see_the_audit_log_on_the_page() -> None:
    assert [role for role in MemberRole if may_read_audit(member(role))] == [ADMIN]


def test_a_refusal_names_the_roles_that_may() -> None:
    with pytest.raises(RoleForbids, match="admin, client"):
        check_role(member(OBSERVER), f"{OPERATIONS}GetModel")
    with pytest.raises(RoleForbids, match="nobody on this port"):
        check_role(member(ADMIN), f"{ENROLMENT}Join")


def test_a_member_has_the_group_and_the_role_of_its_invite() -> None:
    held_out = Principal(ClientId("ann"), CLIENT, "1f", "B", GroupRole.HELD_OUT)
    assert held_out.group_and_role == ("B", GroupRole.HELD_OUT)
    assert may_read(held_out, R, NAMED)
    assert Principal(ClientId("ann"), CLIENT).group_and_role == (None, GroupRole.TRAIN)
