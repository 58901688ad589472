"""The client's accounts: which runs it has joined on which day, and which scores it has reported for each model version.

The accounts limit how much a coordinator can learn by asking again and again. They are durable before a number leaves, and they
never shrink: a run that comes back after a year has the scores that it had.

A score of a known model is an equation about the answers of the scored questions. From as many scores as questions, of models
that were made for it, the answers can be computed although the scores are rounded. So there are never more scores in a month than
questions behind them (max_scores_per_question).
"""

import dataclasses
import datetime
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.link.tasks import Scores, Task
from pluralllm.common.errors.tree import AnswerInvalid, PolicyForbids, SpecMismatch
from pluralllm.common.process.files import make_folder, read_state_as, write_durably
from pluralllm.common.words.ids import Digest, RunId, is_id
from pluralllm.common.words.not_reported import NotReported

MEND = "restore it from a backup, or move it away: then the client counts anew"
Today = Callable[[], datetime.date]
MONTH_DAYS = 30
EARLIER = "earlier"  # in place of the day: the client joined the run before it kept accounts


def utc_today() -> datetime.date:
    """Returns today's date in UTC."""
    return datetime.datetime.now(tz=datetime.UTC).date()


class _Reported(BaseModel):
    day: datetime.date
    scores: Scores | None
    questions: int | None = None  # behind a score that has left inside a sum; None for others


class _Account(BaseModel):
    """The content of an account's file. A later release may add keys, which stay."""

    model_config = ConfigDict(extra="allow")

    joined: str
    spec_sha256: str | None = None
    scores: dict[str, _Reported]


class Budgets:
    """A folder with one account for each run that this client has joined.

    An account is {"joined": day, "spec_sha256": hash of the run spec, "scores": {version and digest: scores and day}}.
    The scores are null while an evaluation is under way, if it failed, and if they have left inside a sum only.
    """

    def __init__(self, folder: Path, policy: Policy, today: Today = utc_today) -> None:
        self._folder, self._policy, self._today = folder, policy, today
        self._refused_on: datetime.date | None = None  # the last day on which a run was one too many

    def open_for(self, runs: Iterable[RunId]) -> None:
        """Makes accounts for the runs that an earlier release had joined. They count for no day.

        Does nothing if the client keeps accounts already.
        """
        if not self._folder.is_dir():
            make_folder(self._folder)
            for run in runs:
                self._write(run, {"joined": EARLIER, "scores": {}})

    def follow(self, *, noised: bool) -> None:
        """Forgets the scores from true answers, if the client uses noised answers from now on; they stay counted.

        A version that the coordinator asks for once more is scored again. Raises InvalidConfig for a damaged account.
        """
        since = self._folder / "from-noised-answers"  # there while all scores follow from noised answers
        if noised == since.is_file():
            return
        if not noised:
            since.unlink()
            return
        make_folder(self._folder)
        for path in self._folder.glob("*.json"):
            account = _account_in(path)
            for reported in account["scores"].values():
                reported["scores"] = None
            write_durably(path, json.dumps(account).encode(), mode=0o600)
        write_durably(since, b"")

    def join(self, run: RunId, spec_sha256: Digest) -> None:
        """Makes the account of a run when the client starts on the run's first task. Later calls change nothing.

        Raises PolicyForbids if the client has joined max_runs_a_day runs today, and SpecMismatch if the client has joined this
        run with another run spec.
        """
        account = self._read(run)
        if account is None:
            self._check_runs_of_today()
            account = {"joined": self._today().isoformat(), "scores": {}}
        stored = account.get("spec_sha256")
        if stored is None:
            self._write(run, account | {"spec_sha256": spec_sha256})
        elif stored != spec_sha256:
            raise SpecMismatch(run=run, asked=spec_sha256[:12], stored=stored[:12])

    def may_ask_again(self) -> bool:
        """Returns whether a run was refused for max_runs_a_day on an earlier day, and forgets it: there is a new budget."""
        is_new_day = self._refused_on is not None and self._refused_on != self._today()
        if is_new_day:
            self._refused_on = None
        return is_new_day

    def answer(self, task: Task) -> Scores | NotReported | None:
        """Returns the answer to a task that evaluates, if it needs no work; otherwise None.

        A version that was scored before gets the scores that it had, and costs nothing. When a budget is spent, the answer is
        BUDGET_SPENT.
        """
        reported = self._account(task.run)["scores"].get(_version(task))
        if reported is not None and reported["scores"] is None:
            return None  # it was counted when it began; its result is the same however often it is computed
        if reported is not None:
            return Scores(**reported["scores"])
        return None if self.spent(task.run) is None else NotReported.BUDGET_SPENT

    def spent(self, run: RunId) -> str | None:
        """Returns the key of the policy whose budget is spent, so that no further version of a run is scored; None if none is."""
        if len(self._account(run)["scores"]) >= self._policy.max_evaluations_of_run:
            return "max_evaluations_of_run"
        since = (self._today() - datetime.timedelta(days=MONTH_DAYS)).isoformat()
        recent = [
            reported
            for account in self._accounts()
            for reported in account["scores"].values()
            if reported["day"] > since
        ]
        known = (count for reported in recent if (count := _questions_behind(reported)) is not None)
        behind = min(known, default=self._policy.min_questions_behind)
        if recent and len(recent) >= self._policy.max_scores_per_question * behind:
            return "max_scores_per_question"
        return None

    def key_behind(self, run: RunId, reason: NotReported) -> str:
        """Returns the key of the policy that keeps the scores of a run's version on this machine."""
        match reason:
            case NotReported.TOO_FEW_QUESTIONS:
                return "min_questions_behind"
            case NotReported.KEPT_BACK:
                return "private_rounds.evaluation"
            case NotReported.BUDGET_SPENT:
                return self.spent(run) or "max_evaluations_of_run"

    def begin(self, task: Task) -> None:
        """Counts an evaluation before it is computed: whether it fails may depend on the answers, too.

        The account is durable when this method returns. Raises StorageFull if the disk is full.
        """
        self._note(task, None)

    def keep(self, task: Task, scores: Scores) -> None:
        """Stores the scores of a task, which count against the run's budget. The account is durable when this method returns.

        Raises StorageFull if the disk is full; then the scores must not leave.
        """
        self._note(task, dataclasses.asdict(scores))

    def add_to_sum(self, task: Task, questions: int) -> bool:
        """Counts a score that leaves inside a sum, once for each version. Returns whether the budgets allow it.

        questions: number of questions behind the score. The account is durable when this method returns. Raises StorageFull.
        """
        account = self._account(task.run)
        if _version(task) in account["scores"]:
            return True
        if self.spent(task.run) is not None:
            return False
        account["scores"][_version(task)] = {
            "day": self._today().isoformat(),
            "scores": None,
            "questions": questions,
        }
        self._write(task.run, account)
        return True

    def take_back(self, task: Task) -> None:
        """Counts an evaluation no longer: it has too few questions behind it, which depends on no answer."""
        account = self._account(task.run)
        account["scores"].pop(_version(task), None)
        self._write(task.run, account)

    def _note(self, task: Task, scores: dict[str, Any] | None) -> None:
        account = self._account(task.run)
        account["scores"][_version(task)] = {"day": self._today().isoformat(), "scores": scores}
        self._write(task.run, account)

    def _check_runs_of_today(self) -> None:
        today, limit = self._today(), self._policy.max_runs_a_day
        joined = sum(account["joined"] == today.isoformat() for account in self._accounts())
        if joined >= limit:
            self._refused_on = today
            raise PolicyForbids(
                key="max_runs_a_day", asked=str(joined + 1), allowed=f"at most {limit} new runs a day (UTC)"
            )

    def _accounts(self) -> Iterator[dict[str, Any]]:
        return (_account_in(path) for path in self._folder.glob("*.json"))

    def _account(self, run: RunId) -> dict[str, Any]:
        account = self._read(run)
        assert account is not None, "the run was not joined"
        return account

    def _read(self, run: RunId) -> dict[str, Any] | None:
        path = self._path(run)
        return _account_in(path) if path.is_file() else None

    def _write(self, run: RunId, account: dict[str, Any]) -> None:
        write_durably(self._path(run), json.dumps(account).encode(), mode=0o600)

    def _path(self, run: RunId) -> Path:
        if not is_id(run):  # the coordinator chose it, and it becomes a file's name
            raise AnswerInvalid(call="Poll", field="task.run", problem="is not the id of a run")
        return self._folder / f"{run}.json"


def _account_in(path: Path) -> dict[str, Any]:
    """Reads an account from its file. Raises InvalidConfig, which names the file, if it is damaged.

    An account that is moved away is counted anew, which only the owner may do.
    """
    return read_state_as(path, _Account, MEND).model_dump(mode="json", exclude_unset=True)


def _questions_behind(reported: dict[str, Any]) -> int | None:
    scores = reported["scores"]
    questions: int | None = scores["questions"] if scores else reported.get("questions")
    return questions


def _version(task: Task) -> str:
    """Returns the name of a task's model version in the account. With the digest in it, no other model has the same name."""
    return f"{task.base_version}/{task.base_digest}"
