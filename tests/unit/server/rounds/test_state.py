"""The properties of a run's state, in plain and in private rounds, phase by phase."""

from dataclasses import replace

import pytest

from pluralllm.common.words.ids import ClientId, Digest, RoundNumber, RunId
from pluralllm.common.words.private_rounds import PrivateRounds
from pluralllm.common.words.spec import RoundPolicy
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase, Run

NAMES = ANN, BEN, CAT, DAN, EVE = tuple(ClientId(name) for name in ("ann", "ben", "cat", "dan", "eve"))


def messages(*clients: ClientId) -> tuple[ev.SentMessage, ...]:
    return tuple(ev.SentMessage(client, Digest("d")) for client in clients)


# Five have slots, eve is away; four have sent keys, three have dealt (eve not), and two have delivered.
PRIVATE = Run(
    RunId("r"),
    7,
    4,
    RoundPolicy(min_clients=2, target_clients=6),
    0,
    Digest("d0"),
    phase=Phase.COLLECTING,
    round=RoundNumber(1),
    slots=6,
    cohort=NAMES,
    keyed=messages(ANN, BEN, CAT, EVE),
    dealt=messages(ANN, BEN, CAT),
    receipts=(ev.Receipt(ANN, Digest("u"), 1), ev.Receipt(BEN, Digest("u"), 1)),
    away=(EVE,),
    private=PrivateRounds(colluders=1),
)
PLAIN = replace(PRIVATE, private=None, keyed=(), dealt=())


@pytest.mark.parametrize("phase", Phase)
def test_a_sum_is_fixed_from_the_confirmations_on_in_private_rounds_only(phase: Phase) -> None:
    fixed = phase in (Phase.CONFIRMING, Phase.UNMASKING, Phase.AGGREGATING)
    run = replace(PRIVATE, phase=phase)
    assert run.summed_receipts == (run.receipts if fixed else ())
    assert run.summed == ((ANN, BEN) if fixed else ())
    assert replace(PLAIN, phase=phase).summed == ()


def test_who_has_sent_keys_may_return_while_shares_are_dealt_and_who_has_dealt_later() -> None:
    for phase in (Phase.SHARING, Phase.COLLECTING, Phase.CONFIRMING, Phase.UNMASKING):
        assert replace(PRIVATE, phase=phase).returning == ((EVE,) if phase is Phase.SHARING else ())
        assert replace(PRIVATE, phase=phase, away=(CAT, DAN)).returning == (CAT,)


def test_members_of_a_private_round_keep_their_slots_when_they_have_delivered() -> None:
    assert (PRIVATE.active, PRIVATE.active_count) == ((ANN, BEN, CAT, DAN), 4)
    assert (PLAIN.active, PLAIN.active_count) == ((CAT, DAN), 2)
    assert [client for client in NAMES if PRIVATE.is_active(client)] == list(PRIVATE.active)
    assert [client for client in NAMES if PLAIN.is_active(client)] == list(PLAIN.active)


def test_free_slots_are_for_anybody_while_keys_are_collected_and_then_for_those_that_return() -> None:
    assert replace(PRIVATE, phase=Phase.KEYING, keyed=(), dealt=(), receipts=()).free_slots == 2
    assert replace(PRIVATE, phase=Phase.SHARING).free_slots == 1
    assert PRIVATE.free_slots == 0
    assert replace(PRIVATE, away=(BEN, CAT, EVE)).free_slots == 2
    assert PLAIN.free_slots == 2


def test_only_a_plain_round_with_a_quorum_and_nobody_at_work_has_all_it_can_get() -> None:
    done = replace(PLAIN, quorum_s=3.0, away=(CAT, DAN, EVE))
    assert done.has_all_it_can_get
    assert not replace(done, quorum_s=None).has_all_it_can_get
    assert not replace(done, away=(CAT, EVE)).has_all_it_can_get
    assert not replace(done, phase=Phase.EVALUATING).has_all_it_can_get
    assert not replace(done, private=PRIVATE.private, away=NAMES).has_all_it_can_get


def test_a_run_asks_for_nothing_that_its_format_does_not_name() -> None:
    run = Run(RunId("r"), 7, 4, RoundPolicy(), 0, Digest("d0"))
    assert {run.limits_members, run.gives_up_small_sums, run.closes, run.archived, run.paused} == {False}
    assert (PLAIN.threshold, PLAIN.quorum) == (0, 2)
    assert (PRIVATE.threshold, PRIVATE.quorum) == (3, 3)


@pytest.mark.parametrize("phase", Phase)
def test_a_run_waits_for_its_closing_round_after_its_rounds_only(phase: Phase) -> None:
    for number in (3, 4, 5):
        run = replace(PRIVATE, phase=phase, round=RoundNumber(number), closes=True)
        assert run.waits_to_close == (phase is Phase.WAITING and number == 4)
        assert run.is_closing == (number == 5)
        assert not replace(run, closes=False).waits_to_close
