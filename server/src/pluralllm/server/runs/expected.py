"""Decides whether anybody else can come to a run, so that no run waits for members that are revoked or that nobody has invited.

A coordinator with certificates knows everybody who can come: its members and the holders of its open invites. In plain text any
client may come, so that a run waits as its spec says.
"""

from collections.abc import Callable, Collection, Iterable

from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.storage.membership import InviteRecord, Member

Possible = Callable[[], Iterable[Member | InviteRecord]]  # everybody who may call Hello now or after joining


class Expected:
    """The clients that a run may still expect."""

    def __init__(self, possible: Possible | None) -> None:
        """Keeps whom to ask. possible: returns the clients that can come; None if nobody knows them, as in plain text."""
        self._possible = possible

    def nobody_but(self, run: LiveRun, trainers: int, idle: Collection[ClientId]) -> bool:
        """Returns whether a wait is useless: no client can come for the run's next step, or for the free slot of its open round.

        trainers: number of clients of which the next round may be drawn; those of held-out groups are among them if it is the
        closing round. idle: the connected clients without a task; those among them that cannot train are not waited for. The
        answer is False where the run does not wait for clients, since it costs a pass over all members. A client that is excluded
        from the run comes back only if a person restarts it.
        """
        state = run.state
        if self._possible is None or state.rewards is not None or state.paused:
            return False
        waits = trainers >= state.policy.min_clients if state.phase is Phase.WAITING else state.has_all_it_can_get
        if not waits:
            return False
        here = {*idle, *state.excluded_clients, *(receipt.client for receipt in state.receipts)}
        is_first = state.phase is Phase.WAITING and state.evaluated is None
        takes_all = is_first or state.waits_to_close
        awaited = (GroupRole.TRAIN, GroupRole.HELD_OUT) if takes_all else (GroupRole.TRAIN,)
        return all(
            one.name in here or run.spec.groups.role_of(one.group, one.group_role) not in awaited
            for one in self._possible()
        )
