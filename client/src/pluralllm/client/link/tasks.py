"""The coordinator's answers as plain dataclasses, free of protobuf."""

from dataclasses import dataclass

from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId, TaskId
from pluralllm.common.words.names import TaskKind


@dataclass(frozen=True, slots=True)
class Task:
    """One task for this client: to train, to evaluate or to score rollouts. Tasks with equal names are one and the same task."""

    name: TaskId
    run: RunId
    kind: TaskKind
    round: RoundNumber
    spec_sha256: Digest
    base_version: ModelVersion
    base_digest: Digest
    base_record_sha256: str
    cohort_size: int
    seed: int
    traceparent: str = ""  # W3C trace context of the round; empty if it has none


@dataclass(frozen=True, slots=True)
class Wait:
    """The answer that there is no task now, and that the client must poll again after `after_s` seconds."""

    after_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class RunOver:
    """The answer that a run has ended, with its outcome and its last model version."""

    run: RunId
    outcome: str
    reason: str
    version: ModelVersion
    digest: Digest


Answer = Task | Wait | RunOver


@dataclass(frozen=True, slots=True)
class VersionLink:
    """A link of a run's hash chain: the hashes of a version record and of its parent's record, stated by the coordinator."""

    version: ModelVersion
    digest: Digest
    record_sha256: str
    parent_sha256: str


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one evaluation.

    wasserstein_score is None if no question has a scale, or if the partner's policy keeps the score on this machine.
    """

    alignment_score: float
    alignment_score_base2: float
    wasserstein_score: float | None
    questions: int
