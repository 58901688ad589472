"""Receives updates: a client announces an update, sends its chunks and commits the update, and gets a receipt.

The coordinator does the following for each update. It verifies each chunk, then the whole file. It moves the file into the
blob store and syncs the file to disk. It writes the receipt in one transaction, and answers the client.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from pluralllm.common.errors.membership import IdentityMismatch
from pluralllm.common.errors.tree import (
    AlreadyCommitted,
    ChunksMissing,
    InvalidArgument,
    LeaseLost,
    OverLimit,
    Refused,
    RoundClosed,
    SpecMismatch,
    StorageFull,
    WrongBase,
    WrongLayout,
)
from pluralllm.common.predictor.metrics import MAX_JS_DISTANCE
from pluralllm.common.process.clock import Clock
from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.weights.layout import check_header
from pluralllm.common.words.ids import ClientId, Digest
from pluralllm.common.words.names import TaskName
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.server.aggregation.reward_files import check_rewards
from pluralllm.server.aggregation.update_files import check_update
from pluralllm.server.process.cancellation import shielded
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.process.instruments import UPDATES_REFUSED
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.bell import Bell
from pluralllm.server.runs.client_rows import ClientRows
from pluralllm.server.runs.coordinator import Coordinator
from pluralllm.server.runs.leases import Leases
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.live_runs import Runs
from pluralllm.server.runs.refusals import Refusals
from pluralllm.server.runs.round_steps import RoundSteps
from pluralllm.server.runs.sessions import Sessions
from pluralllm.server.runs.traffic import Traffic
from pluralllm.server.runs.troubles import problem_of
from pluralllm.server.runs.uploads import Uploads
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.retention import Retention
from pluralllm.server.storage.store import ReceiptRecord, Store

log = structlog.get_logger()

TEND_S = 60.0
BASE_DISTANCE = "base_distance"  # the only metric that the weights of updates depend on: see weighting.py
UPDATE_METRICS = frozenset(
    {"loss", BASE_DISTANCE}
)  # every other metric of an announcement is left out: it would go into the log


def parse_task(name: str, caller: ClientId) -> TaskName:
    """Parses a task name and checks that the task belongs to the client `caller`.

    Raises InvalidArgument for an unreadable name; IdentityMismatch if the task belongs to another client.
    """
    task = TaskName.parse(name)
    if task.client != caller:
        raise IdentityMismatch(claimed=task.client, certificate=caller)
    return task


@dataclass(frozen=True, slots=True)
class Announced:
    """An update that a client has announced with BeginUpdate and has not yet committed."""

    manifest: Manifest
    examples: int
    metrics: Mapping[str, float]
    noise: NoiseStatement | None  # as the client declares it; None for the statement in its newest Hello


class Intake:
    """The receiver of updates: it handles the announcements, chunks and commits of all clients.

    Announcements are not durable: after a restart of the coordinator, the client announces its update again.
    """

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        runs: Runs,
        store: Store,
        blobs: Blobs,
        retention: Retention,
        uploads: Uploads,
        sessions: Sessions,
        leases: Leases,
        clients: ClientRows,
        clock: Clock,
        traffic: Traffic,
        run_bell: Bell,
        fail_stop: FailStop,
        refusals: Refusals,
        round_steps: RoundSteps,
    ) -> None:
        self._coordinator, self._runs = coordinator, runs
        self._store, self._blobs, self._retention, self._uploads = store, blobs, retention, uploads
        self._sessions, self._leases, self._clients = sessions, leases, clients
        self._clock, self._traffic = clock, traffic
        self._run_bell, self._fail_stop, self._refusals = run_bell, fail_stop, refusals
        self._round_steps = round_steps
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
        *,
        max_examples: int | None = None,
        noise: NoiseStatement | None = None,
    ) -> ReceiptRecord | frozenset[int]:
        """Announces an update. Returns the numbers of the missing chunks, or the receipt if the update is already committed.

        `spec_sha256` is the hash of the run spec that the client knows. `base_digest` is the digest of the model version that the
        client trained from. `examples` is the client's number of training questions, and `max_examples` is the limit of
        its membership (None if there is none). `noise` is the client's statement about the answers behind the update;
        None for the one in its newest Hello. `metrics` are numbers by name, of which only UPDATE_METRICS are kept. A
        client may repeat the call. Raises RoundClosed, LeaseLost, AlreadyCommitted, SpecMismatch, WrongBase, WrongLayout,
        InvalidArgument, OverLimit or StorageFull.
        """
        run = self._runs.get(task.run)
        while (working := self._committing.get(task)) is not None:
            await asyncio.wait([working])  # another announcement would change the file that it is checking
        if (receipt_row := await self._receipt(run, task, manifest.digest)) is not None:
            return receipt_row
        self._check_slot(run, task)
        try:
            self._check_announcement(run, spec_sha256, base_digest, manifest)
            if run.spec.private_rounds is None:
                self._check_examples(run, task.client, examples, max_examples)
            elif examples != 1 or metrics:
                problem = "in a private round examples is 1 and there are no metrics: they are summed, masked, with the update"
                raise InvalidArgument(field="examples", problem=problem)
            _check_distance(metrics)
        except Refused as error:
            await self._note_refusal(run, task, error)
            raise
        self._leases.renew(task.client, self._clock.now_s())
        known = {name: value for name, value in metrics.items() if name in UPDATE_METRICS}
        self._announced[task] = Announced(manifest, examples, known, noise)
        return await self._uploads.begin(upload_key(task), manifest)

    async def put(self, task: TaskName, digest: str, index: int, data: bytes | memoryview) -> None:
        """Verifies one chunk of an announced update and writes the chunk to disk.

        `digest` is the update's digest, and `index` is the chunk's number. Raises ChunksMissing if the update is not announced;
        RoundClosed or LeaseLost if the client may not deliver the update now; OverLimit or DigestMismatch if the chunk is wrong;
        StorageFull if no space is left.
        """
        run = self._runs.get(task.run)
        self._check_slot(run, task)
        self._announcement(task, digest)
        await self._uploads.put(upload_key(task), index, data)
        self._traffic.count_received(run.id, len(data))
        self._leases.renew(task.client, self._clock.now_s())

    async def missing(self, task: TaskName) -> frozenset[int]:
        """Returns the numbers of the chunks of an announced update that have not arrived.

        Raises ChunksMissing if the update is not announced.
        """
        return await self._uploads.missing(upload_key(task))

    async def commit(self, task: TaskName, digest: str, signature: bytes = b"") -> ReceiptRecord:
        """Makes an update durable and returns its receipt. A repeated call returns the same receipt.

        signature: in a private round, the member's signature over its masked update.
        A commit that has begun runs to its end even if the client's connection breaks. Raises ChunksMissing if the update is not
        announced or not complete; another subclass of Refused if the update is not accepted; StorageFull if no space is left.
        """
        run = self._runs.get(task.run)
        if (receipt_row := await self._receipt(run, task, digest)) is not None:
            return receipt_row
        announced = self._announcement(task, digest)
        if (working := self._committing.get(task)) is None:
            working = asyncio.create_task(self._commit(run, task, announced, signature))
            self._committing[task] = working
            working.add_done_callback(lambda _: self._committing.pop(task, None))
        return await shielded(working)

    async def tend(self) -> None:
        """Deletes the uploads of rounds that have ended: once at the start, then whenever a round ends.

        The method runs until its task is cancelled.
        """
        seen: frozenset[tuple[str, int]] | None = None
        while True:
            heard = self._run_bell.rings
            open_runs = [run for run in self._runs.all() if run.state.phase is Phase.COLLECTING]
            open_rounds = frozenset((run.id, run.state.round) for run in open_runs)
            if open_rounds != seen and not self._committing:
                tasks = {run.task_name(client) for run in open_runs for client in run.state.cohort}
                self._announced = {task: announced for task, announced in self._announced.items() if task in tasks}
                try:
                    await self._uploads.sweep({upload_key(task) for task in tasks})
                    seen = open_rounds
                except OSError as error:  # tried again before long
                    problem = self._fail_stop.disk_failure(error) or error
                    log.warning("uploads.not_swept", problem=str(problem))
            await self._run_bell.wait(heard, TEND_S)

    async def _commit(self, run: LiveRun, task: TaskName, announced: Announced, signature: bytes) -> ReceiptRecord:
        base_version, digest = run.state.version, announced.manifest.digest
        self._check_slot(run, task)
        statement = None
        if run.spec.private_rounds is not None:
            statement = await self._round_steps.statement(run, task, digest, signature)
        path = await self._uploads.finish(upload_key(task))
        try:
            receipt = await self._checked(run, task, path, announced)
            async with self._retention.storing():
                await self._blobs.put(digest, path)
                noise, now_s = announced.noise or self._noise_of(task.client), self._clock.now_s()
                arrived = ev.UpdateArrived(now_s, task.round, base_version, receipt, noise)
                if statement is None:
                    await self._coordinator.dispatch(run, arrived)
                else:
                    await self._round_steps.record_update(run, arrived, statement)
        except StorageFull:
            raise  # the update is good: the client commits again when the disk has space
        except Refused as error:
            await self._forget(task)
            await self._note_refusal(run, task, error)
            raise
        await self._forget(task)
        metrics = {f"metric_{name}": value for name, value in announced.metrics.items()}
        log.info("update.accepted", run=run.id, round=task.round, client=task.client, delta_l2=receipt.norm, **metrics)
        receipt_row = await self._receipt(run, task, digest)
        if receipt_row is None:  # the machine took it for a repetition of an update on record
            raise RoundClosed(run=run.id, asked=task.round, current=run.state.round)
        return receipt_row

    async def _checked(self, run: LiveRun, task: TaskName, path: Path, announced: Announced) -> ev.Receipt:
        """Checks the file of an update, and returns the receipt that it gets. Of a masked update only the form can be seen."""
        client, digest = task.client, announced.manifest.digest
        if run.spec.private_rounds is not None:
            form = run.update_format
            await asyncio.to_thread(check_header, path, form.header, form.size_bytes)
            return ev.Receipt(client, digest, announced.examples)
        norm = await asyncio.to_thread(check_update, path, run.update_format, run.spec.aggregation.max_delta_norm)
        distance = announced.metrics.get(BASE_DISTANCE)
        if run.spec.rewards is not None:  # the coordinator computes it itself
            rollouts = await self._blobs.path(Digest(run.state.rollouts))
            distance = 1 - await asyncio.to_thread(check_rewards, path, rollouts, run.spec.rewards.max_candidates)
            return ev.Receipt(client, digest, announced.examples, distance)
        return ev.Receipt(client, digest, announced.examples, distance, norm)

    async def _forget(self, task: TaskName) -> None:
        """Deletes a task's upload. What has become of the update does not depend on it, and `tend` deletes what is left."""
        self._announced.pop(task, None)
        try:
            await self._uploads.drop(upload_key(task))
        except OSError as error:
            problem = self._fail_stop.disk_failure(error) or error
            log.warning("uploads.not_swept", problem=str(problem))

    async def _receipt(self, run: LiveRun, task: TaskName, digest: str) -> ReceiptRecord | None:
        """Returns the receipt of the task's client in the task's round, or None if no receipt exists.

        Raises AlreadyCommitted if the receipt belongs to an update with another digest.
        """
        record = await run.receipt(self._store, task.round, task.client)
        if record is not None and record.receipt.digest != digest:
            error = AlreadyCommitted(client=task.client, round=task.round, committed=record.receipt.digest)
            await self._note_refusal(run, task, error)
            raise error
        return record

    def _announcement(self, task: TaskName, digest: str) -> Announced:
        announced = self._announced.get(task)
        if announced is None or announced.manifest.digest != digest:
            raise ChunksMissing(missing=1 if announced is None else announced.manifest.chunks)
        return announced

    def _check_slot(self, run: LiveRun, task: TaskName) -> None:
        """Checks that the open round expects an update from the client.

        The client may deliver its update after its lease has expired, so that a finished update is not wasted. Raises
        RoundClosed if the round is not open; LeaseLost if the client has no right to the task.
        """
        state = run.state
        if state.phase is not Phase.COLLECTING or state.round != task.round:
            raise RoundClosed(run=run.id, asked=task.round, current=state.round)
        if task.kind != run.work_kind or task.client not in state.cohort or state.is_excluded(task.client):
            raise LeaseLost(task=str(task))

    def _check_announcement(self, run: LiveRun, spec_sha256: str, base_digest: str, manifest: Manifest) -> None:
        if spec_sha256 != run.record.spec_sha256:
            raise SpecMismatch(run=run.id, asked=spec_sha256[:12], stored=run.record.spec_sha256[:12])
        if base_digest != run.base.digest:
            raise WrongBase(asked=base_digest[:12], current=run.base.digest[:12])
        if manifest.size_bytes != (expected_bytes := run.update_format.size_bytes):
            problem = f"its size is {manifest.size_bytes} bytes, that of an update of this run {expected_bytes}"
            raise WrongLayout(problem=problem)

    def _check_examples(self, run: LiveRun, client: ClientId, examples: int, max_examples: int | None) -> None:
        """Checks the number of examples that an update states. The update's weight follows from this number.

        It is the same in every update of a run, even if the client's private file changes. In the first update of a run that
        trains, it is at most the number of questions in the client's newest Hello. In every one, the limit of the client's
        membership bounds it.
        """
        first_examples = run.examples.get(client)
        if examples < 1 or (first_examples is not None and examples != first_examples):
            first = f"{first_examples} as in this client's first update of the run"
            allowed = "at least 1" if first_examples is None else first
            raise InvalidArgument(field="examples", problem=f"is {examples}, must be {allowed}")
        if run.spec.rewards is not None:
            return
        if max_examples is not None and examples > max_examples:
            raise OverLimit(what=f"the number of examples of {client}", got=examples, limit=max_examples)
        if first_examples is None and examples > (questions := self._questions_of(client)):
            problem = f"is {examples}, must be at most {questions}, the number of questions in this client's Hello"
            raise InvalidArgument(field="examples", problem=problem)

    def _questions_of(self, client: ClientId) -> int:
        """Returns the number of questions that the client stated in its newest Hello.

        The client's row has it as well, because a client may deliver its update after a restart and before its next Hello.
        """
        if (session := self._sessions.get(client)) is not None:
            return session.training_questions
        return 0 if (row := self._clients.get(client)) is None else row.training_questions

    def _noise_of(self, client: ClientId) -> NoiseStatement | None:
        """Returns what the client declared about noise in its newest Hello, which the database has as well."""
        if (session := self._sessions.get(client)) is not None:
            return session.noise
        return None if (row := self._clients.get(client)) is None else row.noise

    async def _note_refusal(self, run: LiveRun, task: TaskName, error: Refused) -> None:
        """Counts the refusal of an update. The first refusals of a client in the open round also go into the run's log.

        An ended run gets no events, and neither does a round that has ended: a client could repeat such a call for ever.
        """
        is_open = task.round == run.state.round and not run.is_over
        UPDATES_REFUSED.labels(error.reason).inc()
        if self._refusals.count(run.id, task.client, run.state.round if is_open else None):
            log.warning("update.refused", run=run.id, round=task.round, client=task.client, reason=error.reason)
            refused = ev.UpdateRefused(self._clock.now_s(), task.round, task.client, error.reason, problem_of(error))
            await self._coordinator.dispatch(run, refused)


def _check_distance(metrics: Mapping[str, float]) -> None:
    distance = metrics.get(BASE_DISTANCE, 0.0)
    if not 0 <= distance <= MAX_JS_DISTANCE:  # NaN is not within either
        problem = f"{BASE_DISTANCE} is {distance:g}, allowed: 0 .. sqrt(ln 2) = {MAX_JS_DISTANCE:.4f}"
        raise InvalidArgument(field="metrics", problem=problem)


def upload_key(task: TaskName) -> str:
    """Returns the file name of one client's upload in one round. The name has no extension."""
    return f"{task.run}.{task.round}.{task.client}"
