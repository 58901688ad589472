"""A federation in one process, with a fault in every round: no promise is broken, and the model does not change.

The coordinator's own code runs, from the service to `step`; time, network, disk, database and training are simulated. A run
follows from its seed, and a failure says how to repeat it.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from simulation.faults import HARMLESS, OF_CALLS, OF_PROCESS, WRITES, Kind
from simulation.history import long_history
from simulation.simulator import SimulationFailed, Ticket, check, problems, simulate, undisturbed

from pluralllm.server.runs.recovery import recover

ALL = os.environ.get("PLURALLLM_FAULTS") == "all"
REPOSITORY = Path(__file__).parents[2]
ROUNDS = 50  # in one run: with short histories, many different ones are affordable
SCENARIOS = ("fedavg", "fedadam", "int8")
LIMIT_S = 5.0  # the limit of a recovery


def tickets(scenario: str, seeds: range, kinds: tuple[Kind, ...] = HARMLESS) -> list[Ticket]:
    return [Ticket(scenario, ROUNDS, seed, kinds) for seed in seeds]


def fired(ticket: Ticket) -> Counter[Kind]:
    """Returns the faults that struck in a run, after checking that everything holds."""
    return check(ticket).fired


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_whatever_goes_wrong_the_model_is_the_one_of_an_undisturbed_run(scenario: str) -> None:
    struck_faults: Counter[Kind] = Counter()
    for ticket in tickets(scenario, range(4 if scenario == SCENARIOS[0] else 3)):
        struck_faults += fired(ticket)
    assert set(struck_faults) == set(HARMLESS)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not ALL, reason="every run of the tests simulates 500 of these rounds; make faults simulates all")
def test_ten_thousand_rounds_with_a_fault_in_every_one() -> None:
    all_tickets = [
        ticket for place, name in enumerate(SCENARIOS) for ticket in tickets(name, range(1000 + place, 1200, 3))
    ]
    start_s = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as processes:
        struck_faults = sum(processes.map(fired, all_tickets), Counter[Kind]())
    rounds, took_s = sum(ticket.rounds for ticket in all_tickets), time.monotonic() - start_s
    print(
        f"\n{rounds} rounds in {took_s:.1f} s, faults: "
        + ", ".join(f"{kind} {n}" for kind, n in sorted(struck_faults.items()))
    )
    assert rounds == 10_000
    assert struck_faults.total() >= rounds


def test_an_undisturbed_run_ends_as_its_spec_says_and_needs_one_life() -> None:
    outcome = undisturbed("fedavg", ROUNDS)
    assert (outcome.versions, outcome.ended, outcome.lives) == (ROUNDS, f"completed: {ROUNDS} rounds done", 1)
    assert not problems(Ticket("fedavg", ROUNDS, 0, ()), outcome)
    assert outcome.operations >= WRITES


def test_a_seed_is_a_schedule() -> None:
    ticket = Ticket("fedavg", 30, 7, HARMLESS)
    first, again, other = simulate(ticket), simulate(ticket), simulate(Ticket("fedavg", 30, 8, HARMLESS))
    assert first.log == again.log
    assert first.trace_sha256 == again.trace_sha256 != other.trace_sha256


def test_a_seed_is_the_same_schedule_in_another_process_whose_sets_have_another_order() -> None:
    here = simulate(Ticket("fedavg", 30, 7))
    command = [sys.executable, "-m", "simulation", "--rounds", "30", "--seed", "7"]
    environment = {**os.environ, "PYTHONPATH": "tests", "PYTHONHASHSEED": "123"}
    there = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert f"trace {here.trace_sha256}" in there.stdout, there.stdout + there.stderr


def test_a_run_that_goes_no_further_says_where_it_stands_and_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("simulation.simulator.ROUND_LIMIT_S", 0.0)
    monkeypatch.setattr("simulation.simulator.FIRST_LIMIT_S", 100.0)
    ticket = Ticket("fedavg", 30, 3, (Kind.CLIENT_SLOW,))
    with pytest.raises(
        SimulationFailed, match=r"again: PYTHONPATH=tests python -m simulation .* --seed 3 --kind CLIENT_SLOW"
    ):
        simulate(ticket)


@pytest.mark.parametrize("kind", [*OF_CALLS, *OF_PROCESS, Kind.CLIENT_SLOW, Kind.DISK_FULL, Kind.STORE_UNCLEAR])
def test_a_fault_that_strikes_in_every_round_costs_none_of_them(kind: Kind) -> None:
    assert fired(Ticket("fedavg", 10, 1, (kind,))) == {kind: 10}


def test_updates_of_two_chunks_and_three_clients() -> None:
    check(Ticket("chunks", 8, 1, HARMLESS))


def test_a_round_whose_update_was_spoilt_is_abandoned_and_the_others_go_on() -> None:
    found = check(Ticket("fedavg", 20, 1, (Kind.UPDATE_SPOILT, *OF_CALLS)))
    assert 0 < found.versions == 20 - found.fired[Kind.UPDATE_SPOILT] < 20


def test_a_model_that_is_spoilt_for_good_ends_the_run_and_verify_names_it() -> None:
    found = simulate(Ticket("fedavg", 5, 1, (Kind.BASE_LOST,)))
    assert found.ended.startswith("aborted: The base of the next model version is lost")
    assert [(finding.invariant, finding.problem[:15]) for finding in found.report.findings] == [(7, "model version 0")]


def test_a_model_that_was_spoilt_is_served_again_once_it_is_restored() -> None:
    check(Ticket("fedavg", 10, 1, (Kind.BASE_SPOILT,)))


def test_an_update_whose_fsync_failed_is_not_acknowledged_before_it_has_come_again() -> None:
    for ticket in tickets("fedavg", range(1, 5), (Kind.SYNC_FAILED, Kind.POWER_LOST)):
        check(ticket)


def test_a_disk_error_stops_the_coordinator_and_the_next_one_goes_on() -> None:
    for ticket in tickets("fedavg", range(5, 8), (Kind.DISK_ERROR,)):
        check(ticket)


def test_a_round_that_cannot_be_abandoned_now_is_abandoned_later() -> None:
    check(Ticket("fedavg", ROUNDS, 1, (Kind.UPDATE_SPOILT, Kind.STORE_FULL)))


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.skipif(not ALL, reason="takes ten seconds; make faults")
async def test_a_run_of_ten_thousand_rounds_is_recovered_in_less_than_five_seconds() -> None:
    store, record = await long_history(10_000, clients=10)
    start_s = time.process_time()
    run = await recover(store, record)
    took_s = time.process_time() - start_s
    print(f"\n10,000 rounds of 10 clients, {run.sequence} events: recovered in {took_s:.2f} s")
    assert (run.state.round, run.progress.averaging) == (10_000, None)
    assert took_s < LIMIT_S
