"""What a coordinator answers, free of protobuf."""

from dataclasses import dataclass

from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId, TaskId
from pluralllm.common.words.names import TaskKind


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work. The same name is the same work, however often it is handed out."""

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
    traceparent: str = ""  # of the round's trace


@dataclass(frozen=True, slots=True)
class Wait:
    after_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class RunOver:
    run: RunId
    outcome: str
    reason: str
    version: ModelVersion
    digest: Digest


Answer = Task | Wait | RunOver


@dataclass(frozen=True, slots=True)
class VersionLink:
    """What the coordinator says of a model version: its place in the hash chain."""

    version: ModelVersion
    digest: Digest
    record_sha256: str
    parent_sha256: str


@dataclass(frozen=True, slots=True)
class Scores:
    """One evaluation's result."""

    alignment_score: float
    alignment_score_base2: float
    wasserstein_score: float | None
    questions: int
