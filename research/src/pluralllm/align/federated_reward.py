"""Rewards of groups whose answers never leave their owners: an async TRL reward function over a federation's run of rewards."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from pluralllm.align.answers import read_answer
from pluralllm.align.rollouts import COLUMNS, Columns, Judging, Rollout, Text, judge, read_rollouts
from pluralllm.common.errors.tree import PluralError, Unreachable, WrongPhase
from pluralllm.common.rewards.rollout_batch import Candidates, write_rollouts
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.words.questions import Question
from pluralllm.operator.remote import Remote

log = structlog.get_logger()

BUSY_RETRY_S = 1.0
ALONE = "the only candidate for its prompt"  # there is nothing to tell it apart from


class FederatedReward:
    """Callable as TRL wants it, and awaited by it: a batch becomes a round of the federation, its aggregate the rewards."""

    def __init__(
        self,
        coordinator: Remote | str | Path,
        run: str,
        *,
        columns: Columns = COLUMNS,
        form: str = "probability",
        no_option: float | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        """`coordinator`: an open connection, or the folder of an administrator's identity (`pluralllm join` made it).

        run: one that asks for rewards (`pluralllm run rewards`); its spec has quorum, deadline and the rule of aggregation.
        columns, form, no_option: as of GroupReward. timeout_s: how long one batch may take, other batches before it included.
        Raises InvalidArgument, InvalidConfig.
        """
        self._remote = coordinator if isinstance(coordinator, Remote) else _connected(Path(coordinator).expanduser())
        self._run, self._columns, self._timeout_s = run, columns, timeout_s
        self._judging = Judging(form, 0.0, no_option)
        self.unscored: Counter[str] = Counter()  # completions that got None, by reason
        self.groups: dict[str, float] = {}  # whose rewards were in the newest batch, and their weights
        self.__name__ = f"federated_{run}".replace("-", "_")

    async def __call__(
        self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any
    ) -> list[float | None]:
        """Rewards, one for each completion. None where there is nothing to score, and everywhere if too few groups answered.

        Raises the refusals of AskRewards, and Unreachable when it takes longer than timeout_s.
        """
        rollouts = read_rollouts(prompts, completions, columns, self._columns)
        asked = _asked(rollouts)
        shares = await self._shares(asked) if asked else {}
        found = [self._judge(rollout, shares) for rollout in rollouts]
        if (log_metric := columns.get("log_metric")) is not None:
            log_metric(f"{self.__name__}/unscored", sum(each is None for each in found) / max(1, len(found)))
            log_metric(f"{self.__name__}/groups", float(len(self.groups)))
        return found

    async def _shares(self, asked: dict[Question, Candidates]) -> dict[Question, list[float]]:
        """The aggregate's, of each question's candidates; nothing if the round was abandoned."""
        raw = write_rollouts(asked.values())
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._answer(raw)
        except TimeoutError as error:
            problem = f"no rewards after {self._timeout_s:g} s"
            raise Unreachable(address=self._remote.address, problem=problem) from error
        self.groups = {each["group"]: each["weight"] for each in answer["groups"]}
        if answer["outcome"] != "closed":
            log.warning("rewards.abandoned", run=self._run, reason=answer["reason"])
            return {}
        ends = np.cumsum([len(question.options) for question in asked])[:-1]
        parts = np.split(np.asarray(answer["rewards"], np.float64), ends)
        return {question: part.tolist() for question, part in zip(asked, parts, strict=True)}

    async def _answer(self, raw: bytes) -> dict[str, Any]:
        """Of the batch's round, once it has ended."""
        while True:
            try:
                name = await asyncio.to_thread(self._remote.ask_rewards, self._run, raw)
                answer = await asyncio.to_thread(self._remote.rewards, name)
                while answer["outcome"] == "open":
                    answer = await asyncio.to_thread(self._remote.rewards, name)
            except WrongPhase:
                if await self._takes_no_batches():
                    raise
                await asyncio.sleep(BUSY_RETRY_S)  # another trainer's batch is under way
            except Unreachable as error:  # it restarts: the batch is under way, or asked anew
                log.warning("rewards.waiting", reason=str(error))
                await asyncio.sleep(BUSY_RETRY_S)
            else:
                return answer

    async def _takes_no_batches(self) -> bool:
        try:
            run = await asyncio.to_thread(self._remote.get_run, self._run)
        except PluralError:
            return False
        return run["phase"] in ("created", "ended") or run["paused"]

    def _judge(self, rollout: Rollout, shares: dict[Question, list[float]]) -> float | None:
        question = rollout.question
        if question is None or len(question.options) < 2 or question not in shares:
            alone = question is not None and len(question.options) < 2
            self.unscored[ALONE if alone else rollout.problem or "too few groups answered"] += 1
            return None
        scored = judge(rollout, self._judging, np.asarray(shares[question]), np.zeros(len(question.options)))
        if scored is None:
            self.unscored["names no option"] += 1
        return None if scored is None else scored.reward


def _asked(rollouts: Sequence[Rollout]) -> dict[Question, Candidates]:
    """Each question once, with how often each of its candidates was given: what groups are said to be served by."""
    counts: dict[Question, np.ndarray[Any, np.dtype[np.float64]]] = {}
    for rollout in rollouts:
        question = rollout.question
        if question is None or len(question.options) < 2:
            continue
        given = counts.setdefault(question, np.zeros(len(question.options)))
        answer = (
            read_answer(rollout.completion, question.options)
            if rollout.has_options
            else np.eye(len(question.options))[question.options.index(rollout.completion)]
        )
        if answer is not None:
            given += answer
    return {
        question: Candidates(question.text, question.options, tuple(given.tolist()) if given.any() else ())
        for question, given in counts.items()
    }


def _connected(folder: Path) -> Remote:
    return Remote.of_member(load_identity(folder, "pluralllm join"))
