"""Decides which of the connected clients a run has to know about, after a look at them.

A look finds every client that is connected and has no task. Most of them are no news for the run. The event log keeps each
event for ever, so an event names only clients that matter: newcomers, clients that may take a free slot, and the clients of whom
the next round is drawn.

phase of the run                       what a look reports
----------------------------------------------------------------------------------------------------------------------
WAITING                                ClientsJoined with the newcomers; ClientsSeen with all clients that train, unless
                                       the run is paused or asks for rewards; in a run that is to close, with all clients
COLLECTING, a slot is free             ClientsSeen with the clients that may take the slot; also with none, if nobody can come
KEYING, a slot is free                 the same
a later step of a private round        ClientsSeen with the members that have lost their slots and are back
EVALUATING                             ClientsSeen with the clients that have not been asked yet
any other phase                        nothing: the look is not needed
"""

from collections import Counter
from collections.abc import Sequence

from pluralllm.common.words.ids import ClientId
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.private import step_s
from pluralllm.server.rounds.sorted_clients import holds
from pluralllm.server.rounds.state import Phase, Run

# By one client until the round's deadline: a client that fails at once must not be assigned a slot again and again.
MAX_SLOTS_LOST = 3


def needs_look(run: Run) -> bool:
    """Returns whether it matters to the run which clients are connected and have no task."""
    if run.phase is Phase.COLLECTING or run.is_private_round:
        return run.free_slots > 0
    return run.phase in (Phase.WAITING, Phase.EVALUATING)


def sightings(
    run: Run,
    at_s: float,
    trainers: Sequence[ClientId],
    held_out: Sequence[ClientId],
    roster_head: str = "",
    *,
    nobody_else: bool = False,
) -> tuple[ev.Event, ...]:
    """Returns the events that report a look at the connected clients without a task.

    `trainers` are the clients that train in this run, and `held_out` are those of held-out groups. Both are sorted.
    `roster_head` is the head of the roster of peer keys; without it, no private round opens. `nobody_else` says that no other
    client can come that the run would wait for.
    """
    if not needs_look(run):
        return ()
    if run.phase is Phase.WAITING:
        newcomers = tuple(sorted({*trainers, *held_out} - set(run.roster) - run.excluded_clients))
        joined = (ev.ClientsJoined(at_s, newcomers),) if newcomers else ()
        if run.paused or run.rewards is not None:
            return joined
        head = "" if run.private is None else roster_head
        evaluated_only = tuple(held_out) if run.waits_to_close else ()
        return (*joined, ev.ClientsSeen(at_s, tuple(trainers), evaluated_only, head, nobody_else))
    takes_held_out = run.phase is Phase.EVALUATING or run.rewards is not None or run.is_closing
    asked = willing(run, held_out) if takes_held_out else ()
    seen = ev.ClientsSeen(at_s, willing(run, trainers), asked, nobody_else=nobody_else)
    return (seen,) if seen.trainers or seen.held_out or nobody_else else ()


def willing(run: Run, clients: Sequence[ClientId]) -> tuple[ClientId, ...]:
    """Returns those of the clients that may get a slot in the cohort.

    A client must have no slot now and must have delivered neither an update nor scores. It must also have lost fewer than
    MAX_SLOTS_LOST slots since the round opened or its deadline was extended: what made a client fail may have passed, and
    without it the round may never reach its quorum. And it must not be excluded from the run.

    After the first step of a private round, only the members that have lost their slots may take them again.
    """
    begun_s = None
    if run.deadline_s is not None and (run.phase is Phase.COLLECTING or run.is_private_round):
        begun_s = run.deadline_s - (run.policy.deadline_s if run.private is None else step_s(run))
    has_slot = set(run.cohort) - set(run.away)
    losses = Counter(loss.client for loss in run.losses if begun_s is None or loss.at_s >= begun_s)
    failing = {client for client, number in losses.items() if number >= MAX_SLOTS_LOST}
    left_out = has_slot | failing | run.excluded_clients
    if run.is_private_round and run.phase is not Phase.KEYING:
        returning = run.returning
        clients = [client for client in clients if holds(returning, client)]
    return tuple(client for client in clients if client not in left_out)
