"""Runs real processes under seeded faults, and tests that the verdict can fail.

`python -m nemesis --seed N` repeats a seed.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from drill.pairs import Embedded, Served, StorePair
from drill.trial import ALL, REPORT
from nemesis.federation import Federation
from nemesis.report import Total
from nemesis.schedule import CLIENTS, ROUNDS, Kind, kinds_for, schedule
from nemesis.trial import Trials
from nemesis.verdict import Record, broken_promises, differences

SAMPLE = {Served.name: (100,)}  # the drills of tests/faults are on the other pair
SEEDS = {Embedded.name: range(100), Served.name: range(100, 200)}
CHOSEN = [(pair, seed) for pair, seeds in (SEEDS if ALL else SAMPLE).items() for seed in seeds]
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


def test_a_seed_is_a_schedule_and_all_kinds_come_in_a_hundred_of_them() -> None:
    for stores, seeds in SEEDS.items():
        kinds = kinds_for(stores)
        plans = [schedule(seed, stores, kinds) for seed in seeds]
        assert [plan.sha256 for plan in plans] == [schedule(seed, stores, kinds).sha256 for seed in seeds]
        assert len({plan.sha256 for plan in plans}) == len(seeds) == 100
        assert {strike.kind for plan in plans for strike in plan.strikes} == set(kinds)
        assert all({strike.round for strike in plan.strikes} == set(range(1, ROUNDS + 1)) for plan in plans)
    assert set(kinds_for(Embedded.name)) | set(kinds_for(Served.name)) == set(Kind)


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
