"""The scores of model versions: measured for the partner, reported if its policy allows it, or added to a private round's sum."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from pluralllm.client.daemon.making import Making
from pluralllm.client.daemon.work_under_way import JoinedRun
from pluralllm.client.data.private_file import PrivateFile
from pluralllm.client.disclosure.budgets import Budgets
from pluralllm.client.disclosure.limits import is_closing
from pluralllm.client.disclosure.measurements import MeasuredScores
from pluralllm.client.disclosure.outgoing import keeps_scores, reported_scores, score_in_sum
from pluralllm.client.disclosure.own_scores import KEPT_BACK, REPORTED, OwnScores, OwnScoresFolder, in_sum_of
from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.keeping.history import History
from pluralllm.client.link.tasks import Scores, Task
from pluralllm.client.work.worker_limits import WorkerLimits
from pluralllm.client.work.worker_process import Progress
from pluralllm.common.words.not_reported import NotReported

log = structlog.get_logger()

Fetch = Callable[[], Awaitable[Path]]  # downloads the version to score


@dataclass(frozen=True, slots=True)
class Evaluating:
    """Measures scores, and decides by the partner's policy and budgets which of them leave this machine."""

    policy: Policy
    data: PrivateFile
    budgets: Budgets
    own: OwnScoresFolder
    making: Making
    history: History
    limits: WorkerLimits

    async def answer(self, task: Task, run: JoinedRun, fetch: Fetch, on_progress: Progress) -> Scores | NotReported:
        """Returns the answer to a task that evaluates: the scores reported before, new ones, or the reason why there are none.

        Scores that stay on this machine are measured, too, for the partner. If that fails, the answer is the same.
        """
        noised = self.data.is_noised  # before the worker reads the file: a release meanwhile changes nothing
        if keeps_scores(self.policy, run.spec, is_noised=noised):
            if await asyncio.to_thread(self._known, task, noised) is None:
                async with self.limits.task_time():
                    weights = await fetch()
                    await self.making.prepare(run, on_progress)
                    await self._measured_or_none(task, run, weights, on_progress, noised=noised)
            return NotReported.KEPT_BACK
        scores = await asyncio.to_thread(self.budgets.answer, task)
        if scores is None:
            async with self.limits.task_time():
                scores = await self._scores(task, run, await fetch(), on_progress, noised=noised)
        return scores

    async def for_sum(self, task: Task, run: JoinedRun) -> float | None:
        """Returns the score of a training's base version that may go into the sum of its round; None if none may.

        The score was measured when the coordinator asked for it. It counts against the budgets, once for each version, and is the
        same after a restart.
        """
        noised = self.data.is_noised
        if not self.policy.allow_evaluation or not self._is_due(task, run):
            return None
        if not keeps_scores(self.policy, run.spec, is_noised=noised) or self.policy.private_rounds.evaluation != "sum":
            return None
        measured = await asyncio.to_thread(self._known, task, noised)
        score = None if measured is None else score_in_sum(self.policy, measured)
        if measured is None or score is None:
            return None
        if not await asyncio.to_thread(self.budgets.add_to_sum, task, measured.questions):
            log.warning("evaluation.not_in_sum", task=task.name, key=self.budgets.spent(task.run))
            return None
        return score

    async def note_given(self, task: Task) -> None:
        """Notes for the partner that the score of a training's base version is in the masked update of its round."""
        await asyncio.to_thread(self.own.mark, task.run, task.base_version, in_sum_of(task.round))

    def _is_due(self, task: Task, run: JoinedRun) -> bool:
        """Returns whether the run spec asks for an evaluation of a training's base version. Its record is checked already.

        An evaluation follows each round whose number is a multiple of evaluate_every, the last round, and the start of the run. A
        closing round is there for nothing but the scores of its base version.
        """
        seen = self.history.seen(task.run).versions.get(task.base_version)
        made_in = None if seen is None else seen.round
        if is_closing(run.spec, task):
            return made_in is not None
        every = run.spec.round.evaluate_every
        return made_in is not None and (task.round - 1) // every * every >= made_in

    async def _scores(
        self, task: Task, run: JoinedRun, weights: Path, on_progress: Progress, *, noised: bool
    ) -> Scores | NotReported:
        """Scores a version and charges it to the budgets, before anything is known of the result."""
        await self.making.prepare(run, on_progress)
        await asyncio.to_thread(self.budgets.begin, task)
        measured = await self.making.measured(task, run.spec, weights, on_progress)
        scores = reported_scores(self.policy, measured, is_noised=noised)
        if isinstance(scores, Scores):
            await asyncio.to_thread(self.budgets.keep, task, scores)
        else:
            await asyncio.to_thread(self.budgets.take_back, task)
        left = REPORTED if isinstance(scores, Scores) else KEPT_BACK
        await asyncio.to_thread(self._keep, task, measured, left, noised)
        return scores

    async def _measured_or_none(
        self, task: Task, run: JoinedRun, weights: Path, on_progress: Progress, *, noised: bool
    ) -> MeasuredScores | None:
        """Scores a version for the partner. If that fails, which may depend on the answers, only the partner's log says so."""
        try:
            measured = await self.making.measured(task, run.spec, weights, on_progress)
            await asyncio.to_thread(self._keep, task, measured, KEPT_BACK, noised)
        except Exception as error:  # noqa: BLE001 - nothing else depends on it
            log.warning("evaluation.not_measured", task=task.name, problem=str(error))
            return None
        return measured

    def _known(self, task: Task, noised: bool) -> MeasuredScores | None:
        return self.own.measured(task.run, task.base_version, task.base_digest, noised=noised)

    def _keep(self, task: Task, measured: MeasuredScores, left: str, noised: bool) -> None:
        self.own.keep(task.run, OwnScores(task.base_version, task.base_digest, noised, left, measured))
