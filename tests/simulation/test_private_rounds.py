"""Simulated private rounds: whatever is lost, repeated, reordered or a lie, a sum is exact or its round is abandoned.

Never does anybody learn two secrets of a member, and no round has two sums. A failure says how to repeat its run.
"""

import os
import random
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from simulation.private_coordinator import SimulatedCoordinator
from simulation.private_members import Lie, Member, Message, combine, split
from simulation.private_rounds import (
    PrivateRoundsFailed,
    private_spec,
    simulate_private,
)

from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.private_rounds import threshold
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds import private
from pluralllm.server.rounds.looking import sightings
from pluralllm.server.rounds.state import Phase, Run

ALL = os.environ.get("PLURALLLM_FAULTS") == "all"
SEEDS = range(25)
CLOSING = range(40)
STEPS = {
    Phase.KEYING: ev.RoundStep.KEYS,
    Phase.SHARING: ev.RoundStep.SHARES,
    Phase.COLLECTING: ev.RoundStep.UPDATE,
    Phase.CONFIRMING: ev.RoundStep.CONFIRMATION,
    Phase.UNMASKING: ev.RoundStep.REVEAL,
}


def test_some_hundred_private_rounds_have_exact_sums_or_are_abandoned_with_a_reason() -> None:
    outcomes = [simulate_private(seed) for seed in SEEDS]
    ends = sum((outcome.ends for outcome in outcomes), Counter[str]())
    assert ends.total() >= 250
    assert ends["published"] > ends.total() / 2
    assert len(ends) > 6, "rounds ended in few ways"
    lies = sum((outcome.lies for outcome in outcomes), Counter[Lie]())
    assert set(lies) == set(Lie), f"never told: {set(Lie) - set(lies)}"


def test_simulated_closing_rounds_have_a_sum_or_none_and_their_runs_are_complete() -> None:
    closed = Counter(end for seed in CLOSING if (end := simulate_private(seed, 1).closed))
    assert closed["published"] >= 8
    assert any("without closing scores" in end for end in closed)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    not ALL, reason="every run of the tests simulates some hundreds of these rounds; make faults simulates all"
)
def test_a_hundred_thousand_private_rounds() -> None:
    start_s, seeds = time.monotonic(), range(1000, 11_000)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as processes:
        outcomes = list(processes.map(simulate_private, seeds, chunksize=50))
    ends = sum((outcome.ends for outcome in outcomes), Counter[str]())
    print(f"\n{ends.total()} private rounds in {time.monotonic() - start_s:.1f} s: {dict(ends.most_common())}")
    assert ends.total() >= 100_000


def test_a_seed_is_a_schedule_of_a_private_run() -> None:
    first, again, other = simulate_private(3, 4), simulate_private(3, 4), simulate_private(4, 4)
    assert first == again
    assert first.log_sha256 != other.log_sha256


# Exactly as many members as may be gone, and one more


def said(member: Member, coordinator: SimulatedCoordinator) -> list[Message]:
    match coordinator.state.phase:
        case Phase.KEYING:
            return member.keys(coordinator.state.round)
        case Phase.SHARING:
            return member.deal(coordinator.view())
        case Phase.COLLECTING:
            return member.train(coordinator.view())
        case Phase.CONFIRMING:
            return member.confirm(coordinator.view())
        case _:
            return member.reveal(coordinator.view())


def one_round(coordinator: SimulatedCoordinator, members: list[Member], last_step: ev.RoundStep, gone: int) -> str:
    """Plays a round in which the last `gone` members say nothing from `last_step` on. Returns the round's end."""
    names, now_s = tuple(member.name for member in members), 0.0
    coordinator.feed(ev.RunStarted(now_s))
    while not coordinator.rounds[1].end:
        now_s += 200.0
        state = coordinator.state
        for event in sightings(state, now_s, names, (), "head"):
            coordinator.feed(event)
        phase = coordinator.state.phase
        is_late = [*STEPS.values()].index(last_step) <= [*STEPS].index(phase) if phase in STEPS else False
        for member in members[: len(members) - gone] if is_late else members:
            if phase in STEPS and coordinator.state.phase is phase:
                coordinator.values[1, member.name] = member.notebook(1).value
                for message in said(member, coordinator):
                    coordinator.overhear(message, honest=True)
                    coordinator.receive(message, now_s)
        if coordinator.state.phase is Phase.AGGREGATING:
            coordinator.average(now_s)
        if coordinator.state.phase is phase:
            coordinator.feed(ev.ClockTicked(now_s + 150))
    return coordinator.rounds[1].end


@pytest.mark.parametrize("step", STEPS.values())
@pytest.mark.parametrize(("count", "colluders"), [(4, 1), (5, 1), (8, 2)])
def test_as_many_members_as_may_be_gone_are_gone_and_one_more(step: ev.RoundStep, count: int, colluders: int) -> None:
    least = threshold(count, colluders)
    for gone in (0, count - least, count - least + 1):
        spec = private_spec(2, least, count, colluders, on_missed_quorum="skip", max_extensions=0)
        members = [Member(ClientId(f"m{number}"), _draw(number)) for number in range(count)]
        end = one_round(SimulatedCoordinator(spec), members, step, gone)
        assert (end == "published") == (gone <= count - least), end


def _draw(number: int) -> random.Random:
    return random.Random(number)


# The simulation itself


def test_shares_give_their_secret_and_fewer_give_another_number() -> None:
    names = [ClientId(f"m{number}") for number in range(5)]
    shares = split(1234567, 3, names)
    assert combine({name: shares[name] for name in names[1:4]}) == 1234567
    assert combine({name: shares[name] for name in names[1:3]}) != 1234567


def first_failure(seeds: range) -> str:
    for seed in seeds:
        try:
            simulate_private(seed)
        except PrivateRoundsFailed as failed:
            return str(failed)
    return "nothing"


@pytest.mark.parametrize(
    ("name", "broken", "problem"),
    [
        ("threshold", property(lambda run: max(2, len(run.keyed) // 2)), "before enough have confirmed"),
        ("outside", property(lambda run: frozenset()), "a member that a complaint is about is in the sum"),
    ],
)
def test_a_round_machine_that_is_wrong_is_noticed(
    monkeypatch: pytest.MonkeyPatch, name: str, broken: property, problem: str
) -> None:
    monkeypatch.setattr(Run, name, broken)
    assert problem in first_failure(SEEDS)


def test_a_sum_that_is_fixed_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "fix_sum", lambda run, at_s: (run, (ev.FixSum(run.round, run.receipts),)))
    failure = first_failure(range(5))
    assert "the sum was fixed twice" in failure
    assert "again: PYTHONPATH=tests python -m simulation.private_rounds --seed" in failure


def test_a_sum_that_is_made_before_every_secret_has_enough_shares_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "_are_revealed", lambda run: len(run.revealed) >= run.threshold)
    assert "a secret lacks shares" in first_failure(range(70, 80))
