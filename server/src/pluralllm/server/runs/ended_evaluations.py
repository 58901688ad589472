"""Reads the evaluations of the newest versions of a run, once: an evaluation that has ended never changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pluralllm.common.predictor.metrics import coefficient_of_variation, fairness_index
from pluralllm.common.words.ids import GroupName, ModelVersion, RunId
from pluralllm.server.process.last_used import LastUsed
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.overview import ended_evaluations
from pluralllm.server.storage.store import EvaluationRecord, Store

# Two are shown, the newest one and the one before it. The newest one in the store may still be in evaluation.
VERSIONS_READ = 3
KEPT_RUNS = 32  # whose records are kept


@dataclass(frozen=True, slots=True)
class Fairness:
    """The alignment scores of one model version in a few numbers. A group that reports no score counts in `groups` only."""

    index: float  # Jain's, from 1 / reporting_groups to 1
    coefficient_of_variation: float
    min_alignment_score: float
    min_group: GroupName
    mean_alignment_score: float
    reporting_groups: int
    groups: int

    @classmethod
    def of(cls, scores: Sequence[tuple[GroupName, float | None]]) -> Self | None:
        """Returns the fairness of a version from its groups' scores; None if no group has reported a score.

        scores: a pair for each evaluation; the score is None if the group does not report it.
        """
        reported = [(score, group) for group, score in scores if score is not None]
        if not reported:
            return None
        values = [score for score, _ in reported]
        min_score, min_group = min(reported)
        mean = sum(values) / len(values)
        spread = coefficient_of_variation(values)
        return cls(fairness_index(values), spread, min_score, min_group, mean, len(values), len(scores))


class EndedEvaluations:
    """The evaluation records of runs' newest versions whose evaluation has ended, and the fairness of the newest one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Each with the newest version whose evaluation had ended then.
        self._records = LastUsed[RunId, tuple[ModelVersion, Sequence[EvaluationRecord]]](KEPT_RUNS)
        self._fairness: dict[RunId, tuple[ModelVersion, Fairness | None]] = {}  # small: of every run that was listed

    async def of(self, run: LiveRun) -> Sequence[EvaluationRecord]:
        """Returns the records, sorted by version, then by group. Raises StoreFailed if the database cannot be read."""
        evaluated = run.state.evaluated
        if evaluated is None:
            return ()
        kept = self._records.get(run.id)
        if kept is None or kept[0] != evaluated:
            records = await self._store.latest_evaluations(run.id, VERSIONS_READ)
            kept = self._records.put(run.id, (evaluated, ended_evaluations(run, records)))
        return kept[1]

    async def fairness(self, run: LiveRun) -> Fairness | None:
        """Returns the fairness of the newest version whose evaluation has ended, without the version's records.

        A list of runs asks for it. None if no group has reported a score. Raises StoreFailed if the database cannot be read.
        """
        evaluated = run.state.evaluated
        if evaluated is None:
            return None
        kept = self._fairness.get(run.id)
        if kept is None or kept[0] != evaluated:
            scores = await self._store.alignment_scores(run.id, evaluated)
            kept = self._fairness[run.id] = evaluated, Fairness.of(scores)
        return kept[1]


def split_by_version(
    records: Sequence[EvaluationRecord],
) -> tuple[list[EvaluationRecord], list[EvaluationRecord]]:
    """Returns two lists: the evaluations of the newest model version, and the evaluations of the version before it.

    All other evaluations in `records` are left out. A list is empty if `records` has no evaluation of the version.
    """
    versions = sorted({record.score.version for record in records}, reverse=True)
    by_version = [[record for record in records if record.score.version == version] for version in versions[:2]]
    return by_version[0] if by_version else [], by_version[1] if len(by_version) > 1 else []
