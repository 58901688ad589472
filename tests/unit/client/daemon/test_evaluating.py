"""The sums of private rounds get those scores of true answers that policy, budgets and run spec allow."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from support.open_policy import open_policy
from support.process_harness import process_spec
from support.tasks import task_of

from pluralllm.client.daemon.evaluating import Evaluating
from pluralllm.client.daemon.work_under_way import JoinedRun
from pluralllm.client.disclosure.budgets import Budgets
from pluralllm.client.disclosure.measurements import MeasuredScores
from pluralllm.client.disclosure.own_scores import KEPT_BACK, REPORTED, OwnScores, OwnScoresFolder, in_sum_of
from pluralllm.client.keeping.record_chain import SeenRun, SeenVersion
from pluralllm.client.link.tasks import Task
from pluralllm.client.work.worker_limits import WorkerLimits
from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.not_reported import NotReported

SPEC = process_spec(
    private_rounds={},
    round={"min_clients": 3, "target_clients": 3, "evaluate_every": 4},
    aggregation={"max_examples": 1_024},
)
MEASURED = MeasuredScores(0.712345, None, 30, 0, 0.02)
DIGEST = Digest("b" * 64)
RUN = JoinedRun(SPEC, SPEC.canonical_json())


class Making:
    """A worker that counts how often it scores."""

    def __init__(self, measured: MeasuredScores | Exception) -> None:
        self.result, self.asked = measured, 0

    async def prepare(self, *_: Any) -> None: ...

    async def measured(self, *_: Any) -> MeasuredScores:
        self.asked += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class Client:
    """A client whose base versions were made in the rounds `made_in`, by version."""

    def __init__(self, folder: Path, measured: MeasuredScores | Exception = MEASURED, **policy: Any) -> None:
        self.noised, self.making, self.own = False, Making(measured), OwnScoresFolder(folder / "scores")
        self.made_in = {0: 0, 1: 1, 2: 2, 3: 4}
        rules = open_policy(**policy)
        self.budgets = Budgets(folder / "runs", rules)
        self.budgets.open_for([])
        self.evaluating = Evaluating(
            rules,
            cast(Any, self),
            self.budgets,
            self.own,
            cast(Any, self.making),
            cast(Any, self),
            WorkerLimits.of(rules),
        )

    @property
    def is_noised(self) -> bool:
        return self.noised

    def seen(self, _run: RunId) -> SeenRun:
        versions = {ModelVersion(v): SeenVersion("", DIGEST, RoundNumber(r), 3) for v, r in self.made_in.items()}
        return SeenRun(versions)

    async def evaluate(self, version: int) -> Any:
        """Answers the coordinator's question for the scores of a version."""

        async def fetch() -> Path:
            return Path("weights")

        return await self.evaluating.answer(self.joined(version, 1), RUN, fetch, lambda *_: None)

    async def score(self, version: int, number: int) -> float | None:
        """Returns the score for the sum of a round; the coordinator has asked for it before."""
        assert await self.evaluate(version) is NotReported.KEPT_BACK
        task = self.joined(version, number)
        score = await self.evaluating.for_sum(task, RUN)
        if score is not None:
            await self.evaluating.note_given(task)
        return score

    def joined(self, version: int, number: int) -> Task:
        task = training(version, number)
        self.budgets.join(task.run, task.spec_sha256)
        return task


def training(version: int, number: int) -> Task:
    return task_of(SPEC, round_number=number, base_version=ModelVersion(version), base_digest=Digest(f"{version:064}"))


@pytest.mark.parametrize(
    ("version", "number", "is_due"),
    [(0, 1, True), (0, 3, True), (1, 2, False), (2, 4, False), (2, 5, True), (3, 5, True), (3, 6, True)],
    ids=str,
)
async def test_a_base_version_is_scored_when_the_spec_asks_for_its_evaluation(
    tmp_path: Path, version: int, number: int, is_due: bool
) -> None:
    client = Client(tmp_path)
    assert await client.score(version, number) == (0.712 if is_due else None)


@pytest.mark.parametrize(("spec_format", "is_due"), [("pluralllm.run/4", True), ("pluralllm.run/3", False)])
async def test_the_last_version_is_scored_in_the_closing_round(tmp_path: Path, spec_format: str, is_due: bool) -> None:
    spec = SPEC.model_copy(update={"format": spec_format, "rounds": 2})
    client, run = Client(tmp_path), JoinedRun(spec, spec.canonical_json())
    assert await client.evaluate(2) is NotReported.KEPT_BACK
    assert await client.evaluating.for_sum(client.joined(2, 3), run) == (0.712 if is_due else None)
    unknown = client.joined(7, 3)
    assert await client.evaluating.for_sum(unknown, run) is None, "its record is not checked"


async def test_a_version_is_measured_once_and_counts_once(tmp_path: Path) -> None:
    client = Client(tmp_path, max_evaluations_of_run=2)
    assert [await client.score(0, number) for number in (1, 2)] == [0.712] * 2, "round 1 was abandoned"
    assert client.making.asked == 1
    [kept] = client.own.of(RunId("r"))
    assert (kept.measured, kept.left) == (MEASURED, in_sum_of(RoundNumber(2)))
    assert client.budgets.spent(RunId("r")) is None
    assert await client.score(3, 5) == 0.712
    assert client.budgets.spent(RunId("r")) == "max_evaluations_of_run"


async def test_a_score_beyond_the_budget_stays_and_is_shown_to_the_partner(tmp_path: Path) -> None:
    client = Client(tmp_path, max_evaluations_of_run=1)
    assert [await client.score(0, 1), await client.score(3, 5)] == [0.712, None]
    assert [one.left for one in client.own.of(RunId("r"))] == [in_sum_of(RoundNumber(1)), KEPT_BACK]


@pytest.mark.parametrize(
    "change",
    [
        {"private_rounds": {"evaluation": "none"}},
        {"allow_evaluation": False},
        {"allowed_metrics": ["loss"]},
        {"min_questions_behind": 31},
    ],
    ids=str,
)
async def test_a_score_that_the_policy_does_not_allow_is_in_no_sum(tmp_path: Path, change: dict[str, Any]) -> None:
    client = Client(tmp_path, **change)
    assert await client.score(0, 1) is None
    assert client.budgets.spent(RunId("r")) is None


@pytest.mark.parametrize("noised", [False, True])
async def test_scores_that_leave_alone_are_in_no_sum(tmp_path: Path, noised: bool) -> None:
    client = Client(tmp_path, private_rounds={"evaluation": "sum" if noised else "own"})
    client.noised = noised
    reported = await client.evaluate(0)
    assert reported.alignment_score == (0.712 if noised else 0.71)
    assert await client.evaluating.for_sum(training(0, 1), RUN) is None
    assert [(one.noised, one.left) for one in client.own.of(RunId("r"))] == [(noised, REPORTED)]
    client.noised = not noised
    assert await client.evaluating.for_sum(training(0, 1), RUN) is None, "a score of other answers than those in use"


async def test_a_version_that_was_never_measured_is_in_no_sum(tmp_path: Path) -> None:
    client = Client(tmp_path)
    assert await client.evaluating.for_sum(client.joined(0, 1), RUN) is None
    assert client.making.asked == 0


async def test_a_score_that_cannot_be_computed_is_left_out_and_the_training_goes_on(tmp_path: Path) -> None:
    client = Client(tmp_path, ValueError("secret"))
    assert await client.score(0, 1) is None
    assert client.own.runs() == []


def scores(version: int, digest: str = "a", **changes: Any) -> OwnScores:
    return replace(OwnScores(ModelVersion(version), Digest(digest * 64), False, KEPT_BACK, MEASURED), **changes)


def test_own_scores_are_private_are_found_by_model_and_answers_and_the_newest_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pluralllm.client.disclosure.own_scores.KEPT", 2)
    folder, r = OwnScoresFolder(tmp_path / "scores"), RunId("r")
    for version in (1, 3, 2):
        folder.keep(r, scores(version))
    assert [one.version for one in folder.of(r)] == [2, 3]
    assert (tmp_path / "scores" / "r.json").stat().st_mode & 0o077 == 0
    for digest, noised, measured in (("a", False, MEASURED), ("b", False, None), ("a", True, None)):
        assert folder.measured(r, ModelVersion(2), Digest(digest * 64), noised=noised) == measured
    folder.mark(r, ModelVersion(2), "reported")
    folder.mark(r, ModelVersion(7), "reported")
    assert [one.left for one in folder.of(r)] == ["reported", KEPT_BACK]
