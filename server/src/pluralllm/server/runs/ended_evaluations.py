"""Reads the evaluations of the newest versions of a run, once: an evaluation that has ended never changes."""

from collections.abc import Sequence

from pluralllm.common.words.ids import ModelVersion, RunId
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.overview import ended_evaluations
from pluralllm.server.storage.store import EvaluationRecord, Store

# Two are shown, the newest one and the one before it. The newest one in the store may still be in evaluation.
VERSIONS_READ = 3


class EndedEvaluations:
    """The evaluation records of each run's newest versions whose evaluation has ended."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[RunId, tuple[ModelVersion, Sequence[EvaluationRecord]]] = {}  # with the newest version then

    async def of(self, run: LiveRun) -> Sequence[EvaluationRecord]:
        """Returns the records, sorted by version, then by group. Raises StoreFailed if the database cannot be read."""
        evaluated = run.state.evaluated
        if evaluated is None:
            return ()
        kept = self._kept.get(run.id)
        if kept is None or kept[0] != evaluated:
            records = await self._store.latest_evaluations(run.id, VERSIONS_READ)
            kept = self._kept[run.id] = evaluated, ended_evaluations(run, records)
        return kept[1]
