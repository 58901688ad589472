"""A group's predicted preference as a reward function for TRL's GRPOTrainer, RLOOTrainer and whatever else calls it so.

What it costs: each group's context is read once; a call embeds the texts it has not seen and scores all of them together.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pluralllm.align.plural_predictor import PluralConfig, PluralPredictor
from pluralllm.align.rollouts import COLUMNS, Columns, Judging, Rollout, Scored, Text, judge, read_rollouts
from pluralllm.client.data.private_data import read_group
from pluralllm.client.work.train import pick_device
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.predictor.group_predictor import GroupPredictor, PredictedAnswer
from pluralllm.common.words.questions import Question

DEFAULT_CACHE = Path("~/.cache/pluralllm")
NO_OPTION = "names no option"
Key = tuple[str, Question]  # group, question


class GroupReward:
    """Callable as TRL wants it: prompts and completions in, a reward or None for each out."""

    def __init__(
        self,
        model: PluralPredictor | str | Path,
        contexts: Mapping[str, Sequence[Question] | str | Path],
        *,
        group: str | None = None,
        group_column: str = "group",
        columns: Columns = COLUMNS,
        form: str = "probability",
        caution: float = 0.0,
        no_option: float | None = None,
        embedding_model_path: str | Path | None = None,
        cache: str | Path = DEFAULT_CACHE,
        device: str = "auto",
    ) -> None:
        """`contexts`: a few answered questions of each group, or its canonical file.

        group: whose reward it is; without it each example's `group_column` says so (or the only group there is).
        columns: names of the data set's columns. With options the completion names one of them (or a ranking, or shares);
            without, the candidates are the distinct completions of the same prompt in a call, as GRPO and RLOO sample them.
            A single one gets its predicted mean, which means something beside other calls of the same prompt only.
        form: of rewards from options, see reward_forms; from sampled completions it is always the predicted share.
        caution: the reward is less this times the predicted spread.
        no_option: reward of a completion that names no option; None leaves it out of the training step.
        Raises InvalidArgument, InvalidData, InvalidModel, TooFewQuestions, ModelUnavailable, EmbeddingMismatch.
        """
        if not contexts:
            raise InvalidArgument(field="contexts", problem="is empty; give a few answered questions of a group")
        if group is not None and group not in contexts:
            raise InvalidArgument(field="group", problem=_unknown(group, contexts))
        self._judging = Judging(form, caution, no_option)
        self._group = next(iter(contexts)) if group is None and len(contexts) == 1 else group
        self._group_column, self._columns = group_column, columns
        self._model = model if isinstance(model, PluralPredictor) else PluralPredictor.from_pretrained(model)
        chosen = pick_device(device)
        path = None if embedding_model_path is None else Path(embedding_model_path)
        self._embedder = Embedder(self._model.contract, path, Path(cache).expanduser(), chosen)
        self._embedder.check_probes()
        least = self._model.config.min_context
        self._predictors = {
            name: GroupPredictor(self._model.predictor, self._embedder, name, _questions(given), chosen, least)
            for name, given in contexts.items()
        }
        self.unscored: Counter[str] = Counter()  # completions that got None, by reason
        # What a trainer names it by in its logs.
        self.__name__ = "group_reward" if self._group is None else f"reward_{self._group.lower().replace(' ', '_')}"

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """Rewards, one for each completion. Raises InvalidArgument for a group without context."""
        found = self.score(prompts, completions, **columns)
        if (log_metric := columns.get("log_metric")) is not None:
            log_metric(f"{self.__name__}/unscored", sum(each is None for each in found) / max(1, len(found)))
        return [None if each is None else each.reward for each in found]

    def score(
        self, prompts: Sequence[Text], completions: Sequence[Text], of_group: str | None = None, **columns: Any
    ) -> list[Scored | None]:
        """The same with the predicted spreads. None where there is nothing to score: see `unscored`.

        of_group: whose, whatever the examples say.
        """
        rollouts = read_rollouts(prompts, completions, columns, self._columns)
        groups = self._groups(len(rollouts), columns) if of_group is None else [of_group] * len(rollouts)
        keys = {(group, r.question) for group, r in zip(groups, rollouts, strict=True) if r.question is not None}
        answers = self.predict(sorted(keys, key=lambda key: (key[0], key[1].id)))
        return [self._judge(rollout, group, answers) for group, rollout in zip(groups, rollouts, strict=True)]

    @property
    def config(self) -> PluralConfig:
        """Of the model."""
        found: PluralConfig = self._model.config
        return found

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self._predictors)

    @property
    def only_group(self) -> str:
        """The fixed one. Raises InvalidArgument if examples say which."""
        if self._group is None:
            raise InvalidArgument(field="group", problem=f"is not given; one of: {', '.join(self._predictors)}")
        return self._group

    def predict(self, keys: Sequence[Key]) -> dict[Key, PredictedAnswer]:
        """How groups would answer questions; the questions' own shares are not looked at."""
        found: dict[Key, PredictedAnswer] = {}
        for group, predictor in self._predictors.items():
            mine = [question for name, question in keys if name == group]
            found |= {(group, q): answer for q, answer in zip(mine, predictor.predict(mine), strict=True)}
        return found

    def _judge(self, rollout: Rollout, group: str, answers: Mapping[Key, PredictedAnswer]) -> Scored | None:
        scored = None
        if rollout.question is not None:
            answer = answers[group, rollout.question]
            alone = len(rollout.question.options) == 1
            scored = judge(rollout, self._judging, answer.means if alone else answer.shares, answer.spreads)
        if scored is None:
            self.unscored[rollout.problem or NO_OPTION] += 1
        return scored

    def _groups(self, count: int, columns: Mapping[str, Any]) -> list[str]:
        if self._group is not None:
            return [self._group] * count
        named = columns.get(self._group_column)
        if named is None:
            problem = f"the data set has no column {self._group_column!r}; give group=, or the column's name"
            raise InvalidArgument(field="group_column", problem=problem)
        for name in named:
            if name not in self._predictors:
                raise InvalidArgument(field=self._group_column, problem=_unknown(name, self._predictors))
        return list(named)


def _questions(given: Sequence[Question] | str | Path) -> Sequence[Question]:
    return read_group(Path(given)) if isinstance(given, str | Path) else given


def _unknown(name: object, known: Mapping[str, Any]) -> str:
    return f"there is no context of group {name!r}; there is of: {', '.join(sorted(known))}"
