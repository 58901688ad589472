"""The coordinator is killed before and after every durable step: the run ends with the same bits, and its state verifies."""

import random
from pathlib import Path

import pytest
from drill.fleet import Fault
from drill.pairs import Embedded, Served, StorePair
from drill.points import AFTER, BEFORE, all_points, all_steps
from drill.private_clients import UNMASKED
from drill.private_sums import wrong_sums
from drill.scenarios import KILLS, LONG_PRIVATE, PRIVATE_SCENARIOS
from drill.trial import ALL, SAMPLE_ONLY, Undisturbed, drill

from pluralllm.server.rounds.events import (
    ComplaintArrived,
    ConfirmationArrived,
    DealtWrongly,
    Event,
    KeysArrived,
    ModelAveraged,
    RevealArrived,
    SharesArrived,
    UpdateArrived,
)

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("forked_workers")]
SEED, SAMPLE = 20250312, 3
# The reasons why no run passes a point.
SELDOM = "it writes the time of a Hello that comes ten minutes after the one on record"
OF_ANOTHER_RELEASE = "it replaces the checkpoint of an ended run that another release has written"
OF_PARTNERS = "no coordinator writes such files"
# The steps that only private rounds have.
OF_PRIVATE_ROUNDS = (
    "averaging.write_private",
    *(
        f"store.apply.{kind.__name__}"
        for kind in (KeysArrived, SharesArrived, ComplaintArrived, ConfirmationArrived, RevealArrived, DealtWrongly)
    ),
)
NEVER_PASSED = {
    f"{step}.{side}": why
    for step, why in (
        ("store.save_last_seen", SELDOM),
        ("store.save_checkpoint", OF_ANOTHER_RELEASE),
        ("files.keep_rights", OF_PARTNERS),
        ("files.write_private", OF_PARTNERS),
    )
    for side in (BEFORE, AFTER)
}
PRIVATE_POINTS = {f"{step}.{side}" for step in OF_PRIVATE_ROUNDS for side in (BEFORE, AFTER)}
PLAIN_POINTS = [point for point in all_points() if point not in {*NEVER_PASSED, *PRIVATE_POINTS}]
PAIRS = (Embedded.name, Served.name)
KILLED = [(pair, point) for pair in PAIRS for point in PLAIN_POINTS]
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
    assert set(all_points()) - undisturbed.reached() == {*NEVER_PASSED, *PRIVATE_POINTS}
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


# Private rounds

# Each member sends a message of each of these kinds in a round, and each round makes a version.
SURE = (KeysArrived, SharesArrived, UpdateArrived, ConfirmationArrived, RevealArrived, ModelAveraged)
# A round passes all of these points, whatever chance decides.
STORED: tuple[str, ...] = ("inbox.put", "blobs.put", "uploads.begin", "uploads.put", "uploads.finish", "uploads.drop")
STORED += ("files.publish", "files.rename", "files.sync_file")
# All of these, in a drawn order: one run passes each of them again and again.
OFTEN = [
    f"{step}.{side}"
    for step in (*STORED, "averaging.write_private", *(f"store.apply.{kind.__name__}" for kind in SURE))
    for side in (BEFORE, AFTER)
]
random.Random(SEED).shuffle(OFTEN)


def test_a_private_round_whose_coordinator_dies_at_a_step_is_exact(tmp_path: Path) -> None:
    draw, pair, private = random.Random(SEED), Embedded(), PRIVATE_SCENARIOS[0]
    fault = Fault.kill_at(
        f"store.apply.{draw.choice(SURE).__name__}.{draw.choice((BEFORE, AFTER))}", draw.choice((1, 2))
    )
    assert drill(tmp_path / "fleet", pair, private, fault).fired
    kept = next((tmp_path / "fleet" / "ann" / UNMASKED).iterdir())
    content = bytearray(kept.read_bytes())
    content[-4] ^= 1
    kept.write_bytes(content)
    (problem,) = wrong_sums(tmp_path / "fleet" / "server.toml", tmp_path / "fleet")
    assert problem.endswith("is not the sum of its updates without masks")


@pytest.mark.skipif(not ALL, reason=SAMPLE_ONLY)
@pytest.mark.parametrize("pair", PAIRS, indirect=True, scope="session")
def test_private_rounds_pass_every_point_of_their_own_and_those_of_the_stores(undisturbed: Undisturbed) -> None:
    passed = undisturbed.reached_in_rounds()
    own = {*OF_PRIVATE_ROUNDS, *STORED, "blobs.delete", *(f"store.apply.{kind.__name__}" for kind in SURE)}
    assert {f"{step}.{side}" for step in own for side in (BEFORE, AFTER)} <= passed <= set(all_points())


@pytest.mark.skipif(not ALL, reason=SAMPLE_ONLY)
@pytest.mark.timeout(900)
@pytest.mark.parametrize("turn", range(len(OFTEN) // KILLS))
@pytest.mark.parametrize("pair", PAIRS, indirect=True, scope="session")
def test_a_coordinator_that_is_killed_again_and_again_in_private_rounds_makes_the_same_sums(
    tmp_path: Path, pair: StorePair, undisturbed: Undisturbed, turn: int
) -> None:
    draw = random.Random(f"{SEED} {turn}")
    kills = [f"{point}:{draw.randint(1, 3)}" for point in OFTEN[turn * KILLS : (turn + 1) * KILLS]]
    ending = drill(tmp_path / "fleet", pair, LONG_PRIVATE, Fault.kills_at(kills), undisturbed.of(LONG_PRIVATE).digest)
    assert ending.fired, "the run has ended before the last kill"


@pytest.mark.skipif(not ALL, reason=SAMPLE_ONLY)
@pytest.mark.parametrize(
    ("pair", "point"), [(pair, point) for pair in PAIRS for point in all_points()], indirect=["pair"], scope="session"
)
def test_a_coordinator_killed_there_in_a_private_round_makes_the_same_sums(
    tmp_path: Path, pair: StorePair, undisturbed: Undisturbed, point: str
) -> None:
    if (passing := undisturbed.passing_in_rounds(point)) is None:
        pytest.skip("no private round passes it")
    scenario, passes = passing
    for number in passes:
        fault = Fault.kill_at(point, number)
        ending = drill(tmp_path / str(number), pair, scenario, fault, undisturbed.of(scenario).digest)
        assert ending.fired, f"the coordinator never came to {fault.name}"
