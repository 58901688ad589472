"""Gets rewards from a federation, so that each group's answers stay with their owner.

FederatedReward is an asynchronous TRL reward function. The class sends each batch to a reward run of the federation, that
is, a run whose rounds compute rewards instead of training a model.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from pluralllm.align.answers import Reader, read_by
from pluralllm.align.context_check import warn
from pluralllm.align.ranks import Ranks
from pluralllm.align.rollouts import COLUMNS, Columns, Judging, Rollout, Text, judge, read_rollouts
from pluralllm.common.errors.tree import InvalidArgument, PluralError, Unreachable, WrongPhase
from pluralllm.common.rewards.rollout_batch import Candidates, write_rollouts
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.words.context_gain import check_context_gain, mean_gain
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import parse_spec
from pluralllm.operator.endings import ENDS
from pluralllm.operator.remote import Remote

log = structlog.get_logger()

BUSY_RETRY_S = 1.0
ALONE = "the only candidate for its prompt"  # there is no other candidate to compare it with


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a batch, which the first rank gets and all ranks use."""

    shares: dict[Question, list[float]]  # of each question's candidates
    groups: dict[str, float]  # the groups in it, with their weights
    error: Exception | None = None


class FederatedReward:
    """Asynchronous TRL reward function that gets its rewards from a federation.

    Each batch of completions becomes a round of a reward run, in which the federation aggregates the groups' rewards.
    """

    def __init__(
        self,
        coordinator: Remote | str | Path,
        run: str,
        *,
        columns: Columns = COLUMNS,
        form: str = "probability",
        no_option: float | None = None,
        read: Reader | None = None,
        timeout_s: float = 600.0,
        accept_no_context_gain: bool = False,
    ) -> None:
        """Creates a reward function for the reward run `run`.

        coordinator: an open connection, or the folder of an administrator's identity, which `pluralllm join` wrote.
        run: name of a run that `pluralllm run rewards` created; its spec holds quorum, deadline and aggregation rule.
        columns: names of the data set's columns. form: name of a reward form (a function in reward_forms.py).
        no_option: reward of a completion that names no option; None leaves the completion out of the training step.
        read: a function of a completion and its options that returns a share for each option, or None; None reads as
            answers.read_answer does.
        timeout_s: longest time for one batch of completions, in seconds. The wait for earlier batches counts too.
        accept_no_context_gain: whether to use a run whose model predicts the same for every group, with a ContextGainWarning.
        Otherwise the first batch raises InvalidModel. If nobody has measured the context gain, there is a warning.
        Raises InvalidArgument for an unknown form; InvalidConfig for a damaged identity.
        """
        self._coordinator = coordinator
        self._remote = coordinator if isinstance(coordinator, Remote) else _connected(Path(coordinator).expanduser())
        self._run, self._columns, self._timeout_s = run, columns, timeout_s
        self._judging = Judging(form, 0.0, no_option, read)
        self._accepts_no_gain, self._is_checked = accept_no_context_gain, False
        self._ranks = Ranks()
        self.unscored: Counter[str] = Counter()  # completions that got None, by reason
        self.groups: dict[str, float] = {}  # groups whose rewards the newest batch contains, with their weights
        self.__name__ = f"federated_{run}".replace("-", "_")

    async def __call__(
        self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any
    ) -> list[float | None]:
        """Returns one reward for each completion; None for a completion that cannot be scored.

        Every reward is None if too few groups answered. columns: further columns of the data set, by name, as TRL passes them.
        Raises the coordinator's error if the coordinator refuses the batch of completions. Raises Unreachable if the batch
        takes longer than the timeout that the constructor got. Raises InvalidModel if the predictions of the run's model do not
        depend on the group. In a distributed training the completions of all ranks make one batch, which the first rank asks for.
        """
        rollouts = read_rollouts(prompts, completions, columns, self._columns, self._ranks)
        batch = await asyncio.to_thread(self._ranks.gathered, rollouts)
        outcome = await self._outcome(batch.values) if self._ranks.is_first else None
        outcome = await asyncio.to_thread(self._ranks.from_first, outcome)
        assert outcome is not None
        if outcome.error is not None:
            raise outcome.error
        shares, self.groups = outcome.shares, outcome.groups
        rewards = [self._judge(rollout, shares) for rollout in rollouts]
        if (log_metric := columns.get("log_metric")) is not None:
            log_metric(f"{self.__name__}/unscored", sum(reward is None for reward in rewards) / max(1, len(rewards)))
            log_metric(f"{self.__name__}/groups", float(len(self.groups)))
        return rewards

    def __getstate__(self) -> dict[str, Any]:
        """Returns the object's values without its connection; another process opens the identity's folder again.

        Raises InvalidArgument if the constructor got an open connection, which cannot travel to another process.
        """
        if isinstance(self._coordinator, Remote):
            problem = "is an open connection, which cannot be pickled; give the folder of the administrator's identity"
            raise InvalidArgument(field="coordinator", problem=problem)
        return {name: value for name, value in self.__dict__.items() if name != "_remote"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Makes the object again in another process. Raises InvalidConfig if that process has no such identity."""
        self.__dict__.update(state)
        self._remote = _connected(Path(state["_coordinator"]).expanduser())

    async def _outcome(self, rollouts: Sequence[Rollout]) -> Outcome:
        """Asks for the shares of a batch. Returns an error instead of raising it, so that the other ranks hear of it as well."""
        try:
            await self._check_model()
            asked = _asked(rollouts, self._judging.read)
            return Outcome(await self._shares(asked) if asked else {}, self.groups)
        except Exception as error:  # noqa: BLE001 - every rank raises it; else the others would wait for an answer
            return Outcome({}, {}, error)

    async def _check_model(self) -> None:
        """Checks the context gain of the run's model, once. Raises InvalidModel if its predictions do not depend on the group."""
        if self._is_checked:
            return
        try:
            source, gain = await asyncio.to_thread(_source_of, self._remote, self._run)
        except PluralError:
            return  # the batch itself waits or reports the error, and the next batch checks again
        warn(check_context_gain(source, gain, accept=self._accepts_no_gain))
        self._is_checked = True

    async def _shares(self, asked: dict[Question, Candidates]) -> dict[Question, list[float]]:
        """Returns the aggregated shares of each question's candidates, by question; an empty dict if the round was abandoned.

        asked: the questions, each with its candidates. Raises Unreachable if there is no answer before the timeout.
        """
        raw = write_rollouts(asked.values())
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._answer(raw)
        except TimeoutError as error:
            problem = f"no rewards after {self._timeout_s:g} s"
            raise Unreachable(address=self._remote.address, problem=problem) from error
        self.groups = {group["group"]: group["weight"] for group in answer["groups"]}
        if answer["outcome"] != "closed":
            log.warning("rewards.abandoned", run=self._run, reason=answer["reason"])
            return {}
        ends = np.cumsum([len(question.options) for question in asked])[:-1]
        by_question = np.split(np.asarray(answer["rewards"], np.float64), ends)
        return {question: shares.tolist() for question, shares in zip(asked, by_question, strict=True)}

    async def _answer(self, raw: bytes) -> dict[str, Any]:
        """Sends a batch of questions as a round of the reward run, and returns the result when the round has ended.

        raw: the encoded batch. The method sends the batch again each second while the run works on another batch, the
        coordinator is unreachable, or anything else fails that may pass.
        Raises WrongPhase if the run is paused, has ended or has not started; an error in ENDS.
        """
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
            except ENDS:
                raise
            except PluralError as error:  # such as a restart: a repeated batch continues its round, or starts one
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


def _asked(rollouts: Sequence[Rollout], read: Reader | None) -> dict[Question, Candidates]:
    """Returns each question of the batch once, with its candidates and how often each candidate was sampled.

    The aggregation uses these counts to measure how well each group is served. Questions with one candidate are left out.
    """
    counts: dict[Question, np.ndarray[Any, np.dtype[np.float64]]] = {}
    for rollout in rollouts:
        question = rollout.question
        if question is None or len(question.options) < 2:
            continue
        candidate_counts = counts.setdefault(question, np.zeros(len(question.options)))
        answer = (
            read_by(read, rollout.completion, question.options)
            if rollout.has_options
            else np.eye(len(question.options))[question.options.index(rollout.completion)]
        )
        if answer is not None:
            candidate_counts += answer
    return {
        question: Candidates(
            question.text, question.options, tuple(candidate_counts.tolist()) if candidate_counts.any() else ()
        )
        for question, candidate_counts in counts.items()
    }


def _source_of(remote: Remote, run: str) -> tuple[str, float | None]:
    """Returns the name of the model that a reward run scores with, and its mean context gain; None if no group reports it.

    Raises WrongPhase if the run gives no rewards, or the coordinator's error.
    """
    rewards = parse_spec(remote.model_record(ModelName.parse_short(f"{run}@0"))[2], f"of run {run}").rewards
    if rewards is None:
        raise WrongPhase(run=run, phase="a run that trains", wanted="asked for rewards")
    model = ModelName.parse(rewards.source)
    scores = remote.evaluations(model.run)
    return f"{model.run}@{model.version}", mean_gain(
        score["context_gain"] for score in scores if score["version"] == model.version
    )


def _connected(folder: Path) -> Remote:
    return Remote.of_member(load_identity(folder, "pluralllm join"))
