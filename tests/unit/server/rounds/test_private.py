"""A private round: each step ends as its table says, near each limit of number and time, and whatever comes late or twice."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pluralllm.common.errors.private_rounds import WrongStep
from pluralllm.common.errors.tree import AlreadyCommitted, InvalidArgument, LeaseLost, RoundClosed
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.private_rounds import PrivateRounds
from pluralllm.common.words.spec import RoundPolicy
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.looking import needs_look, sightings, willing
from pluralllm.server.rounds.machine import step
from pluralllm.server.rounds.state import EXCHANGING, WITH_OPEN_ROUND, Outcome, Phase, Run

ANN, BEN, CAT, DAN, EVE, FAY, GUS = (ClientId(name) for name in ("ann", "ben", "cat", "dan", "eve", "fay", "gus"))
SIX = (ANN, BEN, CAT, DAN, EVE, FAY)
FIVE = SIX[:5]
ONE, ZERO = RoundNumber(1), ModelVersion(0)
POLICY = RoundPolicy(
    min_clients=5,
    target_clients=6,
    gather_s=5,
    deadline_s=100,
    grace_after_quorum_s=20,
    max_extensions=2,
    evaluate_every=4,
)
# Six members: four of them must confirm and reveal, and five updates are a quorum.
PRIVATE = PrivateRounds(colluders=1, step_s=60)
Message = Callable[..., ev.MessageArrived]
Arrival = Callable[..., ev.Event]
Begun = tuple[tuple[Run, Arrival], ...]


def a_run(policy: RoundPolicy = POLICY, **changes: Any) -> Run:
    run = Run(RunId("r"), 7, 4, policy, 0, Digest("d0"), phase=Phase.WAITING, evaluated=ZERO, private=PRIVATE)
    return replace(run, **changes)


def policy(**changes: Any) -> RoundPolicy:
    return POLICY.model_copy(update=changes)


def seen(at_s: float, *trainers: ClientId, head: str = "h1") -> ev.ClientsSeen:
    return ev.ClientsSeen(at_s, trainers, (), head)


def keys(client: ClientId, at_s: float = 20.0, digest: str = "k") -> ev.KeysArrived:
    return ev.KeysArrived(at_s, ONE, client, Digest(f"{digest}-{client}"))


def shares(client: ClientId, at_s: float = 30.0, digest: str = "s", least: int = 1) -> ev.SharesArrived:
    return ev.SharesArrived(at_s, ONE, client, Digest(f"{digest}-{client}"), least)


def complaint(client: ClientId, dealer: ClientId = FAY, at_s: float = 35.0, digest: str = "c") -> ev.ComplaintArrived:
    return ev.ComplaintArrived(at_s, ONE, client, Digest(f"{digest}-{client}"), dealer)


def confirmation(client: ClientId, at_s: float = 50.0, digest: str = "y") -> ev.ConfirmationArrived:
    return ev.ConfirmationArrived(at_s, ONE, client, Digest(f"{digest}-{client}"))


def reveal(client: ClientId, at_s: float = 60.0, digest: str = "r") -> ev.RevealArrived:
    return ev.RevealArrived(at_s, ONE, client, Digest(f"{digest}-{client}"))


def receipt(client: ClientId) -> ev.Receipt:
    return ev.Receipt(client, Digest(f"u-{client}"), 1)


def update(client: ClientId, at_s: float = 40.0) -> ev.UpdateArrived:
    return ev.UpdateArrived(at_s, ONE, ZERO, receipt(client), statement=f"t-{client}")


def lost(client: ClientId, *, permanent: bool = False) -> ev.PlaceLost:
    return ev.PlaceLost(45.0, client, "gone", permanent=permanent)


def fed(run: Run, *events: ev.Event) -> Run:
    for event in events:
        run, _ = step(run, event)
    return run


def keying(**changes: Any) -> Run:
    return fed(a_run(**changes), seen(10, *SIX))


def sharing(**changes: Any) -> Run:
    return fed(keying(**changes), *map(keys, SIX))


def collecting(**changes: Any) -> Run:
    return fed(sharing(**changes), *map(shares, SIX))


def confirming(**changes: Any) -> Run:
    """Returns a run whose sum has the updates of ann to eve, and fay is a dealer outside of it."""
    return fed(collecting(**changes), *map(update, FIVE), ev.ClockTicked(60.0))


def unmasking(**changes: Any) -> Run:
    return fed(confirming(**changes), *map(confirmation, SIX[:4]))


def aggregating(**changes: Any) -> Run:
    return fed(unmasking(**changes), *map(reveal, SIX[:4]))


IN_PHASES = {
    Phase.KEYING: keying,
    Phase.SHARING: sharing,
    Phase.COLLECTING: collecting,
    Phase.CONFIRMING: confirming,
    Phase.UNMASKING: unmasking,
    Phase.AGGREGATING: aggregating,
}


def test_a_private_round_goes_through_its_steps_and_ends_with_a_version() -> None:
    run, effects = step(a_run(), seen(10, *SIX))
    assert effects == (ev.OpenRound(ONE, ZERO, SIX),)
    assert (run.phase, run.since_s, run.deadline_s, run.slots, run.cohort) == (Phase.KEYING, 10, 70, 6, SIX)
    assert (run.roster_head, run.round, run.active) == ("h1", 1, SIX)
    run, effects = step(fed(run, *map(keys, FIVE)), keys(FAY))
    recorded = ev.RecordMessage(ONE, ev.RoundStep.KEYS, FAY, Digest("k-fay"))
    assert effects == (recorded, ev.FixMembers(ONE, SIX))
    assert (run.phase, run.since_s, run.deadline_s) == (Phase.SHARING, 20, 80)
    run, effects = step(fed(run, *map(shares, FIVE)), shares(FAY))
    recorded = ev.RecordMessage(ONE, ev.RoundStep.SHARES, FAY, Digest("s-fay"))
    assert effects == (recorded, ev.FixDealers(ONE, SIX))
    assert (run.phase, run.since_s, run.deadline_s) == (Phase.COLLECTING, 30, 130)
    run, effects = step(fed(run, *map(update, FIVE)), update(FAY))
    recorded = ev.RecordMessage(ONE, ev.RoundStep.UPDATE, FAY, Digest("t-fay"))
    everybody = tuple(map(receipt, SIX))
    assert effects == (ev.RecordReceipt(ONE, receipt(FAY)), recorded, ev.FixSum(ONE, everybody))
    assert (run.phase, run.since_s, run.deadline_s, run.summed) == (Phase.CONFIRMING, 40, 100, SIX)
    run, effects = step(fed(run, *map(confirmation, SIX[:3])), confirmation(DAN))
    assert effects == (ev.RecordMessage(ONE, ev.RoundStep.CONFIRMATION, DAN, Digest("y-dan")),)
    assert (run.phase, run.since_s, run.deadline_s, run.active) == (Phase.UNMASKING, 50, 110, SIX)
    run, effects = step(fed(run, *map(reveal, SIX[:3])), reveal(DAN))
    recorded = ev.RecordMessage(ONE, ev.RoundStep.REVEAL, DAN, Digest("r-dan"))
    assert effects == (recorded, ev.Average(ONE, ZERO, everybody))
    assert (run.phase, run.since_s, run.deadline_s) == (Phase.AGGREGATING, 60, None)
    run, effects = step(run, ev.ModelAveraged(70, ONE, Digest("d1"), (Digest("m1"),), transcript="p1"))
    published = ev.Publish(ONE, ModelVersion(1), Digest("d1"), everybody, (Digest("m1"),), transcript="p1")
    assert effects == (published,)
    assert run.cleared() == run, "nothing of the round is left"
    assert (run.phase, run.version) == (Phase.WAITING, 1)


def test_without_the_head_of_the_roster_no_private_round_opens() -> None:
    run, effects = step(a_run(), seen(10, *SIX, head=""))
    assert (run.phase, effects) == (Phase.WAITING, ())
    assert sightings(a_run(roster=SIX), 10, SIX, (), "h2") == (seen(10, *SIX, head="h2"),)
    assert sightings(a_run(roster=SIX, private=None), 10, SIX, (), "h2") == (seen(10, *SIX, head=""),)


@pytest.mark.parametrize(("colluders", "members", "threshold", "quorum"), [(1, 6, 4, 5), (1, 5, 4, 5), (3, 6, 5, 5)])
def test_the_quorum_is_the_greater_one_of_min_clients_and_the_threshold(
    colluders: int, members: int, threshold: int, quorum: int
) -> None:
    private = PRIVATE.model_copy(update={"colluders": colluders})
    run = fed(keying(private=private), *map(keys, SIX[:members]))
    assert (run.threshold, run.quorum) == (threshold, quorum)
    assert replace(run, policy=policy(min_clients=3)).quorum == threshold


@pytest.mark.parametrize("client", FIVE)
@pytest.mark.parametrize("message", [keys, shares, complaint, confirmation, reveal])
def test_the_same_message_again_changes_nothing_and_another_one_is_refused(message: Message, client: ClientId) -> None:
    begun = {keys: keying, shares: sharing, complaint: collecting, confirmation: confirming, reveal: unmasking}
    run, effects = step(begun[message](policy=policy(min_clients=4)), message(client))
    assert len(effects) == 1
    assert step(run, message(client)) == (run, ())
    assert step(run, message(client, at_s=77.0)) == (run, ()), "the time does not matter"
    with pytest.raises(AlreadyCommitted) as refused:
        step(run, message(client, digest="z"))
    assert (refused.value.client, refused.value.round) == (client, 1)
    closed = fed(run, ev.RunCancelled(99.0, "enough"))
    with pytest.raises(RoundClosed):
        step(closed, message(client))


@pytest.mark.parametrize("phase", IN_PHASES)
@pytest.mark.parametrize("message", [keys, shares, complaint, confirmation, reveal])
def test_a_message_of_another_step_or_round_is_refused(message: Message, phase: Phase) -> None:
    steps = {
        keys: Phase.KEYING,
        shares: Phase.SHARING,
        complaint: Phase.COLLECTING,
        confirmation: Phase.CONFIRMING,
        reveal: Phase.UNMASKING,
    }
    run = IN_PHASES[phase]()
    late: dict[str, Any] = {
        "dealt": tuple(sent for sent in run.dealt if sent.client != EVE)
    }  # as if eve had sent nothing
    late |= {"keyed": tuple(sent for sent in run.keyed if sent.client != EVE)}
    if phase is not steps[message]:
        with pytest.raises(RoundClosed if phase is Phase.AGGREGATING else WrongStep):
            step(replace(run, **late), message(EVE))
    for number in (0, 2):
        with pytest.raises(RoundClosed):
            step(run, replace(message(EVE), round=RoundNumber(number)))


def test_plain_runs_refuse_the_messages_of_private_rounds() -> None:
    plain = fed(a_run(private=None), seen(10, *SIX))
    assert plain.phase is Phase.COLLECTING
    for message in (keys(ANN), shares(ANN), complaint(ANN), confirmation(ANN), reveal(ANN)):
        with pytest.raises(RoundClosed):
            step(plain, message)
    assert step(plain, ev.DealtWrongly(20, ONE, ANN, "x")) == (plain, ())


def test_only_clients_with_a_part_in_the_round_are_heard() -> None:
    trained: Begun = ((sharing(), shares), (collecting(), complaint), (collecting(), update))
    confirmed: Begun = ((confirming(), confirmation), (unmasking(), reveal))
    for run, message in ((keying(), keys), *trained, *confirmed):
        with pytest.raises(LeaseLost):
            step(run, message(GUS))
    gone = fed(keying(), lost(ANN))
    with pytest.raises(LeaseLost):
        step(gone, keys(ANN))
    for run, message in trained:
        with pytest.raises(LeaseLost):
            step(fed(run, lost(ANN, permanent=True)), message(ANN))


# Keys and shares


def test_at_the_end_of_keying_a_quorum_of_keys_makes_the_members_and_the_others_are_out() -> None:
    run = fed(keying(), *map(keys, FIVE))
    assert step(run, ev.ClockTicked(69.9)) == (run, ())
    run, effects = step(run, ev.ClockTicked(70.0))
    assert effects == (ev.FixMembers(ONE, FIVE),)
    assert (run.phase, run.deadline_s, run.members, run.slots) == (Phase.SHARING, 130, FIVE, 5)
    assert (run.active, run.away, run.free_slots) == (FIVE, (FAY,), 0)
    assert run.losses == (ev.PlaceLost(70.0, FAY, "has sent no keys in time", permanent=False),)
    assert not needs_look(run)
    with pytest.raises(WrongStep):
        step(run, keys(FAY))
    with pytest.raises(LeaseLost):
        step(run, shares(FAY))


def test_at_the_end_of_sharing_a_quorum_of_dealers_goes_on_and_the_others_are_out() -> None:
    run = fed(sharing(), *map(shares, FIVE))
    assert step(run, ev.ClockTicked(79.9)) == (run, ())
    run, effects = step(run, ev.ClockTicked(80.0))
    assert effects == (ev.FixDealers(ONE, FIVE),)
    assert (run.phase, run.deadline_s, run.dealers, run.slots) == (Phase.COLLECTING, 180, FIVE, 5)
    assert run.losses == (ev.PlaceLost(80.0, FAY, "has dealt no shares in time", permanent=False),)
    assert run.threshold == 4, "it counts the members, whether they have dealt or not"
    with pytest.raises(LeaseLost):
        step(run, update(FAY))
    with pytest.raises(InvalidArgument):
        step(run, complaint(ANN, FAY))
    with pytest.raises(InvalidArgument):
        step(run, complaint(ANN, ANN))


@pytest.mark.parametrize("begun", [keying, sharing])
@pytest.mark.parametrize("missed", ["extend", "skip", "abort"])
def test_too_few_at_the_end_of_keying_or_sharing(begun: Callable[..., Run], missed: str) -> None:
    message: Message = keys if begun is keying else shares
    run = fed(begun(policy=policy(on_missed_quorum=missed)), *map(message, SIX[:4]))
    phase, word = run.phase, f"4 of 5 members while {run.phase}"
    deadline_s = run.deadline_s or 0.0
    if missed == "extend":
        for count in (1, 2):
            run, effects = step(run, ev.ClockTicked(deadline_s))
            deadline_s += 60
            assert (run.phase, run.deadline_s, run.extensions, effects) == (phase, deadline_s, count, ())
    run, effects = step(run, ev.ClockTicked(deadline_s))
    if missed == "abort":
        assert effects == (ev.Abandon(ONE, f"round 1: {word}"), ev.EndRun("aborted", f"round 1: {word}"))
        assert (run.phase, run.outcome) == (Phase.ENDED, Outcome.ABORTED)
    else:
        assert effects == (ev.Abandon(ONE, word),)
        assert (run.phase, run.version, run.keyed, run.roster_head) == (Phase.WAITING, 0, (), "")


def test_a_slot_is_given_again_only_while_keys_are_collected_and_lost_keys_do_not_count() -> None:
    run = fed(keying(), *map(keys, FIVE), lost(ANN))
    assert (run.members, run.free_slots, run.away) == (FIVE[1:], 1, (ANN,))
    assert needs_look(run)
    assert willing(run, (ANN, GUS)) == (ANN, GUS)
    run = fed(run, seen(50, GUS))
    assert (run.active, run.free_slots, run.cohort) == ((*FIVE[1:], FAY, GUS), 0, (*SIX, GUS))
    assert not needs_look(run)
    with pytest.raises(LeaseLost):
        step(run, keys(ANN))
    run, effects = step(fed(run, keys(GUS)), keys(FAY))
    assert effects[1:] == (ev.FixMembers(ONE, (*FIVE[1:], FAY, GUS)),)
    gone = fed(run, lost(BEN))
    assert needs_look(gone)
    assert willing(gone, (ANN, BEN, EVE)) == (BEN,), "its slot is its own"
    assert fed(gone, seen(51, ANN)).active == gone.active
    assert fed(gone, seen(51, BEN)).active == run.active


def test_a_client_that_takes_its_slot_again_sends_keys_again_and_maybe_others() -> None:
    run = fed(keying(), keys(ANN), lost(ANN), seen(50, ANN))
    assert (run.members, run.active) == ((), SIX)
    run, effects = step(run, keys(ANN, digest="other"))
    assert effects == (ev.RecordMessage(ONE, ev.RoundStep.KEYS, ANN, Digest("other-ann")),)


@pytest.mark.parametrize("phase", [Phase.SHARING, Phase.COLLECTING, Phase.CONFIRMING, Phase.UNMASKING])
def test_a_member_that_comes_back_takes_its_own_slot_at_most_three_times_in_a_step(phase: Phase) -> None:
    run = IN_PHASES[phase]()
    before = run.active
    assert willing(run, before) == ()
    for count in (1, 2, 3):
        gone = fed(run, replace(lost(ANN), at_s=run.since_s + count))
        assert (gone.returning, gone.free_slots, gone.active) == ((ANN,), 1, before[1:])
        assert needs_look(gone)
        run = fed(gone, seen(run.since_s + count, ANN, GUS))
        assert run.active == (before if count < 3 else before[1:])
    earlier = replace(run, losses=tuple(replace(loss, at_s=run.since_s - 1) for loss in run.losses))
    assert willing(earlier, (ANN, GUS)) == (ANN,), "failures in an earlier step do not matter"


def test_a_message_of_a_member_that_lost_its_slot_gives_the_slot_back() -> None:
    begun: Begun = ((sharing(), shares), (collecting(), update), (confirming(), confirmation), (unmasking(), reveal))
    for run, message in begun:
        after = fed(run, lost(ANN), message(ANN))
        assert ANN in after.active, run.phase


def test_sharing_does_not_wait_for_members_that_will_not_come() -> None:
    run, effects = step(fed(sharing(), *map(shares, FIVE)), lost(FAY))
    assert (run.phase, effects) == (Phase.SHARING, ()), "it may come back"
    run, effects = step(fed(sharing(), *map(shares, FIVE)), lost(FAY, permanent=True))
    assert effects == (ev.FixDealers(ONE, FIVE),)
    run, effects = step(fed(sharing(), lost(FAY, permanent=True), *map(shares, FIVE[:4])), shares(EVE))
    assert effects[1:] == (ev.FixDealers(ONE, FIVE),)
    run = fed(sharing(), *map(shares, SIX[:4]), lost(FAY, permanent=True), lost(EVE, permanent=True))
    assert run.phase is Phase.SHARING, "four are no quorum"


# Updates


def test_an_update_fixes_the_sum_only_when_every_dealer_has_delivered_or_the_grace_is_over() -> None:
    run, effects = step(fed(collecting(), *map(update, SIX[:4])), update(EVE))
    assert (run.phase, run.quorum_s, len(effects)) == (Phase.COLLECTING, 40, 2)
    assert step(run, ev.ClockTicked(59.9)) == (run, ())
    fixed, effects = step(run, ev.ClockTicked(60.0))
    assert effects == (ev.FixSum(ONE, tuple(map(receipt, FIVE))),)
    assert (fixed.phase, fixed.summed, fixed.deadline_s, fixed.dealers) == (Phase.CONFIRMING, FIVE, 120, SIX)
    with pytest.raises(RoundClosed):
        step(fixed, update(FAY))
    assert step(fixed, update(EVE)) == (fixed, ())
    _, effects = step(run, lost(FAY, permanent=True))
    assert effects == (ev.FixSum(ONE, tuple(map(receipt, FIVE))),), "nobody is left to wait for"
    assert fed(run, lost(FAY)).phase is Phase.COLLECTING


def demanding(least: dict[ClientId, int], *delivered: ClientId) -> Run:
    """Returns a run of four as a quorum, in which some members ask for large sums and some have delivered."""
    run = sharing(policy=policy(min_clients=4))
    return fed(run, *(shares(client, least=least.get(client, 1)) for client in SIX), *map(update, delivered))


def test_a_member_that_asks_for_a_larger_sum_than_there_is_takes_itself_out_and_not_the_others() -> None:
    run = demanding({ANN: 6}, *FIVE)
    fixed, effects = step(run, ev.ClockTicked(60.0))
    assert effects == (ev.WithdrawReceipt(ONE, ANN), ev.FixSum(ONE, tuple(map(receipt, FIVE[1:]))))
    assert (fixed.phase, fixed.summed, fixed.dealers) == (Phase.CONFIRMING, FIVE[1:], SIX)
    assert fed(fixed, confirmation(ANN)).confirmed[0].client == ANN, "it answers like the others"
    run = demanding({ANN: 6}, *FIVE[:4])
    everybody = fed(run, update(EVE), update(FAY))
    assert (everybody.phase, everybody.summed) == (Phase.CONFIRMING, SIX)


def test_a_sum_that_is_too_small_for_its_members_waits_to_the_deadline_and_is_then_given_up() -> None:
    run = demanding({ANN: 6, BEN: 6}, *FIVE)
    assert step(run, ev.ClockTicked(60.0)) == (run, ())
    late = fed(run, ev.ClockTicked(60.0), update(FAY, 70.0))
    assert late.summed == SIX
    ended, effects = step(run, ev.ClockTicked(run.deadline_s or 0.0))
    assert effects == (ev.Abandon(ONE, "5 updates are fewer than their members ask for in a sum"),)
    assert ended.version == 0
    _, effects = step(run, lost(FAY, permanent=True))
    assert isinstance(effects[-1], ev.Abandon), "nobody is left to wait for"


def test_without_a_quorum_of_updates_the_policy_decides_as_in_a_plain_round() -> None:
    run = fed(collecting(), *map(update, SIX[:4]))
    assert step(run, ev.ClockTicked(129.9)) == (run, ())
    longer, effects = step(run, ev.ClockTicked(130.0))
    assert (longer.phase, longer.deadline_s, longer.extensions, effects) == (Phase.COLLECTING, 230, 1, ())
    assert fed(longer, update(EVE), ev.ClockTicked(230)).extensions == 0, "each step counts its own"
    skipped, effects = step(replace(run, policy=policy(on_missed_quorum="skip")), ev.ClockTicked(130.0))
    assert effects == (ev.Abandon(ONE, "4 of 5 updates at the deadline"),)
    assert skipped.phase is Phase.WAITING
    _, effects = step(replace(run, policy=policy(on_missed_quorum="abort")), ev.ClockTicked(130.0))
    assert [type(effect) for effect in effects] == [ev.Abandon, ev.EndRun]


def test_a_round_that_cannot_reach_its_quorum_any_more_is_not_extended() -> None:
    two = (lost(EVE, permanent=True), lost(FAY, permanent=True))
    run = fed(sharing(), *map(shares, SIX[:4]), *two)
    assert step(run, ev.ClockTicked(80.0))[1] == (ev.Abandon(ONE, "4 of 5 members while sharing"),)
    assert fed(sharing(), *map(shares, SIX[:4]), two[0], ev.ClockTicked(80.0)).extensions == 1, "fay may come back"
    assert fed(sharing(), *map(shares, FIVE), *two, ev.ClockTicked(80.0)).phase is Phase.COLLECTING
    run = fed(collecting(), *map(update, SIX[:4]), *two)
    assert step(run, ev.ClockTicked(130.0))[1] == (ev.Abandon(ONE, "4 of 5 updates at the deadline"),)
    assert fed(collecting(), *map(update, SIX[:4]), two[0], ev.ClockTicked(130.0)).extensions == 1
    ended = fed(replace(run, policy=policy(on_missed_quorum="abort")), ev.ClockTicked(130.0))
    assert ended.outcome is Outcome.ABORTED, "as its operator wants"
    run = fed(
        collecting(policy=policy(min_clients=4)), complaint(EVE, FAY), *map(update, SIX[:3]), lost(DAN, permanent=True)
    )
    assert step(run, ev.ClockTicked(130.0))[1] == (ev.Abandon(ONE, "3 of 4 updates at the deadline"),)
    plain = fed(a_run(private=None), seen(10, *SIX), *two, ev.ClockTicked(110.0))
    assert plain.extensions == 1, "other clients may take the slots"


def test_a_round_is_not_extended_for_members_that_ask_for_a_larger_sum_than_its_dealers_can_make() -> None:
    dealt = [shares(client, least=5) for client in SIX[:4]]
    four = {"policy": policy(min_clients=4), "gives_up_small_sums": True}
    run = fed(sharing(**four), *dealt, lost(EVE, permanent=True), lost(FAY, permanent=True))
    assert run.phase is Phase.COLLECTING
    at_s = run.deadline_s or 0.0
    assert step(run, ev.ClockTicked(at_s))[1] == (ev.Abandon(ONE, "0 of 4 updates at the deadline"),)
    earlier = replace(run, gives_up_small_sums=False)
    assert fed(earlier, ev.ClockTicked(at_s)).extensions == 1, (
        "logs of earlier formats are replayed as they were written"
    )
    dealt[-1] = shares(DAN, least=1)
    run = fed(sharing(**four), *dealt, shares(EVE, least=5), lost(FAY, permanent=True))
    assert fed(run, ev.ClockTicked(run.deadline_s or 0.0)).extensions == 1, "five can make such a sum"
    dealt = [shares(client, least=least) for client, least in zip(FIVE, (6, 5, 1, 1, 1), strict=True)]
    run = fed(sharing(**four), *dealt, lost(FAY, permanent=True))
    _, [abandoned] = step(run, ev.ClockTicked(run.deadline_s or 0.0))
    assert isinstance(abandoned, ev.Abandon), "without ann, the sum is too small for ben"


def test_an_update_without_its_members_statement_is_not_taken() -> None:
    with pytest.raises(InvalidArgument):
        step(collecting(), replace(update(ANN), statement=""))


def test_weights_lengths_and_fairness_play_no_part_in_a_private_round() -> None:
    run = aggregating(limits_members=True, fairness_history=((ANN, 0.5),))
    uneven = (replace(run.receipts[0], norm=1000.0), *(replace(one, norm=1.0) for one in run.receipts[1:]))
    averaged, effects = step(replace(run, receipts=uneven), ev.ModelAveraged(70, ONE, Digest("d1")))
    assert effects == (ev.Publish(ONE, ModelVersion(1), Digest("d1"), uneven),)
    assert averaged.fairness_history == ((ANN, 0.5),)


# Complaints


def test_a_complaint_takes_both_members_out_of_the_sum_and_both_still_answer() -> None:
    run = fed(collecting(policy=policy(min_clients=4)), *map(update, (ANN, BEN, CAT, EVE)))
    assert run.quorum_s == 40
    run, effects = step(run, complaint(EVE, FAY))
    recorded = ev.RecordMessage(ONE, ev.RoundStep.COMPLAINT, EVE, Digest("c-eve"))
    assert effects == (recorded, ev.WithdrawReceipt(ONE, EVE))
    assert (run.outside, run.quorum_s, len(run.receipts), run.active) == (frozenset({EVE, FAY}), None, 3, SIX)
    for client in (EVE, FAY):
        with pytest.raises(LeaseLost):
            step(run, update(client))
    run, effects = step(run, update(DAN))
    assert effects[2:] == (ev.FixSum(ONE, tuple(map(receipt, SIX[:4]))),)
    run = fed(run, *map(confirmation, (CAT, DAN, EVE, FAY)))
    assert run.phase is Phase.UNMASKING
    run = fed(run, *map(reveal, (CAT, DAN, EVE, FAY)))
    assert run.phase is Phase.UNMASKING, "eve has no share of fay's secret, so one more member must reveal"
    assert fed(run, reveal(ANN)).phase is Phase.AGGREGATING
    assert fed(run, reveal(ANN)).receipts == tuple(map(receipt, SIX[:4]))


def test_a_complaint_about_a_dealer_that_has_delivered_withdraws_its_update() -> None:
    run = fed(collecting(policy=policy(min_clients=4)), *map(update, SIX[:4]), update(FAY))
    run, effects = step(run, complaint(EVE, FAY))
    assert effects[1:] == (ev.WithdrawReceipt(ONE, FAY), ev.FixSum(ONE, tuple(map(receipt, SIX[:4]))))
    assert run.summed == SIX[:4]


def test_complaints_that_leave_too_few_for_a_sum_abandon_the_round() -> None:
    run, effects = step(collecting(), complaint(EVE, FAY))
    recorded = ev.RecordMessage(ONE, ev.RoundStep.COMPLAINT, EVE, Digest("c-eve"))
    reason = "complaints about boxes leave 4 of the 5 members for a sum"
    assert effects == (recorded, ev.Abandon(ONE, reason))
    assert run.phase is Phase.WAITING
    run, effects = step(collecting(policy=policy(min_clients=4)), complaint(EVE, FAY))
    assert (run.phase, len(effects)) == (Phase.COLLECTING, 1)


def test_a_dealer_of_whom_more_complain_than_may_lie_is_excluded_until_its_next_hello() -> None:
    eight = (*SIX, GUS, ClientId("hal"))
    limits = policy(min_clients=5, target_clients=8)
    run = fed(a_run(policy=limits), seen(10, *eight), *map(keys, eight), *map(shares, eight), complaint(EVE))
    assert not run.is_excluded(FAY), "one may lie"
    run = fed(run, complaint(DAN, at_s=36.0))
    reason = "DEALT_WRONGLY: 2 members complain of its boxes"
    assert run.excluded == (ev.PlaceLost(36.0, FAY, reason, permanent=True),)
    assert FAY in run.active, "it still confirms and reveals"
    assert FAY not in run.roster
    assert not run.is_excluded(DAN)
    assert not fed(run, ev.ClientReturned(99, FAY)).excluded


FOURTEEN = tuple(ClientId(f"m{number:02}") for number in range(14))


def with_complaints(*pairs: tuple[int, int]) -> Run:
    """Returns the round of fourteen members, eight of which are enough, after complaints. pairs: complainant and dealer."""
    limits = policy(min_clients=8, target_clients=14)
    run = fed(a_run(policy=limits), seen(10, *FOURTEEN), *map(keys, FOURTEEN), *map(shares, FOURTEEN))
    assert run.threshold == 8
    return fed(run, *(complaint(FOURTEEN[client], FOURTEEN[dealer]) for client, dealer in pairs))


def test_a_third_complaint_about_a_dealer_excludes_it_no_second_time() -> None:
    run = with_complaints((0, 13), (1, 13), (2, 13))
    assert [loss.client for loss in run.excluded] == [FOURTEEN[13]]


@pytest.mark.parametrize(
    ("revealing", "enough"),
    [
        (range(8), False),  # m00 and m01 have no share of m13's secret, and m02 has none of m12's
        (range(9), False),
        (range(10), True),  # eight shares of m13's secret, nine of m12's
        (range(3, 11), True),  # whoever complains and reveals nothing is missing nowhere
        (range(2, 10), False),
        (range(2, 11), True),
    ],
)
def test_a_sum_needs_enough_shares_of_the_secret_of_the_dealer_with_the_most_complaints(
    revealing: range, enough: bool
) -> None:
    run = with_complaints((0, 13), (1, 13), (2, 12))
    run = fed(run, *(update(member) for member in FOURTEEN if member not in run.outside), ev.ClockTicked(99.0))
    run = fed(run, *(confirmation(member) for member in FOURTEEN[:8]))
    run = fed(run, *(reveal(FOURTEEN[number]) for number in revealing))
    assert run.phase is (Phase.AGGREGATING if enough else Phase.UNMASKING)


def test_a_place_that_is_lost_after_the_sum_is_fixed_changes_nothing_of_it() -> None:
    for run, loss in (
        (run, loss) for run in (confirming(), unmasking()) for loss in (lost(ANN), lost(FAY, permanent=True))
    ):
        after, effects = step(run, loss)
        assert effects == ()
        assert (after.phase, after.summed, after.deadline_s) == (run.phase, run.summed, run.deadline_s)


def test_a_plain_round_knows_no_dealer_that_deals_wrongly() -> None:
    run = a_run(phase=Phase.AGGREGATING, private=None, round=ONE)
    assert step(run, ev.DealtWrongly(70.0, ONE, ANN, "of two keys")) == (run, ())


# Confirmations and reveals


@pytest.mark.parametrize(
    ("begun", "message", "after"), [(confirming, confirmation, Phase.UNMASKING), (unmasking, reveal, Phase.AGGREGATING)]
)
def test_the_thresholds_message_ends_the_step_and_one_less_does_not(
    begun: Callable[..., Run], message: Message, after: Phase
) -> None:
    run = fed(begun(), *map(message, (FAY, EVE, DAN)))
    assert run.phase is not after, "three are below the threshold"
    run = fed(run, message(CAT))
    assert run.phase is after
    with pytest.raises(WrongStep if after is Phase.UNMASKING else RoundClosed):
        step(run, message(BEN))


@pytest.mark.parametrize(("begun", "message"), [(confirming, confirmation), (unmasking, reveal)])
@pytest.mark.parametrize("missed", ["extend", "skip", "abort"])
def test_too_few_confirmations_or_reveals_extend_the_step_and_then_abandon_the_round(
    begun: Callable[..., Run], message: Message, missed: str
) -> None:
    run = fed(begun(policy=policy(on_missed_quorum=missed)), *map(message, SIX[:3]))
    deadline_s, phase = run.deadline_s or 0.0, run.phase
    assert step(run, ev.ClockTicked(deadline_s - 0.1)) == (run, ())
    for count in (1, 2):
        run, effects = step(run, ev.ClockTicked(deadline_s))
        deadline_s += 60
        assert (run.phase, run.deadline_s, run.extensions, effects) == (phase, deadline_s, count, ())
    assert fed(run, message(DAN)).phase is not phase, "the last extension is in time"
    run, effects = step(run, ev.ClockTicked(deadline_s))
    assert effects == (ev.Abandon(ONE, f"3 of 4 members while {phase}"),)
    assert (run.phase, run.version) == (Phase.WAITING, 0)


@pytest.mark.parametrize("begun", [unmasking, aggregating])
def test_a_member_that_has_dealt_wrongly_ends_the_round_and_is_out_until_its_next_hello(
    begun: Callable[..., Run],
) -> None:
    run = begun()
    stale = ev.DealtWrongly(70, RoundNumber(2), FAY, "no polynomial")
    assert step(run, stale) == (run, ())
    ended, effects = step(run, replace(stale, round=ONE))
    assert effects == (ev.Abandon(ONE, "fay: DEALT_WRONGLY: no polynomial"),)
    assert (ended.phase, ended.version, ended.is_excluded(FAY)) == (Phase.WAITING, 0, True)
    assert fed(ended, replace(stale, round=ONE)) == ended
    early = confirming()
    assert step(early, replace(stale, round=ONE)) == (early, ())


def test_a_sum_that_is_implausible_leaves_the_model_as_it_is() -> None:
    run, effects = step(aggregating(), ev.AveragingFailed(70, ONE, "SUM_IMPLAUSIBLE", base_lost=False))
    assert effects == (ev.Abandon(ONE, "SUM_IMPLAUSIBLE"),)
    assert (run.phase, run.version, run.model_digest) == (Phase.WAITING, 0, "d0")


def test_while_a_sum_is_made_each_member_is_counted_once() -> None:
    run = fed(unmasking(), lost(ANN), lost(FAY), *map(reveal, SIX[1:5]))
    assert (run.phase, run.away, run.active_count, run.active) == (Phase.AGGREGATING, (FAY,), 0, ())


# Revocation, restart, operator


def test_a_revoked_member_is_out_before_the_sum_is_fixed() -> None:
    run = fed(keying(), *map(keys, FIVE), ev.MemberRevoked(25, ANN))
    assert (run.members, run.free_slots, run.is_excluded(ANN)) == (FIVE[1:], 1, True)
    run = fed(sharing(), *map(shares, FIVE), ev.MemberRevoked(35, ANN))
    assert (run.phase, run.dealers, run.members) == (Phase.SHARING, FIVE[1:], SIX)
    run, effects = step(run, shares(FAY))
    assert (run.phase, run.dealers) == (Phase.COLLECTING, SIX[1:])
    run = fed(collecting(), *map(update, FIVE))
    run, effects = step(run, ev.MemberRevoked(45, ANN))
    assert effects == (ev.WithdrawReceipt(ONE, ANN),)
    assert (run.phase, run.quorum_s, run.dealers, run.active) == (Phase.COLLECTING, None, SIX, SIX[1:])
    run, effects = step(run, update(FAY))
    assert effects[2:] == (ev.FixSum(ONE, tuple(map(receipt, SIX[1:]))),)


@pytest.mark.parametrize("begun", [confirming, unmasking, aggregating])
def test_a_member_revoked_after_the_sum_is_fixed_stays_in_it(begun: Callable[..., Run]) -> None:
    run = begun()
    revoked, effects = step(run, ev.MemberRevoked(70, ANN))
    assert effects == ()
    assert (revoked.phase, revoked.receipts, revoked.is_excluded(ANN)) == (run.phase, run.receipts, True)
    assert ANN not in revoked.active
    if begun is aggregating:
        assert step(revoked, ev.ModelAveraged(80, ONE, Digest("d1")))[1][0].receipts == run.receipts  # type: ignore[union-attr]


@pytest.mark.parametrize("phase", IN_PHASES)
def test_a_restart_begins_the_steps_time_anew_and_a_cancelled_run_abandons_the_round(phase: Phase) -> None:
    run = IN_PHASES[phase]()
    restarted = fed(run, ev.CoordinatorStarted(1000.0))
    length_s = 100 if phase is Phase.COLLECTING else 60
    assert restarted.deadline_s == (None if phase is Phase.AGGREGATING else 1000 + length_s)
    assert (restarted.phase, restarted.sent) == (phase, run.sent)
    paused = fed(run, ev.RunPaused(70))
    assert (paused.phase, paused.paused) == (phase, True), "the round goes on"
    ended, effects = step(run, ev.RunCancelled(70, "enough"))
    assert effects == (ev.Abandon(ONE, "enough"), ev.EndRun("cancelled", "enough"))
    assert ended.cleared() == ended
    assert phase in WITH_OPEN_ROUND


@pytest.mark.parametrize("phase", EXCHANGING)
def test_a_step_without_time_left_is_looked_at_only_at_its_end(phase: Phase) -> None:
    run = IN_PHASES[phase]()
    for at_s in (run.since_s, (run.deadline_s or 0.0) - 1e-6):
        assert step(run, ev.ClockTicked(at_s)) == (run, ())
    assert step(run, ev.ClockTicked(run.deadline_s or 0.0))[0] != run
