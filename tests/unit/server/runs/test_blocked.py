"""A run says that it stands still exactly if too few clients can take part before owners of clients act."""

from typing import Any

import pytest
from support.run_states import with_state
from unit.server.runs.test_overview import collecting_run

from pluralllm.common.words.ids import ClientId, GroupName
from pluralllm.common.words.reward_weights import RewardAggregation
from pluralllm.common.words.spec import GroupRole, RoundPolicy
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.blocked import why_blocked
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.overview import ParticipantState, participants, what_next
from pluralllm.server.runs.sessions import Session
from pluralllm.server.storage.store import ClientRecord

ANN, BEN, CAT, EVE = (ClientId(name) for name in ("ann", "ben", "cat", "eve"))
HELD_OUT = ClientId("zoe")
NO_MODEL = "MODEL_UNAVAILABLE: Embedding model m cannot be loaded: it is gone. Give its local folder."


def failed(*clients: ClientId, reason: str = NO_MODEL) -> tuple[ev.PlaceLost, ...]:
    return tuple(ev.PlaceLost(1.0, client, reason, permanent=True) for client in clients)


def run_with(excluded: tuple[ev.PlaceLost, ...], **changes: Any) -> LiveRun:
    """Returns a run that waits for three training clients, and has left out some."""
    facts = {"phase": Phase.WAITING, "rounds": 3, "cohort": (), "away": (), "losses": (), **changes}
    policy = RoundPolicy(min_clients=3, target_clients=3)
    return with_state(collecting_run(), policy=policy, excluded=excluded, **facts)


def members(*clients: ClientId) -> list[ClientRecord]:
    roles = {HELD_OUT: GroupRole.HELD_OUT}
    return [ClientRecord(c, GroupName(c), roles.get(c, GroupRole.TRAIN), 5, "1", 0.0, 0.0) for c in clients]


EVERYBODY = members(ANN, BEN, CAT, HELD_OUT)


@pytest.mark.parametrize(
    ("excluded", "changes", "revoked", "text"),
    [
        ((), {}, (), ""),
        (failed(HELD_OUT), {}, (), ""),
        (
            failed(ANN),
            {},
            (),
            "a round needs 3 training clients, and 2 can take part. ann takes no part until its owner has acted",
        ),
        (
            failed(ANN, BEN, CAT),
            {},
            (),
            "and 0 can take part. ann, ben, cat take no part until their owners have acted",
        ),
        (failed(ANN, BEN), {}, (BEN,), "and 1 can take part. ann takes no part"),
        (failed(ANN, EVE), {}, (), "and 2 can take part. ann takes no part"),
        (failed(ANN), {"phase": Phase.EVALUATING}, (), "and 2 can take part"),
        (failed(ANN), {"phase": Phase.EVALUATING, "round": 3}, (), ""),  # the last one
        (failed(ANN), {"round": 3}, (), ""),  # it waits for its closing round
        (failed(ANN), {"phase": Phase.COLLECTING}, (), ""),
        (failed(ANN), {"phase": Phase.AGGREGATING}, (), ""),
        (failed(ANN), {"paused": True}, (), ""),
        (failed(ANN), {"rewards": RewardAggregation()}, (), ""),
    ],
)
def test_a_run_stands_still_if_too_few_clients_can_take_part(
    excluded: tuple[ev.PlaceLost, ...], changes: dict[str, Any], revoked: tuple[ClientId, ...], text: str
) -> None:
    blocked = why_blocked(run_with(excluded, **changes), EVERYBODY, revoked)
    assert text in blocked
    assert bool(text) == bool(blocked)
    assert "MODEL" not in blocked  # an observer reads the sentence, but no client's report


def test_a_long_list_of_clients_is_cut() -> None:
    names = [ClientId(f"c{number}") for number in range(9)]
    blocked = why_blocked(run_with(failed(*names)), members(*names), ())
    assert "c0, c1, c2, c3, c4 and 4 more take no part" in blocked


def test_a_client_that_may_come_by_itself_is_waited_for() -> None:
    assert why_blocked(run_with(failed(ANN)), members(ANN, BEN, CAT, EVE), ()) == ""


def test_the_next_step_of_a_run_that_stands_still_says_so() -> None:
    run = run_with(failed(ANN))
    assert what_next(run, "", 2, 9.0, "a reason").startswith("stands still: a reason.")
    assert what_next(run, "the disk is full.", 2, 9.0, "a reason").startswith("stuck: the disk is full.")


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        (
            NO_MODEL,
            f"takes no part: {NO_MODEL} Its owner mends that and restarts the client (pluralllm explain MODEL_UNAVAILABLE)",
        ),
        (
            "CONSENT_NEEDED: This partner has not consented.",
            "takes no part: CONSENT_NEEDED: This partner has not consented. Its owner mends that; the client then takes part "
            "by itself (pluralllm explain CONSENT_NEEDED)",
        ),
        ("it has dealt wrongly", "takes no part: it has dealt wrongly. Its owner mends that and restarts the client"),
    ],
)
def test_a_client_that_takes_no_part_shows_why_and_what_its_owner_does(reason: str, shown: str) -> None:
    run = run_with(failed(ANN, reason=reason))
    sessions = {ANN: Session(ANN, "one", GroupName("g"), GroupRole.TRAIN, 9, "1", 9.0)}
    [ann] = participants(run, members(ANN), sessions, {}, 9.0)
    assert (ann.state, ann.reason, ann.observed) == (
        ParticipantState.LOST,
        shown,
        "takes no part until its owner has acted",
    )
    ended = run_with(failed(ANN, reason=reason), phase=Phase.ENDED)
    [ann] = participants(ended, members(ANN), sessions, {}, 9.0)
    assert ann.reason == reason
