"""The check of model versions before this client trains on them."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs
from support.process_harness import process_spec
from support.tasks import task_of

from pluralllm.client.keeping.history import History
from pluralllm.client.private_rounds import verification
from pluralllm.client.private_rounds.verification import Examined, Knowledge, Verification
from pluralllm.common.errors.private_rounds import AggregateDiffers
from pluralllm.common.errors.tree import NotFound
from pluralllm.common.predictor.first_version import write_first_version
from pluralllm.common.words.ids import Digest, ModelVersion, RunId

SPEC = process_spec()
TASK = task_of(SPEC, round_number=3)


def knowledge(folder: Path, share: float | None = None) -> Knowledge:
    return Knowledge(folder, "test", History(folder / "history"), cast(Any, None), folder / "peers.toml", 1, share)


@pytest.mark.parametrize(
    ("share", "cohort", "expected"), [(None, 4, 1.0), (None, 32, 0.25), (0.5, 4, 0.5), (0.0, 4, 0.0)]
)
def test_the_share_of_checked_versions_is_the_policys_or_follows_from_the_cohort(
    tmp_path: Path, share: float | None, cohort: int, expected: float
) -> None:
    assert knowledge(tmp_path, share).share(cohort) == expected


async def test_a_crafted_first_version_is_not_checked(tmp_path: Path) -> None:
    digest = write_first_version(tmp_path / "first", SPEC).digest
    check = Verification(knowledge(tmp_path), cast(Any, None))
    first = replace(TASK, base_version=ModelVersion(0))
    assert await check.is_checked(replace(first, base_digest=digest), SPEC)
    assert not await check.is_checked(replace(first, base_digest=Digest("c" * 64)), SPEC)
    assert not list((tmp_path / "verification").iterdir())


class Vouched(Verification):
    """A check of versions whose sums have updates of members that this client knows."""

    def _is_vouched(self, run: RunId, version: ModelVersion) -> bool:
        return True


class Checking(Vouched):
    """A check that only counts."""

    def __init__(self, known: Knowledge, error: Exception | None = None) -> None:
        super().__init__(known, cast(Any, None))
        self.checks, self.error = 0, error

    async def check(self, *_: Any) -> tuple[str, ...]:
        self.checks += 1
        if self.error is not None:
            raise self.error
        return ()


async def test_a_version_is_checked_once_and_one_without_files_stays_unchecked(tmp_path: Path) -> None:
    check = Checking(knowledge(tmp_path, 0.0))
    assert [await check.is_checked(TASK, SPEC), await check.is_checked(TASK, SPEC)] == [True, True]
    assert check.checks == 1, "small versions are always checked"
    assert not await Checking(knowledge(tmp_path), NotFound(what="transcript", name="r")).is_checked(TASK, SPEC)


@pytest.mark.parametrize(("share", "checks"), [(0.0, 0), (1.0, 1)])
async def test_a_large_version_is_checked_by_a_coin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, checks: int
) -> None:
    monkeypatch.setattr(verification, "ALWAYS_BYTES", 1000)
    check = Checking(knowledge(tmp_path, share))
    assert await check.is_checked(TASK, SPEC) == bool(checks)
    assert check.checks == checks


async def test_evidence_of_a_run_ends_the_clients_part_in_it_for_good(tmp_path: Path) -> None:
    (tmp_path / "evidence" / "r.1").mkdir(parents=True)
    check = Checking(knowledge(tmp_path))
    with pytest.raises(AggregateDiffers, match="evidence"):
        await check.is_checked(TASK, SPEC)
    assert await check.is_checked(task_of(SPEC, run="other"), SPEC)


@pytest.mark.parametrize(
    ("pinned", "is_vouched"), [({"me"}, True), ({"ann"}, False), ({"ann", "bob"}, True), (set(), False)]
)
def test_a_version_is_vouched_for_by_the_own_update_or_by_more_members_than_may_collude(
    tmp_path: Path, pinned: set[str], is_vouched: bool
) -> None:
    known = replace(knowledge(tmp_path), peers=cast(Any, SimpleNamespace(name="me")))
    check = Verification(known, cast(Any, None))
    check._last[TASK.run] = Examined(ModelVersion(2), None, frozenset(pinned))
    assert check._is_vouched(TASK.run, ModelVersion(2)) == is_vouched
    assert not check._is_vouched(TASK.run, ModelVersion(3)), "the sum of another version vouches for nothing"


def test_the_state_of_the_optimizer_before_a_version_is_kept_for_a_check_that_is_cancelled(tmp_path: Path) -> None:
    check, folder = Verification(knowledge(tmp_path), cast(Any, None), tmp_path), tmp_path / "made"
    folder.mkdir()
    states = [Digest(letter * 64) for letter in "abc"]
    for before, made in zip(((), states[:1], states[1:2]), states, strict=True):
        (folder / "moment").write_text(made)
        check.keep_moments(RunId("r"), {made: folder / "moment"}, before)
    kept = {path.name: path.read_text() for path in tmp_path.glob("r.moment-*")}
    assert kept == {f"r.moment-{state}": state for state in states[1:]}
    check.keep_moments(RunId("r"), {}, ())
    assert not list(tmp_path.glob("r.moment-*"))


async def test_files_of_a_check_that_is_cancelled_are_deleted_after_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go, ends = threading.Event(), threading.Event(), list[bool]()

    def slowly(*arguments: Any) -> None:
        begun.set()
        go.wait(10)
        ends.append(arguments[-1].is_dir())

    async def found(*_: object) -> Any:
        return SimpleNamespace(spec_sha256="s", members=(), updates=(), tail=())

    for name in ("_record", "_transcript", "_check_transcript", "_fetch"):
        monkeypatch.setattr(Verification, name, found)
    monkeypatch.setattr(Verification, "_check_sum", slowly)
    check = Verification(knowledge(tmp_path), cast(Any, None), tmp_path / "work")
    checking = asyncio.create_task(check.check(RunId("r"), ModelVersion(1), SPEC, "s"))
    await asyncio.to_thread(begun.wait, 10)
    checking.cancel()
    done, _ = await asyncio.wait([checking], timeout=0.05)
    go.set()
    await asyncio.wait([checking], timeout=10)
    assert (done, checking.cancelled(), ends) == (set(), True, [True])
    assert not (tmp_path / "work" / "r.1").exists()


async def test_a_run_that_is_over_is_forgotten_and_the_others_are_not(tmp_path: Path) -> None:
    check, other = Telling(knowledge(tmp_path), 0.25), task_of(SPEC, run="other", round_number=3)
    for task in (TASK, other):
        assert await check.is_checked(task, SPEC)
    check.forget(TASK.run)
    for task in (TASK, other):
        assert await check.is_checked(task, SPEC)
        assert await check.mean_distance(task, SPEC) == 0.25
    assert check.added == [True] * 3, "only the forgotten version is computed again"
    check.forget(TASK.run)
    assert await check.mean_distance(TASK, SPEC) == 0.25
    assert check.added == [True] * 3 + [False]


class Telling(Vouched):
    """A check that finds the mean distance of the round that made a version, or an error."""

    def __init__(self, known: Knowledge, found: float | Exception | None) -> None:
        super().__init__(known, cast(Any, None))
        self.found, self.added = found, list[bool]()

    async def _examined(self, run: RunId, version: ModelVersion, *_: Any, adds: bool) -> Any:
        self.added.append(adds)
        if isinstance(self.found, Exception):
            raise self.found
        self._last[run] = Examined(version, self.found, frozenset())
        return SimpleNamespace(updates=(), fixed=SimpleNamespace(in_sum=()))


@pytest.mark.parametrize("found", [0.25, None])
async def test_the_mean_distance_is_read_once_without_adding_the_sum(tmp_path: Path, found: float | None) -> None:
    check = Telling(knowledge(tmp_path), found)
    assert [await check.mean_distance(TASK, SPEC) for _ in range(2)] == [found, found]
    assert check.added == [False]
    assert await check.mean_distance(replace(TASK, base_version=ModelVersion(0)), SPEC) is None
    check.found = 0.5
    assert await check.mean_distance(replace(TASK, base_version=ModelVersion(3)), SPEC) == 0.5
    assert await check.mean_distance(replace(TASK, run=RunId("other")), SPEC) == 0.5
    assert check.added == [False] * 3


async def test_the_mean_distance_of_a_version_that_was_checked_is_known_already(tmp_path: Path) -> None:
    check = Telling(knowledge(tmp_path), 0.25)
    assert await check.is_checked(TASK, SPEC)
    assert await check.mean_distance(TASK, SPEC) == 0.25
    assert check.added == [True]


async def test_a_transcript_that_is_gone_has_no_mean_distance_and_a_false_one_ends_the_part_in_the_run(
    tmp_path: Path,
) -> None:
    gone = Telling(knowledge(tmp_path), NotFound(what="transcript", name="r"))
    with capture_logs() as logs:
        assert await gone.mean_distance(TASK, SPEC) is None
    assert [line["event"] for line in logs] == ["private.no_mean_distance"]
    false = AggregateDiffers(run=RunId("r"), version=ModelVersion(2), problem="it is none", evidence="here")
    with pytest.raises(AggregateDiffers):
        await Telling(knowledge(tmp_path), false).mean_distance(TASK, SPEC)
