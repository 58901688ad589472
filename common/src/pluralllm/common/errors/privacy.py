"""Errors about noised answers and the ledger of their privacy loss; tree.py draws the whole tree.

`- Refused
   |- PrivacyBudgetSpent  another release would tell more about one respondent than the partner allows
   |- NotReleased         the policy asks for noised answers, and none have been released yet
   |- NoisedFileLost      the file with the noised answers is missing or has other content
   |- AnswersProtected    the file's answers were released with noise, so the true ones are not used any more
   |- NoiseDemanded       the run takes noised answers only, and this client's have none, or tell too much
   |- LedgerBroken        the ledger was changed or damaged
   `- LedgerDiverged      the ledger and its copy tell different stories
"""

from dataclasses import dataclass

from pluralllm.common.errors.root import Refused


@dataclass(eq=False)
class PrivacyBudgetSpent(Refused):
    population: str
    spent: float  # epsilon of all releases so far
    allowed: float
    why = "Population {population}: epsilon {spent:.4g} of {allowed:.4g} is spent, nothing is left for another release."
    fix = "The released answers stay in use. Only the partner can allow more: [privacy] respondents_epsilon in policy.toml."


@dataclass(eq=False)
class NotReleased(Refused):
    file: str
    why = "The policy asks for noised answers, and none of {file} have been released."
    fix = (
        "Type once: pluralllm-client data release --data {file} (with the --config or --state-dir of the daemon). Without noise:"
        " remove [privacy] from policy.toml."
    )


@dataclass(eq=False)
class NoisedFileLost(Refused):
    file: str
    sha256: str
    why = "The noised answers {file} are missing or changed; their content must have the SHA-256 {sha256}."
    fix = "Restore the file from a backup. A new release of all questions costs its full privacy loss again."


@dataclass(eq=False)
class AnswersProtected(Refused):
    file: str
    ledger: str
    why = "The answers in {file} were released with noise ({ledger} says so), so the true answers are not used."
    fix = (
        "Use the noised answers: set [privacy] in policy.toml, or name the file that `pluralllm-client privacy` shows."
    )


@dataclass(eq=False)
class NoiseDemanded(Refused):
    run: str
    epsilon: float
    delta: float
    unit: str
    stated: str  # what this client's ledger says
    why = "{stated}; run {run} takes noised answers only, with epsilon {epsilon:.4g} at most for one {unit} at delta {delta:.2g}."
    fix = "A partner without a release can make one within this bound: pluralllm-client data release. What was told stays told."


@dataclass(eq=False)
class LedgerBroken(Refused):
    file: str
    problem: str
    why = "The privacy ledger {file} is broken: {problem}."
    fix = "Restore it from a backup. No answers are released and none are used until then."


@dataclass(eq=False)
class LedgerDiverged(Refused):
    file: str
    copy: str
    why = "The privacy ledger {file} and its copy {copy} differ, and neither continues the other."
    fix = "Put back the true one in both places. No answers are released and none are used until then."
