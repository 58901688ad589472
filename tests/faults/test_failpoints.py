"""The coordinator is killed before and after every durable step: the run ends with the same bits, and its state verifies."""

import random
from pathlib import Path

import pytest
from drill.fleet import Fault
from drill.pairs import Embedded, Served, StorePair
from drill.points import all_points, all_steps
from drill.trial import ALL, SAMPLE_ONLY, Undisturbed, drill

from pluralllm.server.rounds.events import (
    ComplaintArrived,
    ConfirmationArrived,
    DealtWrongly,
    Event,
    KeysArrived,
    RevealArrived,
    SharesArrived,
)

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300)]
SEED, SAMPLE = 20250312, 4
# The reasons why no run passes a point.
SELDOM = "it writes the time of a Hello that comes ten minutes after the one on record"
OF_PARTNERS = "no coordinator writes such files"
PRIVATE = "the runs have plain rounds; tests/private/test_service.py stops the coordinator between any two steps of a private one"
OF_PRIVATE_ROUNDS = (KeysArrived, SharesArrived, ComplaintArrived, ConfirmationArrived, RevealArrived, DealtWrongly)
NEVER_PASSED = {
    f"{step}.{side}": why
    for step, why in (
        ("store.save_last_seen", SELDOM),
        ("files.keep_rights", OF_PARTNERS),
        ("files.write_private", OF_PARTNERS),
        *((f"store.apply.{kind.__name__}", PRIVATE) for kind in OF_PRIVATE_ROUNDS),
    )
    for side in ("before", "after")
}
KILLED = [(pair, point) for pair in (Embedded.name, Served.name) for point in all_points() if point not in NEVER_PASSED]
QUICK = [case for case in KILLED if case[0] == Embedded.name]
CHOSEN = KILLED if ALL else random.Random(SEED).sample(QUICK, SAMPLE)
NOT_CHOSEN = pytest.mark.skip(reason=SAMPLE_ONLY)


def test_every_kind_of_event_and_every_contract_has_its_points() -> None:
    assert {f"store.apply.{kind.__name__}" for kind in Event.__args__} <= set(all_steps())
    assert {"store.create_run", "membership.change_membership", "blobs.put", "blobs.delete"} <= set(all_steps())
    assert {"uploads.finish", "averaging.write_next", "files.rename", "files.sync_directory"} <= set(all_steps())
    assert len(all_points()) == 2 * len(set(all_steps()))


@pytest.mark.parametrize(
    "pair",
    [Embedded.name, pytest.param(Served.name, marks=() if ALL else NOT_CHOSEN)],
    indirect=True,
    scope="session",
)
def test_every_point_is_passed_by_a_scenario_or_it_is_known_why_not(undisturbed: Undisturbed) -> None:
    assert set(all_points()) - undisturbed.reached() == set(NEVER_PASSED)
    assert undisturbed.reached() <= set(all_points())


@pytest.mark.parametrize(
    ("pair", "point"),
    [pytest.param(*case, marks=() if case in CHOSEN else NOT_CHOSEN) for case in KILLED],
    indirect=["pair"],
    scope="session",
)
def test_a_coordinator_killed_there_goes_on_as_if_nothing_had_been(
    tmp_path: Path, pair: StorePair, undisturbed: Undisturbed, point: str
) -> None:
    scenario, passes = undisturbed.passing(point)
    for number in passes if ALL else (random.Random(f"{SEED} {point}").choice(passes),):
        fault = Fault.kill_at(point, number)
        ending = drill(tmp_path / str(number), pair, scenario, fault, undisturbed.of(scenario).digest)
        assert ending.fired, f"the coordinator never came to {fault.name}"
