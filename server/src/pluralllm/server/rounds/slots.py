"""Who has a place in a round or evaluation, who lost it, who is left out: what the round machine knows of clients. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from pluralllm.common.words.ids import ClientId
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.cohort import draw_cohort
from pluralllm.server.rounds.state import Run

MAX_PLACES_LOST = 3  # by one client in one round: a client that fails at once must not spin
MAX_REFUSALS_KEPT = 20
MAX_REFUSALS_EACH = 5  # of one client in one round: a hostile client must not fill the log


def fill_places(run: Run, clients: Sequence[ClientId]) -> Run:
    """Free places of the open round go to whoever of these may have one, drawn by the run's seed."""
    free = run.places - len(run.receipts) - len(run.active)
    willing = [client for client in clients if may_have_place(run, client)]
    return give_places(run, draw_cohort(run.seed, run.round, willing, free)) if free > 0 and willing else run


def may_have_place(run: Run, client: ClientId) -> bool:
    """It has none, has not delivered, and has not failed too often."""
    done = client in run.reported or any(receipt.client == client for receipt in run.receipts)
    failures = sum(loss.client == client for loss in run.losses)
    return not done and client not in run.active and failures < MAX_PLACES_LOST


def give_places(run: Run, clients: Sequence[ClientId]) -> Run:
    """To all of them."""
    away = tuple(client for client in run.away if client not in clients)
    return replace(run, cohort=tuple(sorted({*run.cohort, *clients})), away=away)


def note_refusal(run: Run, event: ev.UpdateRefused) -> Run:
    """Kept for people to see, the newest of them."""
    same = sum(note.client == event.client and note.round == event.round for note in run.refusals)
    if event in run.refusals or same >= MAX_REFUSALS_EACH:
        return run
    return replace(run, refusals=(*run.refusals, event)[-MAX_REFUSALS_KEPT:])


def readmit(run: Run, event: ev.ClientReturned) -> Run:
    """A client that was left out takes part again."""
    if not run.is_excluded(event.client):
        return run
    return replace(run, excluded=tuple(loss for loss in run.excluded if loss.client != event.client))


def take_place(run: Run, event: ev.PlaceLost) -> Run:
    """Without the client's place; it leaves the roster if it is gone, and the run if it fails for good.

    The very same run if nothing changes.
    """
    before = run
    had_place = event.client in run.active
    if had_place:
        run = replace(run, away=tuple(sorted((*run.away, event.client))), losses=(*run.losses, event))
    if event.permanent and not run.is_excluded(event.client):
        run = replace(run, excluded=(*run.excluded, event))
    if event.client in run.roster and (event.permanent or not had_place):
        run = replace(run, roster=tuple(client for client in run.roster if client != event.client))
    return before if run == before else run
