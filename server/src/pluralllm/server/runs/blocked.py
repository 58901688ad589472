"""Decides whether a run can go on by itself, or only after the owners of some clients have acted.

A client that has failed for good gets no task of the run until it calls Hello again, which its daemon does when its owner has
mended something or has restarted it. If too few clients are left, no time that passes opens another round. An open round, the
last evaluation and the wait for a closing round end at their deadlines by themselves. The module is pure.
"""

from collections.abc import Collection, Sequence

from pluralllm.common.text.several import shown
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.storage.store import ClientRecord

SHOWN_NAMES = 5
LEFT_OUT = "takes no part until its owner has acted"  # said of one client


def why_blocked(run: LiveRun, members: Sequence[ClientRecord], revoked: Collection[ClientId]) -> str:
    """Returns why the run cannot go on before owners of clients act; "" if it can go on by itself.

    members: all clients that have ever connected. revoked: those of them that are no members any more. A client that is not
    connected may come by itself, so it counts as one that can take part. The text has no reason of a client: not every reader of
    the run may know it.
    """
    state = run.state
    is_between = state.phase in (Phase.WAITING, Phase.EVALUATING) and state.round < state.rounds
    if not state.excluded or state.paused or state.rewards is not None or not is_between:
        return ""
    left_out, needed = state.excluded_clients, state.policy.min_clients
    roles = {one.client: run.spec.groups.role_of(one.group, one.role) for one in members if one.client not in revoked}
    trainers = {client for client, role in roles.items() if role is GroupRole.TRAIN}
    able, unable = len(trainers - left_out), sorted(trainers & left_out)
    if able >= needed or not unable:
        return ""
    return f"a round needs {needed} training clients, and {able} can take part. {_take_no_part(unable)}"


def _take_no_part(left_out: Sequence[ClientId]) -> str:
    if len(left_out) == 1:
        return f"{left_out[0]} {LEFT_OUT}"
    return f"{shown(left_out, SHOWN_NAMES)} take no part until their owners have acted"
