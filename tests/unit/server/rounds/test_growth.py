"""The work of the round machine for each event does not depend on the number of clients."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from support.counted_calls import GROWTH, calls_of

from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.private_rounds import PrivateRounds
from pluralllm.common.words.spec import GroupRole, RoundPolicy
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.looking import sightings
from pluralllm.server.rounds.machine import step
from pluralllm.server.rounds.sorted_clients import holds, inserted, receipt_of, removed, with_receipt
from pluralllm.server.rounds.state import Phase, Run

Clients = tuple[ClientId, ...]
ANN, BEN, CAT = (ClientId(name) for name in ("ann", "ben", "cat"))


def clients_of(number: int) -> Clients:
    return tuple(ClientId(f"client-{position:04}") for position in range(number))


def collecting(clients: Clients) -> Run:
    """Returns a run with an open round of all clients."""
    policy = RoundPolicy(min_clients=len(clients), target_clients=len(clients), max_extensions=2)
    run = Run(RunId("r"), 7, 4, policy, 0, Digest("d0"), phase=Phase.WAITING, evaluated=ModelVersion(0))
    return step(run, ev.ClientsSeen(10.0, clients, ()))[0]


def evaluating(clients: Clients) -> Run:
    return replace(collecting(clients), phase=Phase.EVALUATING, evaluated=None, slots=0)


def updates(clients: Clients) -> Sequence[ev.Event]:
    receipts = [ev.Receipt(client, Digest(client), 10) for client in clients]
    return [ev.UpdateArrived(11.0, RoundNumber(1), ModelVersion(0), receipt) for receipt in receipts]


def scores(clients: Clients) -> Sequence[ev.Event]:
    return [
        ev.EvaluationArrived(
            11.0, ev.Score(client, GroupName(client), GroupRole.TRAIN, ModelVersion(0), 0.5, 0.5, None, 5)
        )
        for client in clients
    ]


def losses(clients: Clients) -> Sequence[ev.Event]:
    return [ev.PlaceLost(11.0, client, "silent", permanent=False) for client in clients]


@pytest.mark.parametrize(
    ("begun", "events"), [(collecting, updates), (evaluating, scores), (collecting, losses), (evaluating, losses)]
)
def test_twice_as_many_clients_cost_twice_as_many_calls(
    begun: Callable[[Clients], Run], events: Callable[[Clients], Sequence[ev.Event]]
) -> None:
    def play(number: int) -> int:
        clients = clients_of(number)
        run, arriving = begun(clients), events(clients)[:-1]  # the last one ends the round, once for all clients

        def steps() -> None:
            after = run
            for event in arriving:
                after, _ = step(after, event)

        return calls_of(steps)

    assert play(400) <= GROWTH * play(200)


def test_a_look_at_idle_clients_costs_little_while_no_slot_is_free() -> None:
    clients = clients_of(400)
    run = collecting(clients)
    for event in updates(clients)[:-1]:
        run, _ = step(run, event)
    assert calls_of(lambda: step(run, ev.ClientsSeen(12.0, clients[:-1], ()))) < 50


def test_a_look_at_twice_as_many_idle_clients_costs_twice_as_many_calls_in_a_private_round() -> None:
    members = tuple(ev.SentMessage(client, Digest("m")) for client in clients_of(100))
    begun = replace(
        collecting(clients_of(100)), phase=Phase.CONFIRMING, private=PrivateRounds(), keyed=members, dealt=members
    )
    run = replace(begun, away=clients_of(50))

    def cost(number: int) -> int:
        idle = clients_of(number)
        return calls_of(lambda: sightings(run, 12.0, idle, ()))

    assert cost(2000) <= GROWTH * cost(1000)
    assert cost(2000) < 10_000


def test_sorted_clients_are_found_added_and_taken_away() -> None:
    both = (ANN, CAT)
    assert [holds(both, client) for client in (ANN, BEN, CAT, ClientId("zoe"))] == [True, False, True, False]
    assert [inserted(both, BEN), inserted((), BEN)] == [(ANN, BEN, CAT), (BEN,)]
    assert [removed(both, ANN), removed(both, CAT)] == [(CAT,), (ANN,)]
    assert all(one is both for one in (inserted(both, CAT), removed(both, BEN), removed(both, ClientId("zoe"))))


def test_receipts_stay_sorted_by_client() -> None:
    ann, ben, cat = (ev.Receipt(client, Digest(client), 10) for client in (ANN, BEN, CAT))
    assert with_receipt((ann, cat), ben) == (ann, ben, cat)
    assert with_receipt((), ben) == (ben,)
    found = [receipt_of((ann, cat), client) for client in (ANN, BEN, CAT, ClientId("zoe"))]
    assert found == [ann, None, cat, None]
