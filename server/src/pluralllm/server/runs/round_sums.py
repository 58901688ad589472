"""Reads what the sums of a run's newest private rounds say about their updates together."""

from collections.abc import Sequence
from dataclasses import dataclass

from pluralllm.common.private_rounds.ring import SumTail
from pluralllm.common.words.ids import RunId
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.process.last_used import LastUsed
from pluralllm.server.rounds.state import WITH_OPEN_ROUND
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.storage.store import RoundRecord, Store

KEPT_RUNS = 32  # whose sums are kept
SPARE_ROUNDS = 20  # abandoned rounds among those that are read back for a sum with scores


@dataclass(frozen=True, slots=True)
class RoundSum:
    """A closed private round, and its sum's tail: everything that is known about its updates together."""

    record: RoundRecord
    tail: SumTail


@dataclass(frozen=True, slots=True)
class NewestSums:
    """The newest sum of a run, and the newest one that has scores. They may be the same."""

    newest: RoundSum | None = None
    scored: RoundSum | None = None


def sum_of(record: RoundRecord, spec: RunSpec) -> RoundSum | None:
    """Returns the sum of a round; None if the round was plain, is open or was abandoned, or if an earlier release closed it."""
    return RoundSum(record, SumTail.read(record.tail, spec.aggregation.max_examples)) if record.tail else None


def newest_sums(records: Sequence[RoundRecord], spec: RunSpec) -> NewestSums:
    """Returns the newest sums of rounds. records: newest first."""
    sums = [one for record in records if (one := sum_of(record, spec)) is not None]
    return NewestSums(sums[0] if sums else None, next((one for one in sums if one.tail.scored), None))


class RoundSums:
    """The newest sums of each run. They are read from the store once after each end of a round."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Each with the number of the newest round that had ended then.
        self._kept = LastUsed[RunId, tuple[int, NewestSums]](KEPT_RUNS)

    async def of(self, run: LiveRun) -> NewestSums:
        """Returns a run's newest sums. Raises StoreFailed if the database cannot be read."""
        if run.state.private is None:
            return NewestSums()
        ended = run.state.round - (run.state.phase in WITH_OPEN_ROUND)
        kept = self._kept.get(run.id)
        if kept is None or kept[0] != ended:
            most = run.state.policy.evaluate_every + SPARE_ROUNDS
            records = await self._store.rounds(run.id, ended + 1, most)
            kept = self._kept.put(run.id, (ended, newest_sums(records, run.spec)))
        return kept[1]
