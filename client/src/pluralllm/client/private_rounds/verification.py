"""Computes a model version of private rounds again from what is public, before this client trains on it.

Version 0 follows from the run spec's seed. Every later version is the base version plus a sum; the round's transcript and its
masked updates give the sum. A coordinator that publishes other weights, crafted ones for example, is found with proof.
"""

import asyncio
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from pluralllm.client.keeping.history import History
from pluralllm.client.keeping.record_chain import SeenVersion
from pluralllm.client.link.round_calls import RoundCalls
from pluralllm.client.link.tasks import Task
from pluralllm.client.link.transport import Transport
from pluralllm.client.private_rounds.pins import load_pins
from pluralllm.client.private_rounds.roster_watch import RosterWatch
from pluralllm.common.errors.private_rounds import (
    AggregateDiffers,
    BadView,
    DealtWrongly,
    PeerKeyDiffers,
    RosterDiverged,
    SumImplausible,
)
from pluralllm.common.errors.tree import AnswerInvalid, InvalidArgument, NotFound, RecordInvalid
from pluralllm.common.predictor.architecture import layout_for, update_layout, version_layout
from pluralllm.common.predictor.first_version import write_first_version
from pluralllm.common.private_rounds.peer_keys import fingerprint
from pluralllm.common.private_rounds.round_sum import leftover_streams
from pluralllm.common.private_rounds.round_terms import terms_of
from pluralllm.common.private_rounds.sum_files import sum_of, tail_of, write_from_sum
from pluralllm.common.private_rounds.transcript import MAX_BYTES, Transcript
from pluralllm.common.process.files import make_folder, storage_errors
from pluralllm.common.process.threads import to_its_end
from pluralllm.common.sums.solver_files import state_files, write_next_private_sum
from pluralllm.common.trust.version_record import VersionRecord, record_sha256
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.weights.server_optimizer import first_moments, optimizer_of_round
from pluralllm.common.weights.stored_weights import StoredWeights
from pluralllm.common.weights.update_format import update_format
from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.spec import RunSpec

log = structlog.get_logger()

ALWAYS_BYTES = 64 * 1024 * 1024  # masked updates of a version that is always checked; larger ones by a coin
DISHONEST = (InvalidArgument, BadView, DealtWrongly, PeerKeyDiffers, RosterDiverged, SumImplausible)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """The knowledge of this client itself: its chain of records, its roster and its pins, and where its files are."""

    state: Path  # the state directory
    federation: str
    history: History
    peers: RosterWatch
    pins: Path  # the file peers.toml
    colluders: int  # as the policy says
    verify_share: float | None  # as the policy says

    def share(self, cohort: int) -> float:
        """Returns the probability that a large version is checked. Somebody checks almost surely, whoever colludes."""
        return min(1.0, 4 * (self.colluders + 1) / cohort) if self.verify_share is None else self.verify_share


@dataclass(frozen=True, slots=True)
class Examined:
    """The facts that this client needs of the transcript of the round that made a version."""

    version: ModelVersion
    mean_distance: float | None  # of the members of its sum; None if none reports it
    pinned: frozenset[str]  # members of its sum whose keys this client has pinned, itself included


class Verification:
    """The check of model versions. It has a folder for the files of a check under way, and one for evidence."""

    def __init__(self, knowledge: Knowledge, transport: Transport, work: Path | None = None) -> None:
        """Stores the arguments. work: folder for the files of a check; None for the daemon's."""
        self._knowledge, self._transport, self._calls = knowledge, transport, RoundCalls(transport)
        self._folder, self._evidence = work or knowledge.state / "verification", knowledge.state / "evidence"
        self._true: set[tuple[RunId, ModelVersion]] = set()
        self._last: dict[RunId, Examined] = {}  # of each run: the version whose transcript was examined last

    async def is_checked(self, task: Task, spec: RunSpec) -> bool:
        """Returns whether this client has computed a task's base version again, and it is the one that the task states.

        The sum must have an update of an honest member that this client knows (`_is_vouched`): the base version of a sum that the
        coordinator has made with members of its own invention may be any weights.
        The records up to the version are checked already (`History.follow`). Raises AggregateDiffers, again and again, from the
        moment on when a version of the run was another one.
        """
        run, version = task.run, task.base_version
        for folder in self._evidence.glob(f"{run}.*"):
            raise AggregateDiffers(run=run, version=version, problem="an earlier version was not", evidence=str(folder))
        if version == 0:
            return await asyncio.to_thread(self._first_is_true, task, spec)
        if (run, version) in self._true:
            return True
        size_bytes = update_format(update_layout(spec, version - 1), "ring32").size_bytes
        updates = self._knowledge.history.updates_of(run, version) or spec.round.target_clients
        if updates * size_bytes > ALWAYS_BYTES:
            share = self._knowledge.share(updates)
            if secrets.randbelow(2**32) >= share * 2**32:  # a coin that nobody else sees
                return False
        try:
            await self.check(run, version, spec, task.spec_sha256)
        except NotFound as error:
            log.warning("private.not_verified", run=run, version=version, problem=str(error))
            return False
        if not self._is_vouched(run, version):
            problem = "nobody that this client knows has an update in its sum, or only as many as may collude"
            log.warning("private.not_verified", run=run, version=version, problem=problem)
            return False
        self._true.add((run, version))
        return True

    async def check(self, run: RunId, version: ModelVersion, spec: RunSpec, spec_sha256: str) -> tuple[str, ...]:
        """Computes a version above 0 again. Returns the names of the members whose updates are in it.

        Raises AggregateDiffers if the version is another one, and keeps the evidence; NotFound if the round's files or the
        optimizer's state are not there any more; RecordInvalid or the errors of the calls.
        """
        transcript = await self._examined(run, version, spec, spec_sha256, adds=True)
        log.info("private.verified", run=run, version=version, updates=len(transcript.updates))
        return transcript.fixed.in_sum

    async def mean_distance(self, task: Task, spec: RunSpec) -> float | None:
        """Returns the mean distance of the members of the round that made a task's base version; None if there is none.

        The number is in the tail of the round's sum. The version's record names the transcript that holds it, so that all members
        of this round have the same number. If this client has not added that sum itself, the transcript is checked alone.
        Raises AggregateDiffers if the transcript is not one of that round, and the errors of the calls.
        """
        run, version = task.run, task.base_version
        if version == 0:
            return None
        last = self._last.get(run)
        if last is None or last.version != version:
            try:
                await self._examined(run, version, spec, task.spec_sha256, adds=False)
            except NotFound as error:
                log.warning("private.no_mean_distance", run=run, version=version, problem=str(error))
                return None
            last = self._last[run]
        return last.mean_distance

    async def _examined(
        self, run: RunId, version: ModelVersion, spec: RunSpec, spec_sha256: str, *, adds: bool
    ) -> Transcript:
        """Checks the transcript of the round that made a version. Returns it, and keeps what `Examined` has of it.

        adds: whether the sum, and the version that it gives, are computed again, too. Raises as `check`.
        """
        seen = self._knowledge.history.seen(run).versions
        before, record = [
            await self._record(run, ModelVersion(n), seen.get(ModelVersion(n))) for n in (version - 1, version)
        ]
        if record.spec_sha256 != spec_sha256:
            raise RecordInvalid(
                run=run, version=version, problem="it is for another run spec than the coordinator shows"
            )
        folder = self._folder / f"{run}.{version}"
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        await asyncio.to_thread(make_folder, folder)
        try:
            transcript = await self._transcript(record, folder)
            pinned = await self._check_transcript(transcript, before, record, spec, spec_sha256)
            if adds:
                await self._fetch(transcript, before, spec, folder)
                await to_its_end(self._check_sum, transcript, before, record, spec, folder)
            else:
                await asyncio.to_thread(transcript.opened)
            tail = tail_of(spec, len(transcript.members), len(transcript.updates), transcript.tail)
        except DISHONEST as error:
            evidence = await asyncio.to_thread(self._keep, folder, str(error))
            log.error("private.aggregate_differs", run=run, version=version, problem=str(error), evidence=str(evidence))
            raise AggregateDiffers(run=run, version=version, problem=str(error), evidence=str(evidence)) from error
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        self._last[run] = Examined(version, tail.distance, pinned)
        return transcript

    def forget(self, run: RunId) -> None:
        """Forgets a run that is over, and deletes the states of the server optimizer that were kept for it."""
        self._last.pop(run, None)
        self._true = {(other, version) for other, version in self._true if other != run}
        for path in self._folder.glob(f"{run}.moment-*"):
            path.unlink()

    # Parts

    def _first_is_true(self, task: Task, spec: RunSpec) -> bool:
        make_folder(self._folder)
        draft = self._folder / f"{task.run}.first"
        try:
            return write_first_version(draft, spec).digest == task.base_digest
        finally:
            draft.unlink(missing_ok=True)

    async def _record(self, run: RunId, version: ModelVersion, seen: SeenVersion | None) -> VersionRecord:
        """Returns the record of a version that this client has checked before. Raises RecordInvalid if it is another one."""
        signed = await self._transport.version_records(run, version, version)
        if len(signed) != 1 or seen is None or record_sha256(signed[0].record) != seen.record_sha256:
            raise RecordInvalid(run=run, version=version, problem="it is not the record that this client has checked")
        return signed[0].record

    async def _transcript(self, record: VersionRecord, folder: Path) -> Transcript:
        if not record.transcript:
            raise InvalidArgument(
                field="transcript", problem="is missing in the record of a version of a private round"
            )
        body = await self._calls.transcript(record.run, record.round, MAX_BYTES)
        await asyncio.to_thread((folder / "transcript.json").write_bytes, body)
        if (await asyncio.to_thread(manifest_of, folder / "transcript.json")).digest != record.transcript:
            raise AnswerInvalid(
                call="GetTranscript", field="data", problem="is not the transcript of the version's record"
            )
        return await asyncio.to_thread(Transcript.from_json, body)

    async def _check_transcript(
        self, transcript: Transcript, before: VersionRecord, record: VersionRecord, spec: RunSpec, spec_sha256: str
    ) -> frozenset[str]:
        """Compares a transcript with the own chain, roster and pins. Raises one of DISHONEST.

        Returns the members whose updates are in the sum and whose keys are pinned, this client included.
        """
        terms = transcript.terms
        roster = await self._knowledge.peers.follow(terms.roster_head)
        own = terms_of(
            spec,
            federation=self._knowledge.federation,
            run=record.run,
            number=record.round,
            spec_sha256=Digest(spec_sha256),
            base_version=before.version,
            base_digest=before.digest,
            base_record_sha256=record_sha256(before),
            roster_head=terms.roster_head,
        )
        if terms != own:
            raise InvalidArgument(field="terms", problem="are not those of this client's own spec and chain of records")
        if [(one.name, one.digest.hex()) for one in transcript.updates] != [one[:2] for one in record.updates]:
            raise InvalidArgument(field="updates", problem="are not those of the version's record")
        pins = self._knowledge.peers.with_own(await asyncio.to_thread(load_pins, self._knowledge.pins))
        presented = {member.name: fingerprint(member.peer_key_der) for member in transcript.members}
        for name, key in presented.items():
            pin = pins.get(name)
            # A member may have had another key then: it counts as a stranger, and its key is in the roster that all have seen.
            if pin not in (None, key) and roster.owner_of(key) != name:
                raise PeerKeyDiffers(name=name, known=pin, got=key)
        return frozenset(name for name in transcript.fixed.in_sum if pins.get(name) == presented.get(name))

    def _is_vouched(self, run: RunId, version: ModelVersion) -> bool:
        """Returns whether an honest member that this client knows has an update in the sum of the version checked last.

        Such a member takes part only in sums that are large enough, and masks only on a base version that is itself vouched for.
        So all versions before it are sums, too, although this client has not computed them.
        """
        last = self._last.get(run)
        if last is None or last.version != version:
            return False
        return self._knowledge.peers.name in last.pinned or len(last.pinned) > self._knowledge.colluders

    async def _fetch(self, transcript: Transcript, before: VersionRecord, spec: RunSpec, folder: Path) -> None:
        """Fetches the masked updates, and the base version unless it is here."""
        size_bytes = update_format(update_layout(spec, before.version), "ring32").size_bytes
        for name in transcript.fixed.in_sum:
            content = await self._calls.masked(before.run, RoundNumber(transcript.terms.round), name, size_bytes)
            await asyncio.to_thread((folder / f"{name}.masked").write_bytes, content)
        local = self._knowledge.state / "models" / before.digest
        if await asyncio.to_thread(local.is_file):
            await asyncio.to_thread(shutil.copyfile, local, folder / "base")
        else:
            model_bytes = version_layout(spec, before.version).size_bytes
            await self._transport.fetch_model(before.run, before.version, before.digest, model_bytes, folder / "base")

    def _check_sum(
        self, transcript: Transcript, before: VersionRecord, record: VersionRecord, spec: RunSpec, folder: Path
    ) -> None:
        """Adds the masked updates, and takes the step of the server optimizer or of the solver, which needs its state.

        Raises one of DISHONEST; NotFound without the state.
        """
        leftover, fixed = leftover_streams(transcript.fixed, transcript.opened()), transcript.fixed
        updates = [StoredWeights(folder / f"{one.name}.masked", Digest(one.digest.hex())) for one in transcript.updates]
        following = state_files(spec, record.version)
        outs = [folder / "computed", *(folder / f"moment-{number}" for number in range(following))]
        kept = [StoredWeights(self._moment(record.run, digest), digest) for digest in before.moments]
        missing = [one.path.name for one in kept if not one.path.is_file()]
        if missing or len(kept) != state_files(spec, before.version):
            raise NotFound(what="state of the server optimizer", name=", ".join(missing) or record.run)
        base, summed = StoredWeights(folder / "base", before.digest), sum_of(spec, fixed, leftover, updates)
        if spec.sums is not None:
            write = partial(write_next_private_sum, spec, before.version, base, kept, summed, outs)
        else:
            moments, optimizer = kept or first_moments(spec.aggregation), optimizer_of_round(spec, record.round)
            write = partial(write_from_sum, base, moments, summed, layout_for(spec), optimizer, outs)
        with storage_errors("a check of a model version"):
            manifests, tail = write()
        if tail != transcript.tail:
            raise InvalidArgument(field="tail", problem="is not that of the sum")
        digests = (record.digest, *record.moments)
        if tuple(manifest.digest for manifest in manifests) != digests:
            problem = f"is {record.digest}, the sum gives {manifests[0].digest}"
            raise InvalidArgument(field="digest", problem=problem)
        self.keep_moments(record.run, dict(zip(record.moments, outs[1:], strict=True)), before.moments)

    def keep_moments(self, run: RunId, made: Mapping[Digest, Path], before: Sequence[Digest]) -> None:
        """Keeps the state of the server optimizer that a check has made, and the one before: a check may be done again.

        A check that is cancelled has made its state, and nobody knows its result. The states of earlier versions are deleted.
        """
        for digest, path in made.items():
            path.replace(self._moment(run, digest))
        needed = {self._moment(run, digest) for digest in (*before, *made)}
        for path in self._folder.glob(f"{run}.moment-*"):
            if path not in needed:
                path.unlink()

    def _moment(self, run: RunId, digest: Digest) -> Path:
        return self._folder / f"{run}.moment-{digest}"

    def _keep(self, folder: Path, problem: str) -> Path:
        """Moves the files of a check to the evidence, and writes beside them what is wrong. Returns the folder."""
        make_folder(self._evidence)
        kept = self._evidence / folder.name
        shutil.rmtree(kept, ignore_errors=True)
        shutil.move(folder, kept)
        (kept / "problem.txt").write_text(f"{problem}\n", encoding="utf-8")
        return kept
