"""The table of calls that each role may make, and the right to read a run.

Every call without a row in the table is refused. A test compares the table with the gRPC services.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pluralllm.common.errors.membership import RoleForbids, RunNotShared
from pluralllm.common.words.ids import ClientId, RunId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole, Groups

CLIENT, OBSERVER, ADMIN = MemberRole.CLIENT, MemberRole.OBSERVER, MemberRole.ADMIN
ANY = frozenset(MemberRole)
ALL_RUNS = "*"  # in an observer's list of runs


@dataclass(frozen=True, slots=True)
class Principal:
    """The identity that a caller has proven."""

    name: ClientId
    role: MemberRole
    serial: str = ""  # serial number of the certificate; "" in plain text
    group: str | None = None  # None in plain text, where the client itself names its group
    group_role: GroupRole = GroupRole.TRAIN
    runs: tuple[str, ...] = ()  # ids of the runs that an observer may read, or ALL_RUNS
    max_examples: int | None = None  # largest number of questions that a client may state; None in plain text: no limit

    @property
    def group_and_role(self) -> tuple[str | None, GroupRole]:
        """The group whose data this member holds, and whether runs train on the group or hold it out.

        The group is None without TLS, because the client itself then names its group.
        """
        return self.group, self.group_role


@dataclass(frozen=True, slots=True)
class Rule:
    """The roles that may call one gRPC method, and what the audit log gets about its calls."""

    roles: frozenset[MemberRole]
    # The audit log gets an entry before the action begins, and another one with the outcome.
    audited: bool = False
    # The audit log gets refusals by the handler. Calls that change the membership write their own entries if they are accepted.
    refusals_audited: bool = False


def may_read(principal: Principal, run: RunId, groups: Groups) -> bool:
    """Returns whether the member may read a run: its spec, state, rounds, scores, events and, if its role allows it, models.

    An administrator may read every run. An observer may read the runs that its invite names. A client may read the runs that
    its group takes part in. groups: the groups in the run's spec. In plain text every client may read, because no certificate
    proves a group there.
    """
    match principal.role:
        case MemberRole.ADMIN:
            return True
        case MemberRole.OBSERVER:
            return ALL_RUNS in principal.runs or run in principal.runs
        case MemberRole.CLIENT:
            group, role = principal.group_and_role
            return group is None or groups.role_of(group, role) is not None


def check_may_read(principal: Principal, run: RunId, groups: Groups) -> None:
    """Raises RunNotShared if the member may not read the run."""
    if not may_read(principal, run, groups):
        raise RunNotShared(name=principal.name, run=run)


def _only(*roles: MemberRole) -> Rule:
    return Rule(frozenset(roles))


# The web page from another machine. It is no gRPC method, so that it has no row in RULES.
PAGE = _only(OBSERVER, ADMIN)
STEERING = Rule(frozenset({ADMIN}), audited=True)
MANAGING = Rule(frozenset({ADMIN}), refusals_audited=True)
FEDERATION = "/pluralllm.v1.FederationService/"
OPERATIONS = "/pluralllm.v1.OperationsService/"
ENROLMENT = "/pluralllm.v1.EnrolmentService/"
HEALTH = "/grpc.health.v1.Health/"

ON_ENROLMENT_PORT = frozenset({f"{ENROLMENT}Join", f"{ENROLMENT}GetMembership"})

# Methods of the main port.
RULES: Mapping[str, Rule] = {
    f"{FEDERATION}Hello": _only(CLIENT),
    f"{FEDERATION}Poll": _only(CLIENT),
    f"{FEDERATION}GetRunSpec": _only(CLIENT),
    f"{FEDERATION}ListVersionRecords": _only(CLIENT, ADMIN),
    f"{FEDERATION}GetManifest": _only(CLIENT, ADMIN),  # weights are not for observers
    f"{FEDERATION}GetChunks": _only(CLIENT, ADMIN),
    f"{FEDERATION}GetRollouts": _only(CLIENT),
    f"{FEDERATION}BeginUpdate": _only(CLIENT),
    f"{FEDERATION}PutChunks": _only(CLIENT),
    f"{FEDERATION}CommitUpdate": _only(CLIENT),
    f"{FEDERATION}GetRoundStep": _only(CLIENT),
    f"{FEDERATION}PutRoundStep": _only(CLIENT),
    f"{FEDERATION}GetTranscript": _only(CLIENT, ADMIN),
    f"{FEDERATION}GetMaskedChunks": _only(CLIENT, ADMIN),
    f"{FEDERATION}ReportEvaluation": _only(CLIENT),
    f"{FEDERATION}ReportProgress": _only(CLIENT),
    f"{FEDERATION}ReportFailure": _only(CLIENT),
    f"{FEDERATION}GetRoster": _only(CLIENT),
    f"{FEDERATION}CompareQuestions": _only(CLIENT),
    f"{OPERATIONS}CreateRun": STEERING,
    f"{OPERATIONS}StartRun": STEERING,
    f"{OPERATIONS}PauseRun": STEERING,
    f"{OPERATIONS}ResumeRun": STEERING,
    f"{OPERATIONS}CancelRun": STEERING,
    f"{OPERATIONS}ArchiveRun": STEERING,
    f"{OPERATIONS}UnarchiveRun": STEERING,
    f"{OPERATIONS}AskRewards": STEERING,
    f"{OPERATIONS}GetRewards": MANAGING,  # rewards show what groups are predicted to prefer
    f"{OPERATIONS}GetRun": Rule(ANY),
    f"{OPERATIONS}ListRuns": Rule(ANY),
    f"{OPERATIONS}GetRound": Rule(ANY),
    f"{OPERATIONS}ListRounds": Rule(ANY),
    f"{OPERATIONS}ListEvaluations": Rule(ANY),
    f"{OPERATIONS}WatchRun": Rule(ANY),
    f"{OPERATIONS}GetModel": _only(CLIENT, ADMIN),
    f"{OPERATIONS}ListMembers": MANAGING,  # it shows keys, dates and open invites
    f"{OPERATIONS}CreateInvite": MANAGING,
    f"{OPERATIONS}ApproveMember": MANAGING,
    f"{OPERATIONS}RevokeMember": MANAGING,
    f"{OPERATIONS}ResetPeerKey": MANAGING,
    f"{OPERATIONS}CreatePageLink": Rule(PAGE.roles, audited=True),
    f"{OPERATIONS}ListAuditEvents": _only(CLIENT, ADMIN),  # a client reads the entries that concern it
    f"{ENROLMENT}Renew": Rule(ANY, refusals_audited=True),
    f"{ENROLMENT}Join": Rule(frozenset()),  # it is answered on the enrolment port only
    f"{ENROLMENT}GetMembership": Rule(frozenset()),
    f"{HEALTH}Check": Rule(ANY),
    f"{HEALTH}List": Rule(ANY),
    f"{HEALTH}Watch": Rule(ANY),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule(ANY),
}


def check_role(principal: Principal, method: str) -> Rule:
    """Returns the rule of a gRPC method.

    Raises RoleForbids if the principal's role may not call the method, or if the method has no rule.
    """
    return _check(RULES.get(method), principal, method.rpartition("/")[2])


def check_page(principal: Principal) -> None:
    """Raises RoleForbids if the principal's role may not read the web page from another machine."""
    _check(PAGE, principal, "the page")


def _check(rule: Rule | None, principal: Principal, rpc: str) -> Rule:
    """Returns the rule. Raises RoleForbids if it does not name the principal's role, or if there is no rule."""
    if rule is None or principal.role not in rule.roles:
        allowed = ", ".join(sorted(rule.roles)) if rule is not None else ""
        raise RoleForbids(name=principal.name, role=principal.role, rpc=rpc, allowed=allowed or "nobody on this port")
    return rule


def may_read_audit(principal: Principal) -> bool:
    """Returns whether the member may read the whole audit log on the page: an administrator, as by ListAuditEvents."""
    return principal.role is ADMIN
