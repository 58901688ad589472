"""The history of model versions that this client has seen, for each run. The client notices if a coordinator changes it."""

import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import structlog

from pluralllm.client.keeping.history_copy import HistoryCopy
from pluralllm.client.keeping.record_chain import (
    OwnUpdate,
    RecordChain,
    SeenRun,
    SeenVersion,
    check_base,
    missing_span,
)
from pluralllm.client.link.tasks import RunOver, SignedRecord, Task
from pluralllm.common.errors.tree import HistoryDiverged, InvalidConfig, RecordInvalid
from pluralllm.common.process.files import as_state, damaged, make_folder, read_state_as, write_durably
from pluralllm.common.trust.record_signatures import RecordVerifier
from pluralllm.common.trust.version_record import record_sha256
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId, TaskId, is_id
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.spec import RunSpec

log = structlog.get_logger()

OVER = "over"  # a key beside the version numbers: the run has ended
OWN_UPDATES = "own_updates"  # a key beside the version numbers: the updates that this client has sent, by round
CLOSED_ROUND = "closed_private_round"  # a key beside the version numbers: the newest closed private round
MAX_UPDATES_OF_ROUND = 3  # different updates that this client makes: each further one shows more of the same answers

MEND = "restore it from a backup, or move it away: then this client begins the history of the run anew"

FetchRecords = Callable[[RunId, ModelVersion, ModelVersion], Awaitable[Sequence[SignedRecord]]]  # run, first, last


class History:
    """A folder with one file for each run. The file holds the model versions that this client has checked, and its own updates.

    A version has the SHA-256 of its record (the coordinator's record of how the version was made) and the digest of its model.
    Files of older releases, which hold only the hash of each record, are read as well.
    """

    def __init__(
        self,
        folder: Path,
        client: ClientId = ClientId(""),  # noqa: B008 - a NewType, which is a constant text
        verifier: RecordVerifier | None = None,
        copy: HistoryCopy | None = None,
    ) -> None:
        """Opens the folder. client: this client's name, which its updates have in the records.

        verifier: the federation's record key; None if it is not known. copy: the partner's second place for every new version.
        """
        self._folder, self._client, self._verifier, self._copy = folder, client, verifier, copy
        make_folder(folder)

    async def follow(self, task: Task, spec: RunSpec, fetch: FetchRecords) -> None:
        """Checks the records up to a task's base version, and adds them to the history. Nothing of the model is needed yet.

        spec: of the task's run. fetch: asks the coordinator for records (run, first and last version).
        Raises RecordInvalid if a record is malformed, missing, not signed, or not the record of the task's base version;
        HistoryDiverged if a record contradicts the versions that this client has seen or the updates that it has sent.
        """
        seen = self.seen(task.run)
        check_base(task, seen, spec.last_round)
        newest = max(seen.versions, default=ModelVersion(-1))
        if task.base_version < newest:
            log.warning("history.went_back", run=task.run, base_version=task.base_version, newest_seen=newest)
        span = missing_span(task, seen)
        if span is None:
            return
        chain, version = RecordChain(task, seen, spec, self._client, self._verifier), span.first
        while version <= span.last:
            page = await fetch(task.run, version, span.last)
            if not 0 < len(page) <= span.last - version + 1:
                raise RecordInvalid(run=task.run, version=version, problem="the coordinator does not present it")
            for signed in page:
                chain.add(version, signed)
                version = ModelVersion(version + 1)
        for foreign, digest in chain.foreign_updates:
            log.warning("history.unknown_update", run=task.run, version=foreign, digest=digest)
        facts = self._read(task.run)
        self._write(task.run, {**facts, **{str(number): _facts_of(one) for number, one in chain.new.items()}})
        for number, one in chain.new.items():
            self._note_copy(run=task.run, version=number, record_sha256=one.record_sha256, digest=one.digest)

    async def follow_to_end(self, over: RunOver, spec: RunSpec, spec_sha256: Digest, fetch: FetchRecords) -> None:
        """Checks the records up to the last version of a run that has ended; otherwise no task would show the last ones.

        The arguments spec and fetch, and the errors, are those of `follow`.
        """
        newest = await fetch(over.run, over.version, over.version)
        if len(newest) != 1:
            raise RecordInvalid(run=over.run, version=over.version, problem="the coordinator does not present it")
        end = Task(
            name=TaskId(""),
            run=over.run,
            kind=TaskKind.EVALUATE,  # it may look at the version of the last round
            round=RoundNumber(spec.last_round),
            spec_sha256=spec_sha256,
            base_version=over.version,
            base_digest=over.digest,
            base_record_sha256=record_sha256(newest[0].record),
            cohort_size=0,
            seed=0,
        )
        await self.follow(end, spec, fetch)

    def check_repetition(self, task: Task) -> None:
        """Checks that a training of a round is the first, or a repetition of it from the same model version.

        A coordinator that has lost an update, or was restored from a backup, asks for it again. Raises HistoryDiverged if the
        training has another start, or if this client has sent MAX_UPDATES_OF_ROUND different updates of the round.
        """
        sent, base = self.seen(task.run).own_updates.get(task.round, ()), task.base_version
        if any(update.base_version != base for update in sent):
            problem = f"is not the version from which this client has trained round {task.round}"
            raise HistoryDiverged(run=task.run, version=base, problem=problem)
        if len(sent) >= MAX_UPDATES_OF_ROUND:
            problem = f"is the start of round {task.round}, of which this client has sent {len(sent)} updates"
            raise HistoryDiverged(run=task.run, version=base, problem=problem)

    @contextlib.contextmanager
    def handing_in(self, task: Task, digest: Digest, examples: int) -> Iterator[None]:
        """Surrounds the upload of a task's update: notes the update before, and the coordinator's receipt after the block.

        The version that the task's round makes must then hold this update.
        """
        self._note_update(task.run, task.round, OwnUpdate(digest, examples, task.base_version, acknowledged=False))
        yield
        self._note_update(task.run, task.round, OwnUpdate(digest, examples, task.base_version, acknowledged=True))

    def updates_of(self, run: RunId, version: ModelVersion) -> int | None:
        """Returns the number of updates in a model version; None if this client has not checked the version's record."""
        seen_before = self.seen(run).versions.get(version)
        return None if seen_before is None else seen_before.updates

    def has_seen(self, run: RunId) -> bool:
        """Returns whether this client has taken part in a run: it has checked a version, or has sent an update."""
        return self._path(run).is_file()

    def seen(self, run: RunId) -> SeenRun:
        """Returns all that this client knows about the history of a run. Raises InvalidConfig if the run's file is damaged."""
        facts = self._read(run)
        try:
            versions = {ModelVersion(int(key)): _seen_version(facts[key]) for key in facts if key.isdecimal()}
            own_updates = as_state(facts.get(OWN_UPDATES, {}), dict[RoundNumber, tuple[OwnUpdate, ...]])
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(self._path(run), str(error), MEND) from error
        return SeenRun(versions, own_updates)

    def runs(self) -> list[RunId]:
        """Returns the runs with a history, sorted by name."""
        return sorted(RunId(path.stem) for path in self._folder.glob("*.json") if is_id(path.stem))

    def close(self, run: RunId) -> None:
        """Marks a run as ended. The run's history stays, in case the coordinator later shows another history.

        A damaged file stays as it is, and is logged: the daemon goes on with its other runs.
        """
        try:
            if facts := self._read(run):
                self._write(run, {**facts, OVER: OVER})
        except InvalidConfig as error:
            log.error("history.damaged", run=run, problem=str(error))

    def closed_private_round(self, run: RunId) -> RoundNumber:
        """Returns the newest private round of a run that is closed for this client; 0 if there is none.

        Raises InvalidConfig if the run's file is damaged.
        """
        closed = self._read(run).get(CLOSED_ROUND, 0)
        if type(closed) is not int:
            raise damaged(self._path(run), f"{CLOSED_ROUND} is no number", MEND)
        return RoundNumber(closed)

    def close_private_round(self, run: RunId, number: RoundNumber) -> None:
        """Enters a private round as closed, however it ended; durable when the method returns.

        Raises InvalidConfig if the run's file is damaged.
        """
        if number > self.closed_private_round(run):
            self._write(run, {**self._read(run), CLOSED_ROUND: number})

    def open_runs(self) -> set[RunId]:
        """Returns the runs that this client took part in and whose end it has not seen.

        Such a run may have ended while the client was stopped.
        """
        return {run for run in self.runs() if self._is_open(run)}

    def forget_receipts(self) -> None:
        """Withdraws the receipts of rounds that have made no version yet: a revoked member's updates do not count.

        Call this after a member that was revoked has joined anew.
        """
        for run in self.runs():
            try:
                seen = self.seen(run)
            except InvalidConfig:
                continue  # the daemon reports it, and refuses the run's tasks
            made = {version.round for version in seen.versions.values()}
            for number in seen.own_updates.keys() - made:
                self.withdraw_receipt(run, number)

    def withdraw_receipt(self, run: RunId, number: RoundNumber) -> None:
        """Withdraws the receipt of a round whose version will rightly lack this client's update. Raises InvalidConfig."""
        for update in self.seen(run).own_updates.get(number, ()):
            if update.acknowledged:
                self._note_update(run, number, replace(update, acknowledged=False))

    # Parts

    def _is_open(self, run: RunId) -> bool:
        """Returns whether the end of a run is not seen yet. A damaged file, which is logged, counts as that of an ended run.

        Its run's tasks are refused until its owner has mended it.
        """
        try:
            return OVER not in self._read(run)
        except InvalidConfig as error:
            log.error("history.damaged", run=run, problem=str(error))
            return False

    def _note_update(self, run: RunId, number: RoundNumber, update: OwnUpdate) -> None:
        facts = self._read(run)
        noted = facts.get(OWN_UPDATES, {}).get(str(number), [])
        others = [one for one in noted if (one["digest"], one["examples"]) != (update.digest, update.examples)]
        now = asdict(update)
        if now not in noted:
            by_round = {**facts.get(OWN_UPDATES, {}), str(number): [*others, now]}
            self._write(run, {**facts, OWN_UPDATES: by_round})

    def _note_copy(self, **facts: Any) -> None:
        if self._copy is not None:
            self._copy.append(**facts)

    def _path(self, run: RunId) -> Path:
        return self._folder / f"{run}.json"

    def _read(self, run: RunId) -> dict[str, Any]:
        path = self._path(run)
        if not path.is_file():
            return {}
        return read_state_as(path, dict[str, Any], MEND)

    def _write(self, run: RunId, facts: dict[str, Any]) -> None:
        write_durably(self._path(run), json.dumps(facts).encode())


def _facts_of(version: SeenVersion) -> dict[str, Any]:
    return {
        "record": version.record_sha256,
        "digest": version.digest,
        "round": version.round,
        "updates": version.updates,
    }


def _seen_version(facts: str | dict[str, Any]) -> SeenVersion:
    """Reads a version of a history file. Older releases kept the hash of the record alone."""
    if isinstance(facts, str):
        return SeenVersion(facts, None, None, None)
    named = {"record_sha256": facts["record"], **{key: facts[key] for key in ("digest", "round", "updates")}}
    return as_state(named, SeenVersion)
