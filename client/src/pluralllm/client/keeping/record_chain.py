"""The check of version records, one after another, before a client uses the model version at their end. It touches no disk.

A coordinator could hand out any weights under a true hash. So the client takes whole records, computes their hashes itself, and
accepts a model version only as the last link of a chain that begins with a record that it has checked before.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pluralllm.client.link.tasks import SignedRecord, Task
from pluralllm.common.errors.tree import HistoryDiverged, RecordInvalid
from pluralllm.common.trust.record_signatures import RecordVerifier
from pluralllm.common.trust.version_record import VersionRecord, record_sha256
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, is_id
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.spec import RunSpec

MAX_LEANING = (
    3.0  # largest ratio of a weight to an even share, and of an even share to a weight (format run/2 and later)
)


@dataclass(frozen=True, slots=True)
class SeenVersion:
    """A model version whose record this client has checked."""

    record_sha256: str
    digest: (
        Digest | None
    )  # of the model's blob; None if a release noted the version that kept hashes only, as for the next two
    round: RoundNumber | None  # the round that made the version
    updates: int | None  # number of updates in the version


@dataclass(frozen=True, slots=True)
class OwnUpdate:
    """An update that this client has sent in a round."""

    digest: Digest
    examples: int
    base_version: ModelVersion  # the update starts from this version
    acknowledged: bool  # whether the coordinator has given its receipt


@dataclass(frozen=True, slots=True)
class SeenRun:
    """Everything that a client knows about the history of a run."""

    versions: Mapping[ModelVersion, SeenVersion] = field(default_factory=dict)
    own_updates: Mapping[RoundNumber, tuple[OwnUpdate, ...]] = field(default_factory=dict)

    @property
    def first_examples(self) -> int | None:
        """The number of examples in this client's first acknowledged update: its weight in the run. None before that."""
        for _, updates in sorted(self.own_updates.items()):
            for update in updates:
                if update.acknowledged:
                    return update.examples
        return None


@dataclass(frozen=True, slots=True)
class Span:
    """The records that a client needs for a task: from version `first` to version `last`, both included."""

    first: ModelVersion
    last: ModelVersion


def missing_span(task: Task, seen: SeenRun) -> Span | None:
    """Returns the records between what this client has checked and the task's base version; None if it has checked them all.

    If the client has seen a later version, the records up to that version belong to the span, so that the ends must meet.
    """
    base = task.base_version
    seen_before = seen.versions.get(base)
    if seen_before is not None:
        return None if seen_before.digest is not None else Span(base, base)
    first = max((version for version in seen.versions if version < base), default=-1) + 1
    last = min((version for version in seen.versions if version > base), default=base)
    return Span(ModelVersion(first), ModelVersion(last))


def check_base(task: Task, seen: SeenRun, rounds: int) -> None:
    """Checks the base version that a task states against what this client has seen, before anything is asked for.

    rounds: number of the run's last round. Raises RecordInvalid if no such version can exist yet; HistoryDiverged if the client
    has seen another version under this number, or a later version that was made before the task's round.
    """
    base, seen_before = task.base_version, seen.versions.get(task.base_version)
    if not 0 <= base <= min(task.round, rounds):
        problem = f"round {task.round} of {rounds} cannot start from it"
        raise RecordInvalid(run=task.run, version=base, problem=problem)
    if seen_before is not None and seen_before.record_sha256 != task.base_record_sha256:
        raise HistoryDiverged(run=task.run, version=base)
    if seen_before is not None and seen_before.digest not in (None, task.base_digest):
        raise HistoryDiverged(run=task.run, version=base)
    for version, later in seen.versions.items():
        if version > base and later.round is not None and later.round <= _last_round(task):
            problem = f"is older than version {version}, which round {later.round} made before this task's round"
            raise HistoryDiverged(run=task.run, version=base, problem=problem)


class RecordChain:
    """The check of the records that a task needs, in the order of their versions. `new` collects the versions of good records."""

    def __init__(
        self, task: Task, seen: SeenRun, spec: RunSpec, client: ClientId, verifier: RecordVerifier | None
    ) -> None:
        """Stores the arguments. spec: of the task's run. client: this client's name. verifier: as for `History`."""
        self._task, self._seen, self._spec, self._client, self._verifier = task, seen, spec, client, verifier
        self.new: dict[ModelVersion, SeenVersion] = {}
        self.foreign_updates: list[
            tuple[ModelVersion, Digest]
        ] = []  # in this client's name, of rounds without own updates

    def add(self, expected: ModelVersion, signed: SignedRecord) -> None:
        """Checks the record of the version `expected`, and adds the version to `new`.

        Raises RecordInvalid if the record is malformed, has no valid signature, or does not fit the records before it or the
        task; HistoryDiverged if it contradicts what this client has seen or sent.
        """
        record, task = signed.record, self._task
        if problem := _problem_of(record, expected, task):
            raise RecordInvalid(run=task.run, version=expected, problem=problem)
        if _leans_on_few(record, self._spec):
            problem = (
                "one update weighs more than three even shares or less than a third, most updates were shortened, or "
                "another number of updates counts than the rule of the run lets count"
            )
            raise RecordInvalid(run=task.run, version=expected, problem=problem)
        sha256 = record_sha256(record)
        if self._verifier is not None and not self._verifier.has_signed_version(task.run, sha256, signed.signature):
            problem = "it is not signed with the federation's record key"
            raise RecordInvalid(run=task.run, version=expected, problem=problem)
        self._check_place(record, sha256)
        self._check_own_update(record)
        if expected == task.base_version and sha256 != task.base_record_sha256:
            raise RecordInvalid(run=task.run, version=expected, problem="the task states the hash of another record")
        if expected == task.base_version and record.digest != task.base_digest:
            raise RecordInvalid(run=task.run, version=expected, problem="the task states the digest of another model")
        self.new[expected] = SeenVersion(sha256, record.digest, record.round, _counted(record))

    def _check_place(self, record: VersionRecord, sha256: str) -> None:
        """Checks that the record follows the record before it, and that it is the one that this client may have seen."""
        run, version = self._task.run, record.version
        seen_before, before = self._seen.versions.get(version), ModelVersion(version - 1)
        if seen_before is not None and seen_before.record_sha256 != sha256:
            raise HistoryDiverged(run=run, version=version)
        if (seen_parent := self._seen.versions.get(before)) is not None:
            if seen_parent.record_sha256 != record.parent_sha256:
                problem = f"does not follow the version {before} that this client saw"
                raise HistoryDiverged(run=run, version=version, problem=problem)
        elif before in self.new and self.new[before].record_sha256 != record.parent_sha256:
            raise RecordInvalid(run=run, version=version, problem=f"it does not follow the record of version {before}")
        parent = seen_parent or self.new.get(before)
        is_closing = self._spec.is_closing_round(record.round)
        if is_closing and parent is not None and parent.digest not in (None, record.digest):
            problem = "the closing round made it, which leaves the model as it is, and it is another model"
            raise RecordInvalid(run=run, version=version, problem=problem)
        if parent is not None and parent.round is not None and record.round <= parent.round:
            problem = f"round {record.round} made it, and round {parent.round} the version before"
            raise RecordInvalid(run=run, version=version, problem=problem)

    def _check_own_update(self, record: VersionRecord) -> None:
        """Checks that the version holds the update that this client sent in the version's round, and no other in its name.

        The updates that this client sent in later rounds must start from this version or a later one.
        """
        sent = self._seen.own_updates.get(record.round, ())
        in_record = [(digest, examples) for client, digest, examples in record.updates if client == self._client]
        problem = ""
        if in_record and sent and in_record[0] not in [(update.digest, update.examples) for update in sent]:
            problem = "has an update in this client's name that the client did not send"
        elif not in_record and any(update.acknowledged for update in sent):
            problem = f"lacks this client's update of round {record.round}, which the coordinator had acknowledged"
        for number, updates in self._seen.own_updates.items():
            if number > record.round and any(update.base_version < record.version for update in updates):
                problem = (
                    f"was withheld from this client in round {number}, which began later than round {record.round}"
                )
        if problem:
            raise HistoryDiverged(run=self._task.run, version=record.version, problem=problem)
        if in_record and not sent:
            self.foreign_updates.append((record.version, in_record[0][0]))


def _problem_of(record: VersionRecord, expected: ModelVersion, task: Task) -> str:
    """Returns the first problem of a record by itself; "" if there is none."""
    clients = [client for client, _, _ in record.updates]
    digests = [record.digest, *record.moments, *(digest for _, digest, _ in record.updates)]
    if record.version != expected:
        return f"the coordinator presents version {record.version} in its place"
    if record.spec_sha256 != task.spec_sha256:
        return "it is for another run spec"
    if not all(map(_is_digest, digests)) or not (_is_digest(record.parent_sha256) or expected == 0):
        return "it has a malformed hash"
    if not all(map(is_id, clients)) or sorted(set(clients)) != clients:
        return "its updates are not in the order of their clients, one of each"
    if not all(examples > 0 for _, _, examples in record.updates):
        return "an update has no examples"
    if not _fit(record.weights, len(clients), math.inf) or not _fit(record.scales, len(clients), 1.0):
        return "its weights or scales do not fit its updates"
    if expected == 0 and (record.round or record.parent_sha256 or record.moments or clients):
        return "no round makes version 0"
    if expected > 0 and not (record.round > 0 and clients):
        return f"round {record.round} with {len(clients)} updates cannot have made it"
    if task.base_version >= expected and record.round > _last_round(task):
        return f"round {record.round} made it, which is too late for a task of round {task.round}"
    return ""


def _leans_on_few(record: VersionRecord, spec: RunSpec) -> bool:
    """Returns whether a version was made from fewer updates than its record names, in effect: the others count for little.

    The formats from run/2 on rule this out: they limit the weights, and shorten only updates that are longer than the median.
    """
    if not record.updates or not spec.limits_members or spec.rewards is not None:
        return False
    shortened = sum(scale < 0.5 for scale in record.scales)
    if 2 * shortened > len(record.updates):
        return True
    # Only its package knows what weights mean to a plug-in. The partner has consented to that; _counted says whom it leaves out.
    if spec.aggregation.rule == "plugin":
        return False
    if spec.aggregation.rule == "multi_krum":
        counted = spec.aggregation.counted(len(record.updates))
        return sorted(record.weights) != [0.0] * (len(record.updates) - counted) + [1.0] * counted
    most = spec.aggregation.max_examples
    by_examples = spec.aggregation.weighting != "uniform"
    weights = record.weights or [min(n, most) if by_examples else 1 for _, _, n in record.updates]
    even = sum(weights) / len(weights)
    return max(weights) >= even * MAX_LEANING * (1 + 1e-6) or min(weights) * MAX_LEANING <= even * (1 - 1e-6)


def _counted(record: VersionRecord) -> int:
    """Returns how many updates a version was made from: a rule that chooses gives the others the weight 0."""
    return sum(weight > 0 for weight in record.weights) if record.weights else len(record.updates)


def _last_round(task: Task) -> RoundNumber:
    """The last round whose version the task may start from. An evaluation scores the version of its own round."""
    return task.round if task.kind is TaskKind.EVALUATE else RoundNumber(task.round - 1)


def _is_digest(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def _fit(factors: Sequence[float], updates: int, limit: float) -> bool:
    """Returns whether there is one factor for each update, from 0 to `limit`, or none at all."""
    return len(factors) in (0, updates) and all(math.isfinite(factor) and 0 <= factor <= limit for factor in factors)
