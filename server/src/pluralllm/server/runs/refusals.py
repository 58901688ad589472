"""Totals of refused updates, by run and client, since the process started. They are in memory only."""

from collections.abc import Mapping
from dataclasses import dataclass

from pluralllm.common.words.ids import ClientId, RoundNumber, RunId

RECORDED_IN_A_ROUND = 5  # refusals of one client in one round that become events of the run


@dataclass(slots=True)
class Refused:
    """The refusals of one client's updates to one run."""

    total: int = 0
    round: RoundNumber = RoundNumber(0)  # the open round of the newest recorded refusal
    recorded: int = 0  # in this round


class Refusals:
    """Counts refused updates, and bounds those that become durable events of a run.

    A client that repeats a refused call for ever fills no database: only its first refusals in the open round are recorded.
    """

    def __init__(self) -> None:
        self._by_run: dict[RunId, dict[ClientId, Refused]] = {}

    def count(self, run: RunId, client: ClientId, open_round: RoundNumber | None) -> bool:
        """Counts a refusal. Returns whether to record it as an event of the run.

        open_round: the run's open round if the refused update is for this round, and if the run has not ended; otherwise None.
        """
        refused = self._by_run.setdefault(run, {}).setdefault(client, Refused())
        refused.total += 1
        if open_round is None:
            return False
        if refused.round != open_round:
            refused.round, refused.recorded = open_round, 0
        refused.recorded += 1
        return refused.recorded <= RECORDED_IN_A_ROUND

    def of(self, run: RunId) -> Mapping[ClientId, int]:
        """Returns the total of each client of a run that has had a refusal."""
        return {client: refused.total for client, refused in self._by_run.get(run, {}).items()}
