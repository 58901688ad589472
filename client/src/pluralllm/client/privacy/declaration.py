"""The statement of this client to the coordinator about its noise, and its comparison with a run's demand.

The declaration names the loss of all releases together (epsilon, delta, unit), or says that there is no noise. It follows from
the policy and the ledger alone, never from an answer.
"""

from dataclasses import dataclass
from pathlib import Path

import structlog

from pluralllm.client.data.private_file import Stamp, stamp_of
from pluralllm.client.privacy.accountant import epsilon_of, rho_of, rho_used
from pluralllm.client.privacy.entries import latest_release, totals_of
from pluralllm.client.privacy.ledger import FILE, Ledger
from pluralllm.client.privacy.release import ROUNDING
from pluralllm.common.errors.tree import NoiseDemanded, PluralError
from pluralllm.common.words.ids import RunId
from pluralllm.common.words.noise import RESPONDENT, NoiseStatement
from pluralllm.common.words.privacy_demand import PrivacyDemand

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Account:
    """The ledger of a private file, and the partner's statements that its loss is computed with."""

    folder: Path  # of the ledger
    data: Path  # the private file
    delta: float
    questions_per_respondent: int = 0  # 0: one person may have answered every question that was ever released

    def rho_spent(self) -> float | None:
        """Returns the rho of all releases together, for one respondent; None if this private file was never released.

        A client may use shares of which nothing was released as they are. Raises LedgerBroken or LedgerDiverged.
        """
        data = self.data.resolve()
        entries = Ledger(self.folder, data).entries
        if latest_release(entries, str(data)) is None:
            return None
        totals = totals_of(entries)
        return rho_used(totals.values(), self.questions_per_respondent or len(totals))

    def statement(self) -> NoiseStatement:
        """Returns what the client declares: the loss of all releases so far. Raises LedgerBroken or LedgerDiverged."""
        rho = self.rho_spent()
        if rho is None:
            return NoiseStatement(noised=False)
        return NoiseStatement(noised=True, epsilon=epsilon_of(rho, self.delta), delta=self.delta, unit=RESPONDENT)


def check_demand(demand: PrivacyDemand | None, run: RunId, account: Account | None) -> None:
    """Checks that a client's losses are within what a run demands. account: None if the client uses the true answers.

    The loss is compared at the demand's own delta. Raises NoiseDemanded if it is larger; LedgerBroken or LedgerDiverged.
    """
    if demand is None:
        return
    rho = None if account is None else account.rho_spent()
    if rho is None:
        stated = "This client uses the true answers"
    elif rho <= rho_of(demand.respondents_epsilon, demand.delta) * (1 + ROUNDING):
        return
    else:
        stated = f"This client's releases have told {epsilon_of(rho, demand.delta):.4g}"
    raise NoiseDemanded(
        run=run, epsilon=demand.respondents_epsilon, delta=demand.delta, unit=demand.unit, stated=stated
    )


class Declaration:
    """The statement of a running client. It follows the ledger: a release by another process changes it."""

    def __init__(self, account: Account | None) -> None:
        """Takes the account, which is read at the first look; None if the client uses the true answers."""
        self._account = account
        self._stamp: Stamp | None = None
        self._statement: NoiseStatement | None = NoiseStatement(noised=False)
        self.said: NoiseStatement | None = None  # in the newest Hello, and so about the answers of the task under way
        self._is_read, self._has_said = False, False

    def look(self) -> bool:
        """Reads the ledger again if it has changed. Returns whether Hello must say another statement."""
        if self._account is not None:
            stamp = stamp_of(self._account.folder / FILE)
            if not self._is_read or stamp != self._stamp:
                self._stamp, self._is_read = stamp, True
                self._statement = self._read(self._account)
        return self._has_said and self._statement != self.said

    def say(self) -> NoiseStatement | None:
        """Returns the statement for a Hello; None if the ledger cannot be read."""
        self.look()
        self.said, self._has_said = self._statement, True
        return self.said

    def check(self, demand: PrivacyDemand | None, run: RunId) -> None:
        """Checks a run's demand, as `check_demand` does."""
        check_demand(demand, run, self._account)

    @staticmethod
    def _read(account: Account) -> NoiseStatement | None:
        try:
            return account.statement()
        except PluralError as error:
            log.error("noise.not_declared", problem=str(error))
            return None
