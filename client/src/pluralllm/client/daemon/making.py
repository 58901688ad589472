"""Lets the worker process make the results of tasks: updates, masked updates, rewards and scores."""

from pathlib import Path

import structlog

from pluralllm.client.daemon.work_orders import WorkOrders
from pluralllm.client.daemon.work_under_way import JoinedRun
from pluralllm.client.disclosure.measurements import MeasuredScores
from pluralllm.client.disclosure.outgoing import reported_metrics
from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.link.tasks import Task
from pluralllm.client.private_rounds.masking import MaskingSecrets
from pluralllm.client.process.instruments import ALIGNMENT, CONTEXT_GAIN, GPU_MEMORY_BYTES, LOSS, WORK_SECONDS
from pluralllm.client.work.orders import EVALUATE, MASK, PREPARE, REWARD, TRAIN, Masked, Rewards, TrainedUpdate
from pluralllm.client.work.worker_process import Progress, WorkerProcess
from pluralllm.common.process.tracing import span
from pluralllm.common.words.spec import RunSpec

log = structlog.get_logger()


class Making:
    """Gives the worker its orders. The worker writes each result to a draft file (`Drafts`)."""

    def __init__(self, worker: WorkerProcess, orders: WorkOrders, policy: Policy) -> None:
        self._worker, self._orders, self._policy = worker, orders, policy
        self._warned_of = b""  # the spec of the run whose start has shown what the embedding model cannot see

    async def prepare(self, run: JoinedRun, on_progress: Progress) -> None:
        """Lets the worker read, check and embed the private data for a run.

        Logs, once for each run, the kinds of things that the embedding model cannot see. This stays on this machine.
        """
        prepared = await self._worker.ask(PREPARE, self._orders.prepare(run.spec, run.spec_json), on_progress)
        if prepared.not_seen and run.spec_json != self._warned_of:
            self._warned_of = run.spec_json
            model, fix = run.spec.embedding.model, "pluralllm-client data check --cache shows numbers and what to do"
            log.warning("embedding.cannot_see", model=model, not_seen=list(prepared.not_seen), fix=fix)

    async def update(
        self, task: Task, weights: Path, on_progress: Progress, round_seed: int | None = None
    ) -> tuple[TrainedUpdate, dict[str, float]]:
        """Trains. Returns the update, and the numbers about the training that may leave this machine, by name.

        weights: file of the model version that the training starts from. round_seed: as for `WorkOrders.train`.
        """
        with WORK_SECONDS.labels(task.kind).time(), span("work"):
            trained = await self._worker.ask(TRAIN, self._orders.train(task, weights, round_seed), on_progress)
        LOSS.set(trained.measured.loss)
        GPU_MEMORY_BYTES.set(trained.gpu_memory_bytes)
        return trained, reported_metrics(self._policy, trained.measured)

    async def rewards(
        self, task: Task, spec: RunSpec, weights: Path, rollouts: bytes, on_progress: Progress
    ) -> Rewards:
        """Scores a batch of rollouts. weights: file of the model version that scores. rollouts: the batch as JSON."""
        order = self._orders.reward(task, spec, weights, rollouts)
        with WORK_SECONDS.labels(task.kind).time(), span("work"):
            return await self._worker.ask(REWARD, order, on_progress)

    async def measured(self, task: Task, spec: RunSpec, weights: Path, on_progress: Progress) -> MeasuredScores:
        """Scores a model version of a run that the worker has prepared. weights: file of the version."""
        with WORK_SECONDS.labels(task.kind).time(), span("work"):
            measured = await self._worker.ask(EVALUATE, self._orders.evaluate(task, spec, weights), on_progress)
        ALIGNMENT.set(measured.alignment_score)
        CONTEXT_GAIN.set(measured.context_gain)
        return measured

    async def masked(
        self,
        spec: RunSpec,
        trained: tuple[TrainedUpdate, dict[str, float]],
        members: int,
        secrets: MaskingSecrets,
        factor: float,
        score: float | None,
        on_progress: Progress,
    ) -> Masked:
        """Masks the draft of an update.

        trained: as `update` returned it. members: number of members of the round. factor: of a fairness-aware weight.
        score: of the base version, for the sum; None if it is not in the sum.
        """
        update, metrics = trained
        order = self._orders.mask(spec, update.examples, metrics, members, secrets, factor, score)
        with span("mask"):
            return await self._worker.ask(MASK, order, on_progress)
