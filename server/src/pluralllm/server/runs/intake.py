"""How an update comes in: announced, received in chunks, checked as a whole, made durable, acknowledged.

Order for an update: chunks verified one by one -> whole file verified -> fsync, rename,
fsync(dir) -> one transaction -> answer.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from pluralllm.common.errors.membership import IdentityMismatch
from pluralllm.common.errors.tree import (
    AlreadyCommitted,
    ChunksMissing,
    InvalidArgument,
    LeaseLost,
    Refused,
    RoundClosed,
    SpecMismatch,
    StorageFull,
    WrongBase,
    WrongLayout,
)
from pluralllm.common.predictor.metrics import MAX_JS_DISTANCE
from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.words.ids import ClientId, Digest
from pluralllm.common.words.names import TaskName
from pluralllm.server.aggregation.reward_files import check_rewards
from pluralllm.server.aggregation.update_files import check_update
from pluralllm.server.process.cancellation import shielded
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.coordinator import Coordinator
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.uploads import Uploads
from pluralllm.server.storage.store import ReceiptRecord

log = structlog.get_logger()

TEND_S = 60.0
BASE_DISTANCE = "base_distance"  # the one metric that counts for something: see weighting.py


def parse_task(name: str, caller: ClientId) -> TaskName:
    """Reads the name of one of the caller's tasks. Raises InvalidArgument, IdentityMismatch (another client's task)."""
    task = TaskName.parse(name)
    if task.client != caller:
        raise IdentityMismatch(claimed=task.client, certificate=caller)
    return task


@dataclass(frozen=True, slots=True)
class Announced:
    """What BeginUpdate said of an update that is on its way."""

    manifest: Manifest
    examples: int
    metrics: Mapping[str, float]


class Intake:
    """Owns the uploads under way. Announcements are not durable: after a restart the client announces again."""

    def __init__(self, coordinator: Coordinator, uploads: Uploads) -> None:
        self._coordinator = coordinator
        self._uploads = uploads
        self._announced: dict[TaskName, Announced] = {}
        self._committing: dict[TaskName, asyncio.Task[ReceiptRecord]] = {}

    async def begin(
        self,
        task: TaskName,
        spec_sha256: str,
        base_digest: str,
        manifest: Manifest,
        examples: int,
        metrics: Mapping[str, float],
    ) -> ReceiptRecord | frozenset[int]:
        """The chunks still missing, or the receipt if the update is committed. Repeatable."""
        run = self._coordinator.run(task.run)
        if (known := await self._known(run, task, manifest.digest)) is not None:
            return known
        self._check_place(run, task)
        try:
            self._check_announcement(run, task, spec_sha256, base_digest, manifest, examples)
            _check_distance(metrics)
        except Refused as error:
            await self._note(run, task, error)
            raise
        self._coordinator.leases.renew(task.client, self._coordinator.clock.now_s())
        self._announced[task] = Announced(manifest, examples, metrics)
        return await self._uploads.begin(upload_key(task), manifest)

    async def put(self, task: TaskName, digest: str, index: int, data: bytes | memoryview) -> None:
        """Keeps one chunk. Raises LeaseLost, ChunksMissing (announce first), DigestMismatch, OverLimit, StorageFull."""
        run = self._coordinator.run(task.run)
        self._check_place(run, task)
        self._announcement(task, digest)
        await self._uploads.put(upload_key(task), index, data)
        run.received_bytes += len(data)
        self._coordinator.leases.renew(task.client, self._coordinator.clock.now_s())

    async def missing(self, task: TaskName) -> frozenset[int]:
        """Chunks of an announced update that have not come."""
        return await self._uploads.missing(upload_key(task))

    async def commit(self, task: TaskName, digest: str) -> ReceiptRecord:
        """The receipt, durable. Repeatable for ever. A broken connection does not stop a commit that has begun."""
        run = self._coordinator.run(task.run)
        if (known := await self._known(run, task, digest)) is not None:
            return known
        announced = self._announcement(task, digest)
        if (working := self._committing.get(task)) is None:
            working = asyncio.create_task(self._commit(run, task, announced))
            self._committing[task] = working
            working.add_done_callback(lambda _: self._committing.pop(task, None))
        return await shielded(working)

    async def tend(self) -> None:
        """Drops what is left of uploads whose round is over: at start, and whenever a round ends. Runs until cancelled."""
        seen: frozenset[tuple[str, int]] | None = None
        while True:
            heard = self._coordinator.bell.rings
            open_runs = [run for run in self._coordinator.runs() if run.state.phase is Phase.COLLECTING]
            open_rounds = frozenset((run.id, run.state.round) for run in open_runs)
            if open_rounds != seen and not self._committing:
                tasks = {run.task_name(client) for run in open_runs for client in run.state.cohort}
                self._announced = {task: known for task, known in self._announced.items() if task in tasks}
                try:
                    await self._uploads.sweep({upload_key(task) for task in tasks})
                    seen = open_rounds
                except OSError as error:  # tried again before long
                    found = self._coordinator.fail_stop.disk_failure(error) or error
                    log.warning("uploads.not_swept", problem=str(found))
            await self._coordinator.bell.wait(heard, TEND_S)

    async def _commit(self, run: LiveRun, task: TaskName, announced: Announced) -> ReceiptRecord:
        coordinator = self._coordinator
        base_version, digest = run.state.version, announced.manifest.digest
        self._check_place(run, task)
        batch = Digest(run.state.rollouts)
        path = await self._uploads.finish(upload_key(task))
        try:
            norm = await asyncio.to_thread(check_update, path, run.update_format, run.spec.aggregation.max_delta_norm)
            distance = announced.metrics.get(BASE_DISTANCE)
            if run.spec.rewards is not None:  # not the client's to say
                rollouts = await coordinator.blobs.path(batch)
                distance = 1 - await asyncio.to_thread(check_rewards, path, rollouts, run.spec.rewards.max_candidates)
            receipt = ev.Receipt(task.client, digest, announced.examples, distance)
            async with coordinator.retention.storing():
                await coordinator.blobs.put(digest, path)
                arrived = ev.UpdateArrived(coordinator.clock.now_s(), task.round, base_version, receipt)
                await coordinator.dispatch(run, arrived)
        except StorageFull:
            raise  # nothing is wrong with the update: the client commits again when there is space
        except Refused as error:
            await self._uploads.drop(upload_key(task))
            self._announced.pop(task, None)
            await self._note(run, task, error)
            raise
        await self._uploads.drop(upload_key(task))
        self._announced.pop(task, None)
        metrics = {f"metric_{name}": value for name, value in announced.metrics.items()}
        log.info("update.accepted", run=run.id, round=task.round, client=task.client, delta_l2=norm, **metrics)
        found = await self._known(run, task, digest)
        if found is None:  # the machine took it as a repetition of what is on record
            raise RoundClosed(run=run.id, asked=task.round, current=run.state.round)
        return found

    async def _known(self, run: LiveRun, task: TaskName, digest: str) -> ReceiptRecord | None:
        """The receipt of this client in this round. Raises AlreadyCommitted if it is another update's."""
        record = await self._coordinator.store.receipt(run.id, task.round, task.client)
        if record is not None and record.receipt.digest != digest:
            error = AlreadyCommitted(client=task.client, round=task.round, committed=record.receipt.digest)
            await self._note(run, task, error)
            raise error
        return record

    def _announcement(self, task: TaskName, digest: str) -> Announced:
        announced = self._announced.get(task)
        if announced is None or announced.manifest.digest != digest:
            raise ChunksMissing(missing=1 if announced is None else announced.manifest.chunks)
        return announced

    def _check_place(self, run: LiveRun, task: TaskName) -> None:
        """While the round is open, a place once given is enough: a lease that ran out does not waste a finished update."""
        state = run.state
        if state.phase is not Phase.COLLECTING or state.round != task.round:
            raise RoundClosed(run=run.id, asked=task.round, current=state.round)
        if task.kind != run.work_kind or task.client not in state.cohort or state.is_excluded(task.client):
            raise LeaseLost(task=str(task))

    def _check_announcement(
        self, run: LiveRun, task: TaskName, spec_sha256: str, base_digest: str, manifest: Manifest, examples: int
    ) -> None:
        if spec_sha256 != run.record.spec_sha256:
            raise SpecMismatch(run=run.id, asked=spec_sha256[:12], stored=run.record.spec_sha256[:12])
        if base_digest != run.base.digest:
            raise WrongBase(asked=base_digest[:12], current=run.base.digest[:12])
        if manifest.size_bytes != (wanted := run.update_format.size_bytes):
            problem = f"its size is {manifest.size_bytes} bytes, that of an update of this run {wanted}"
            raise WrongLayout(problem=problem)
        known = run.examples.get(task.client)
        if examples < 1 or (known is not None and examples != known):
            allowed = "at least 1" if known is None else f"{known} as in this client's first update of the run"
            raise InvalidArgument(field="examples", problem=f"is {examples}, must be {allowed}")

    async def _note(self, run: LiveRun, task: TaskName, error: Refused) -> None:
        """Makes a refusal visible in the run's status and log."""
        now_s = self._coordinator.clock.now_s()
        log.warning("update.refused", run=run.id, round=task.round, client=task.client, reason=error.reason)
        await self._coordinator.dispatch(
            run, ev.UpdateRefused(now_s, task.round, task.client, error.reason, str(error))
        )


def _check_distance(metrics: Mapping[str, float]) -> None:
    distance = metrics.get(BASE_DISTANCE, 0.0)
    if not 0 <= distance <= MAX_JS_DISTANCE:  # NaN is not within either
        problem = f"{BASE_DISTANCE} is {distance:g}, allowed: 0 .. sqrt(ln 2) = {MAX_JS_DISTANCE:.4f}"
        raise InvalidArgument(field="metrics", problem=problem)


def upload_key(task: TaskName) -> str:
    """A file name for one client's upload in one round."""
    return f"{task.run}.{task.round}.{task.client}"
