"""A look at the connected clients reports those that matter to the run, and no others."""

from dataclasses import replace
from typing import Any

import pytest
from support.counted_calls import GROWTH, calls_of
from support.round_policies import TWO_OF_THREE

from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RunId
from pluralllm.common.words.reward_weights import RewardAggregation
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.looking import MAX_SLOTS_LOST, needs_look, sightings, willing
from pluralllm.server.rounds.machine import step
from pluralllm.server.rounds.state import Phase, Run

ANN, BEN, CAT, DAN = (ClientId(name) for name in ("ann", "ben", "cat", "dan"))


def a_run(phase: Phase, **changes: Any) -> Run:
    run = Run(RunId("r"), 7, 4, TWO_OF_THREE, 0, Digest("d0"))
    return replace(run, **{"phase": phase, "evaluated": ModelVersion(0), **changes})


def lost(client: ClientId, *, permanent: bool = False) -> ev.PlaceLost:
    return ev.PlaceLost(1.0, client, "gone", permanent)


def test_a_waiting_run_hears_of_newcomers_once_and_of_everybody_who_may_train() -> None:
    run = a_run(Phase.WAITING, roster=(ANN,), excluded=(lost(DAN, permanent=True),))
    joined, seen = sightings(run, 5.0, (ANN, BEN, DAN), (CAT,))
    assert joined == ev.ClientsJoined(5.0, (BEN, CAT))
    assert seen == ev.ClientsSeen(5.0, (ANN, BEN, DAN), ())
    after, effects = step(run, joined)
    assert (after, effects) == (replace(run, roster=(ANN, BEN, CAT)), ())
    assert sightings(after, 6.0, (ANN, BEN), (CAT,)) == (ev.ClientsSeen(6.0, (ANN, BEN), ()),)


@pytest.mark.parametrize("changes", [{"paused": True}, {"rewards": RewardAggregation()}])
def test_a_run_that_gathers_nobody_hears_of_newcomers_alone(changes: dict[str, Any]) -> None:
    run = a_run(Phase.WAITING, **changes)
    assert sightings(run, 5.0, (ANN,), (BEN,)) == (ev.ClientsJoined(5.0, (ANN, BEN)),)


def test_a_run_with_a_free_slot_hears_of_clients_that_may_take_it() -> None:
    failing = (lost(CAT),) * MAX_SLOTS_LOST
    run = a_run(Phase.COLLECTING, slots=2, cohort=(ANN, BEN), away=(BEN,), losses=(lost(BEN), *failing))
    assert sightings(run, 5.0, (ANN, BEN, CAT, DAN), (ClientId("eve"),)) == (ev.ClientsSeen(5.0, (BEN, DAN), ()),)
    assert sightings(run, 5.0, (ANN, CAT), ()) == ()
    assert sightings(replace(run, excluded=(lost(DAN, permanent=True),)), 5.0, (ANN, DAN), ()) == ()
    asks = replace(run, rewards=RewardAggregation())
    assert sightings(asks, 5.0, (), (DAN,)) == (ev.ClientsSeen(5.0, (), (DAN,)),)


def test_a_run_hears_that_nobody_else_can_come() -> None:
    waiting = a_run(Phase.WAITING, roster=(ANN,))
    assert sightings(waiting, 5.0, (ANN,), (), nobody_else=True) == (ev.ClientsSeen(5.0, (ANN,), (), nobody_else=True),)
    collecting = a_run(Phase.COLLECTING, slots=2, cohort=(ANN, BEN), away=(BEN,), excluded=(lost(BEN, permanent=True),))
    assert sightings(collecting, 5.0, (BEN,), (), nobody_else=True) == (ev.ClientsSeen(5.0, (), (), nobody_else=True),)


def test_an_evaluation_hears_of_clients_that_it_has_not_asked() -> None:
    run = a_run(Phase.EVALUATING, cohort=(ANN, BEN), reported=(ANN,), roster=(ANN, BEN))
    assert sightings(run, 5.0, (ANN, CAT), (DAN,)) == (ev.ClientsSeen(5.0, (CAT,), (DAN,)),)


@pytest.mark.parametrize(
    "run",
    [
        *(a_run(phase) for phase in (Phase.CREATED, Phase.AGGREGATING, Phase.ENDED)),
        a_run(Phase.COLLECTING, slots=1, cohort=(ANN,)),
    ],
)
def test_a_run_that_needs_nobody_hears_of_nobody(run: Run) -> None:
    assert not needs_look(run)
    assert sightings(run, 5.0, (BEN,), (CAT,)) == ()


@pytest.mark.parametrize("phase", [Phase.CREATED, Phase.ENDED])
def test_nobody_joins_a_run_that_has_not_begun_or_is_over(phase: Phase) -> None:
    run = a_run(phase)
    assert step(run, ev.ClientsJoined(5.0, (ANN,))) == (run, ())


def test_an_excluded_client_and_one_that_is_known_do_not_join() -> None:
    run = a_run(Phase.WAITING, roster=(ANN,), excluded=(lost(BEN, permanent=True),))
    after, _ = step(run, ev.ClientsJoined(5.0, (ANN, BEN)))
    assert after is run


def test_clients_that_come_one_after_the_other_are_named_once_each() -> None:
    def names_written(number: int) -> int:
        run, written = a_run(Phase.WAITING, policy=TWO_OF_THREE.model_copy(update={"min_clients": number + 1})), 0
        clients = tuple(ClientId(f"client-{position:03}") for position in range(number))
        for count in range(1, number + 1):
            for event in sightings(run, 5.0, clients[:count], ()):
                after, _ = step(run, event)
                if after != run:
                    written += sum(map(str(ev.event_to_facts(event)).count, clients))
                run = after
        return written

    assert names_written(40) == 40


def test_the_cost_of_finding_willing_clients_grows_with_their_number() -> None:
    def cost(number: int) -> int:
        clients = tuple(ClientId(f"client-{position:03}") for position in range(number))
        run = a_run(Phase.COLLECTING, slots=number, cohort=clients, away=clients, losses=tuple(map(lost, clients)))
        return calls_of(lambda: willing(run, clients))

    assert cost(400) <= GROWTH * cost(200)


def test_a_round_that_no_longer_collects_needs_no_look_though_a_slot_is_free() -> None:
    run = a_run(Phase.AGGREGATING, slots=3, cohort=(ANN, BEN), away=(BEN,))
    assert run.free_slots > 0
    assert not needs_look(run)
