"""The order for an invite: what an administrator asks for, and the check of it."""

from dataclasses import dataclass

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.text.printable import GROUP_HELP, is_group_name
from pluralllm.common.words.ids import ID_HELP, is_id
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.members.access import ALL_RUNS

MAX_TTL_S = 24 * 3600.0
MAX_RUNS = 100  # in one invite
MAX_EXAMPLES = 10**9  # the largest limit that an invite may set


@dataclass(frozen=True, slots=True)
class InviteOrder:
    """The invite that an administrator asks for."""

    name: str
    role: MemberRole
    group: str = ""
    group_role: GroupRole | None = None
    ttl_s: float = MAX_TTL_S
    needs_approval: bool = False
    runs: tuple[str, ...] = ()  # ids of the runs that an observer may read, or ALL_RUNS
    max_examples: int = 0  # largest number of questions that the client may state; 0 for DEFAULT_MAX_EXAMPLES


def check_order(order: InviteOrder) -> None:
    """Raises InvalidArgument if a field of the order is not allowed."""
    if not is_id(order.name):
        raise InvalidArgument(field="name", problem=f"is {order.name!r}, allowed: {ID_HELP}")
    if not 0 < order.ttl_s <= MAX_TTL_S:
        raise InvalidArgument(field="ttl", problem=f"is {order.ttl_s:g} s, must be above 0 and at most 24 h")
    if order.group and not is_group_name(order.group):
        raise InvalidArgument(field="group", problem=f"must be {GROUP_HELP}")
    if order.role is not MemberRole.CLIENT and (order.group or order.group_role is GroupRole.HELD_OUT):
        raise InvalidArgument(field="group", problem=f"is for clients; {order.name} is to be {order.role}")
    if order.role is not MemberRole.OBSERVER and order.runs:
        raise InvalidArgument(field="runs", problem=f"are for observers; {order.name} is to be {order.role}")
    if order.role is MemberRole.OBSERVER and not order.runs:
        problem = "must name the runs that the observer may read (--run RUN, repeated), or be * for every run"
        raise InvalidArgument(field="runs", problem=problem)
    if len(order.runs) > MAX_RUNS or not all(run == ALL_RUNS or is_id(run) for run in order.runs):
        raise InvalidArgument(field="runs", problem=f"are at most {MAX_RUNS} ids of runs ({ID_HELP}), or *")
    if not 0 <= order.max_examples <= MAX_EXAMPLES:
        raise InvalidArgument(field="max_examples", problem=f"is {order.max_examples}, must be 1 to {MAX_EXAMPLES}")
    if order.role is not MemberRole.CLIENT and order.max_examples:
        raise InvalidArgument(field="max_examples", problem=f"is for clients; {order.name} is to be {order.role}")
