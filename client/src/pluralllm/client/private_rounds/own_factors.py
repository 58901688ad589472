"""The factors of this client's own updates in private rounds, and what it remembers of each run's earlier distances.

Two of the weightings look back (common/words/own_weights.py). What they look back at is one number for each run, in a file that
names the round whose update was weighted with it. The next round asks this client's history what became of that update: the
number has moved on if the round made a model version with it, and has stayed if the round was abandoned or gave no receipt. So
nothing has to be written at the moment of the receipt, and a restart at any moment changes no factor.
"""

import json
from dataclasses import asdict, dataclass

import structlog

from pluralllm.client.keeping.drafts import Drafts
from pluralllm.client.keeping.history import History
from pluralllm.client.link.tasks import Task
from pluralllm.common.process.files import damaged, read_state_as, write_durably
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import RoundNumber, RunId
from pluralllm.common.words.own_weights import own_factor

log = structlog.get_logger()

MEND = "remove it: then the factors of the run begin anew"


@dataclass(frozen=True, slots=True)
class FactorState:
    """The newest round of a run whose update got a factor, and the number that the factors start from."""

    round: RoundNumber
    before: float | None  # what this round started from
    after: float | None  # what the next round starts from if this round's update is in a version

    def fits(self) -> bool:
        """Returns whether the numbers are some of `own_factor`: factors and distances are at least 0, and finite."""
        return self.round > 0 and all(number is None or 0 <= number < 1e9 for number in (self.before, self.after))


class OwnFactors:
    """The factors of one client. The states are drafts of their runs, and end with them."""

    def __init__(self, drafts: Drafts, history: History) -> None:
        self._drafts, self._history = drafts, history

    def factor(self, task: Task, aggregation: Aggregation, distance: float | None, mean: float | None) -> float:
        """Returns the factor of this client's update in a task's round. The state that follows is durable then.

        distance, mean: as for `own_factor`. The same round again starts from the same state.
        Raises InvalidConfig if the run's file is damaged; StorageFull.
        """
        before = self._before(task.run, task.round)
        made = own_factor(aggregation, distance, mean, before)
        state = FactorState(task.round, before, made.history)
        write_durably(self._drafts.factors(task.run), json.dumps(asdict(state)).encode())
        log.info("private.own_factor", run=task.run, round=task.round, factor=round(made.factor, 4), mean_distance=mean)
        return made.factor

    def _before(self, run: RunId, number: RoundNumber) -> float | None:
        """Returns what the factor of a round starts from."""
        path = self._drafts.factors(run)
        if not path.is_file():
            return None
        state = read_state_as(path, FactorState, MEND)
        if not state.fits():
            raise damaged(path, "its numbers are none of a factor", MEND)
        return state.after if state.round < number and self._is_counted(run, state.round) else state.before

    def _is_counted(self, run: RunId, number: RoundNumber) -> bool:
        """Returns whether a round has made a version, and this client has the receipt for its update of the round.

        The check of the version's record has made sure that the version holds the update (`RecordChain`).
        """
        seen = self._history.seen(run)
        has_receipt = any(update.acknowledged for update in seen.own_updates.get(number, ()))
        return has_receipt and any(version.round == number for version in seen.versions.values())
