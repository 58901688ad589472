"""Runs real processes under seeded faults, and tests that the verdict can fail.

`python -m nemesis --seed N` repeats a seed.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from drill.pairs import Embedded, Served, StorePair
from drill.private_clients import SAID
from drill.private_sums import revealed_twice
from drill.trial import ALL, REPORT, SAMPLE_ONLY
from nemesis import report
from nemesis.federation import SPECS, Federation
from nemesis.logs import MOMENTS
from nemesis.report import Total
from nemesis.schedule import CLIENTS, MEMBERS, PLAIN_MOMENTS, ROUNDS, Kind, Moment, kinds_for, schedule
from nemesis.trial import Outcome, Trials
from nemesis.verdict import Record, broken_promises, differences, private_differences
from support.private_members import member_key

from pluralllm.common.private_rounds.messages import Reveal
from pluralllm.common.wire.round_steps import step_request
from pluralllm.common.words.ids import Digest

SAMPLE = {Served.name: (100,)}  # the drills of tests/faults are on the other pair
SEEDS = {Embedded.name: range(100), Served.name: range(100, 200)}
PRIVATE_SEEDS = {Embedded.name: range(200, 300), Served.name: range(300, 400)}
CHOSEN = [(pair, seed) for pair, seeds in (SEEDS if ALL else SAMPLE).items() for seed in seeds]
PRIVATE_CHOSEN = [(pair, seed) for pair, seeds in PRIVATE_SEEDS.items() for seed in (seeds if ALL else seeds[:1])]
pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300)]  # each seed has shorter limits of its own


@pytest.fixture(scope="module")
def trials(pair: StorePair, tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(pair, tmp_path_factory.mktemp("nemesis"))


@pytest.fixture(scope="module")
def total() -> Iterator[Total]:
    """The sums over both pairs of stores; printed at the end, and written to the report if there is one."""
    sums = Total()
    yield sums
    print("", *sums.lines(), sep="\n")
    if REPORT:
        sums.write(Path(REPORT))


@pytest.mark.parametrize(("pair", "seed"), CHOSEN, indirect=["pair"], scope="session")
def test_nothing_is_lost_whatever_strikes(trials: Trials, pair: StorePair, seed: int, total: Total) -> None:
    outcome = trials.run(seed)
    total.add(outcome)
    assert outcome.fired.total() > 0
    assert not outcome.problems, outcome.report()


@pytest.fixture(scope="module")
def private_trials(pair: StorePair, tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(pair, tmp_path_factory.mktemp("private-nemesis"), private=True)


@pytest.mark.skipif(not ALL, reason=SAMPLE_ONLY)
@pytest.mark.parametrize(("pair", "seed"), PRIVATE_CHOSEN, indirect=["pair"], scope="session")
def test_every_private_sum_is_exact_whatever_strikes(
    private_trials: Trials, pair: StorePair, seed: int, total: Total
) -> None:
    outcome = private_trials.run(seed)
    total.add(outcome)
    assert outcome.fired.total() > 0
    assert not outcome.problems, outcome.report()


def test_a_seed_is_a_schedule_and_all_kinds_come_in_a_hundred_of_them() -> None:
    for stores, seeds in SEEDS.items():
        kinds = kinds_for(stores)
        plans = [schedule(seed, stores, kinds) for seed in seeds]
        assert [plan.sha256 for plan in plans] == [schedule(seed, stores, kinds).sha256 for seed in seeds]
        assert len({plan.sha256 for plan in plans}) == len(seeds) == 100
        assert {strike.kind for plan in plans for strike in plan.strikes} == set(kinds)
        assert all({strike.round for strike in plan.strikes} == set(range(1, ROUNDS + 1)) for plan in plans)
    quiet = schedule(0, Embedded.name, kinds_for(Embedded.name))
    assert quiet.sha256.startswith("29a326de7bc3a579"), "the faults of a seed stay the same, whatever is added"
    assert set(kinds_for(Embedded.name)) | set(kinds_for(Served.name)) == set(Kind)


def test_private_seeds_strike_every_member_at_every_moment() -> None:
    for stores, seeds in PRIVATE_SEEDS.items():
        kinds = kinds_for(stores)
        plans = [schedule(seed, stores, kinds, private=True) for seed in seeds]
        assert len({plan.sha256 for plan in plans}) == len(seeds) == 100
        assert {plan.scenario for plan in plans} == {"private everybody", "private quorum"} <= set(SPECS)
        strikes = [strike for plan in plans for strike in plan.strikes]
        assert {strike.kind for strike in strikes} == set(kinds)
        assert {strike.client for strike in strikes} == set(MEMBERS)
        assert {strike.moment for strike in strikes} == set(Moment) == set(MOMENTS.values())
        plain = schedule(seeds[0], stores, kinds)
        assert plain.strikes != plans[0].strikes
        assert {strike.moment for strike in plain.strikes} <= set(PLAIN_MOMENTS)
        assert [plan.is_private for plan in (plain, *plans)] == [False] + [True] * len(plans)


def test_a_record_tells_private_seeds_from_plain_ones(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    plan = schedule(7, Embedded.name, kinds_for(Embedded.name), private=True)
    report.Record(path, Embedded.name, private=True).add(Outcome(plan, 1.0, Counter(), Counter(), 0, None, []))
    assert json.loads(path.read_text())["rounds"] == "private"
    assert report.Record(path, Embedded.name, private=True).has(7)
    assert not report.Record(path, Embedded.name).has(7)
    assert "--private" in Outcome(plan, 1.0, Counter(), Counter(), 0, None, []).again


# Tests that the verdict can fail


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The record of a run without faults."""
    return Trials(Embedded(), tmp_path_factory.mktemp("plain")).undisturbed("everybody")


def test_the_same_run_has_no_differences_and_other_bits_of_the_same_updates_are_named(plain: Record) -> None:
    assert list(differences(plain, plain, may_differ=False)) == []
    first, second, *others = plain.versions
    other_bits = replace(plain, versions=(first, replace(second, digest=first.digest), *others))
    for may_differ in (False, True):
        assert list(differences(other_bits, plain, may_differ=may_differ)) == [
            "version 1 has other bits than undisturbed, of the same updates"
        ]


def test_a_version_that_is_missing_and_an_update_that_is_another_are_named(plain: Record) -> None:
    short = replace(plain, versions=plain.versions[:-1])
    assert list(differences(short, plain, may_differ=False)) == [f"{ROUNDS} versions, undisturbed {ROUNDS + 1}"]
    other = replace(plain, receipts=plain.receipts | {(1, "ann"): "0" * 64})
    assert list(differences(other, plain, may_differ=True)) == [
        "round 1: the update of ann is another one than undisturbed"
    ]


def federation_with_receipts(folder: Path, receipts: dict[tuple[int, str], str]) -> Federation:
    """Returns clients whose logs report these receipts."""
    for name in CLIENTS:
        lines = [
            json.dumps(
                {"event": "update.committed", "task": f"runs/r/rounds/{number}/tasks/train-{name}", "digest": digest}
            )
            for (number, client), digest in receipts.items()
            if client == name
        ]
        (folder / f"{name}.log").write_text("".join(f"{line}\n" for line in lines))
    logs: dict[str, Any] = {
        name: SimpleNamespace(process=SimpleNamespace(log=folder / f"{name}.log")) for name in CLIENTS
    }
    return cast("Federation", SimpleNamespace(clients=logs))


def test_a_receipt_that_is_not_on_record_or_does_not_count_is_named(plain: Record, tmp_path: Path) -> None:
    promised = federation_with_receipts(tmp_path, plain.receipts)
    assert list(broken_promises(promised, plain)) == []
    lost = replace(plain, receipts={key: digest for key, digest in plain.receipts.items() if key != (2, "ben")})
    assert list(broken_promises(promised, lost)) == ["round 2: the receipt of ben is not on record"]
    without_ann = [
        replace(version, updates=tuple(update for update in version.updates if update[0] != "ann"))
        if version.version == 3
        else version
        for version in plain.versions
    ]
    forgotten = replace(plain, versions=tuple(without_ann))
    assert list(broken_promises(promised, forgotten)) == ["round 3: the update of ann does not count"]


def test_private_versions_are_compared_by_their_members_and_bits(plain: Record) -> None:
    masked = [
        replace(version, updates=tuple((client, Digest("f" * 64), 0) for client, *_ in version.updates))
        for version in plain.versions
    ]
    again = replace(plain, versions=tuple(masked), receipts={})
    assert list(private_differences(again, plain, may_differ=False)) == []
    other_bits = replace(again, versions=(masked[0], replace(masked[1], digest=masked[0].digest), *masked[2:]))
    assert list(private_differences(other_bits, plain, may_differ=True)) == [
        "version 1 has other bits than undisturbed, of the same updates"
    ]
    fewer = replace(again, versions=(masked[0], replace(masked[1], updates=masked[1].updates[:-1]), *masked[2:]))
    assert list(private_differences(fewer, plain, may_differ=True)) == []
    assert list(private_differences(fewer, plain, may_differ=False)) == [
        "version 1 is made of other updates than undisturbed"
    ]


def test_two_shares_of_one_dealer_and_reveals_for_two_sums_are_named(tmp_path: Path) -> None:
    def reveal(name: str, sum_sha256: bytes, number: int) -> None:
        folder = tmp_path / name / SAID
        folder.mkdir(parents=True, exist_ok=True)
        values = {1: bytes([0, number]) + bytes(31), 2: bytes(33)}
        body = Reveal.of(sum_sha256, values).signed(member_key(name))
        request = step_request(f"runs/r/rounds/1/tasks/train-{name}", bytes(32), body)
        (folder / f"{number}{sum_sha256[0]}").write_bytes(request.SerializeToString())

    homes = [tmp_path / "ann", tmp_path / "ben"]
    for name in ("ann", "ben"):
        reveal(name, bytes(32), 0)
    assert list(revealed_twice(homes)) == []
    reveal("ann", bytes(32), 0)
    (tmp_path / "ann" / SAID / "half.draft").write_bytes(b"")
    assert list(revealed_twice(homes)) == [], "the same again, and one that was cut off"
    reveal("ben", bytes(32), 1)
    assert list(revealed_twice(homes)) == ["runs/r/rounds/1/tasks/train-ben: ben has sent 2 shares of member 1"]
    reveal("ann", bytes([1]) * 32, 0)
    assert list(revealed_twice(homes))[1:] == ["runs/r/rounds/1: the members have revealed for 2 sums"]
