"""Trains a predictor on several groups' answers in this process: a federation for a notebook.

The round machine, the training and the averaging are those of the service; only files, network and separate processes are
left out. Whoever calls this holds all answers, so it protects nobody: it is for public data and for trials.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from pluralllm.align.group_reward import DEFAULT_CACHE
from pluralllm.align.model_folder import model_config
from pluralllm.align.plural_predictor import PluralConfig, PluralPredictor
from pluralllm.api.bars import Tell, progress_bar
from pluralllm.api.frames import frame_of
from pluralllm.api.predictor import PreferencePredictor
from pluralllm.api.surveys import Answers, Spec, answers_of, path_of, values_of
from pluralllm.client.work.train import pick_device
from pluralllm.common.errors.tree import InvalidArgument, InvalidSpec, TooFewQuestions
from pluralllm.common.predictor.data import Episode, GroupData, check_enough
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.words.context_gain import mean_gain
from pluralllm.common.words.problems import explain
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import RunSpec, merge, spec_from_values
from pluralllm.experiment.federated import Point, federate
from pluralllm.experiment.groups import embed_groups
from pluralllm.experiment.scoring import Scorer, alignment, gain_of, next_groups, own_episode, predictor_of

if TYPE_CHECKING:
    from pandas import DataFrame

SIMULATION = "simulation"
Episodes = Mapping[str, Sequence[Episode]]  # by group


@dataclass(frozen=True, slots=True)
class Moment:
    """The model after some rounds: what it has cost, and its alignment score for each group."""

    round: int
    moved_bytes: int  # weights down and updates up, of all clients together
    alignment: Mapping[str, float]  # by group


@dataclass(frozen=True, slots=True)
class Simulation:
    """The result of a federation in one process."""

    spec: RunSpec
    predictor: PreferencePredictor
    curve: tuple[Moment, ...]  # from model version 0 to the last one
    context_gains: Mapping[str, float]  # by group; empty if there is only one group of its kind

    @property
    def alignment(self) -> Mapping[str, float]:
        """The last model's alignment score for each group, on questions that it has not trained on."""
        return self.curve[-1].alignment

    @property
    def context_gain(self) -> float | None:
        """The mean context gain over the groups; None if it could not be measured. Near 0, all groups get one prediction."""
        return mean_gain(self.context_gains.values())

    def frame(self) -> "DataFrame":
        """Returns the curve as a data frame with a row for each moment and group. Raises ExtraMissing without pandas."""
        held_out = self.spec.groups.held_out_names
        return frame_of(
            {
                "round": moment.round,
                "moved_bytes": moment.moved_bytes,
                "group": group,
                "role": "held_out" if group in held_out else "train",
                "alignment_score": score,
            }
            for moment in self.curve
            for group, score in moment.alignment.items()
        )


def simulate(
    groups: Mapping[str, Answers],
    spec: Spec,
    *,
    held_out: Sequence[str] = (),
    embedding_model_path: str | Path | None = None,
    cache: str | Path = DEFAULT_CACHE,
    device: str = "auto",
    every: int = 1,
    progress: bool | None = None,
) -> Simulation:
    """Trains a predictor on the groups' answers, and scores it on questions and groups that it has not trained on.

    groups: each group's answers. spec: a run spec, its values or its file. If it names no groups, all given groups train but
    those in `held_out`, and a round has as many clients as groups train.
    embedding_model_path, cache, device: as for PreferencePredictor.from_pretrained.
    every: rounds between two scores. progress: whether to show a bar; None shows it in a terminal and in a notebook.
    Raises InvalidSpec, InvalidArgument, InvalidData, TooFewQuestions or ModelUnavailable, before any training.
    """
    if every < 1:
        raise InvalidArgument(field="every", problem=f"is {every}, must be at least 1")
    answers = {name: answers_of(given) for name, given in groups.items()}
    checked = spec_for(answers, spec, held_out)
    names = (*sorted(checked.groups.train), *sorted(checked.groups.held_out))
    check_questions(checked, {name: answers[name] for name in names})
    chosen = pick_device(device)
    model_path = None if embedding_model_path is None else path_of("embedding_model_path", embedding_model_path)
    folder = path_of("cache", cache)
    with progress_bar(progress) as tell:
        data = embed_groups(
            checked,
            {name: answers[name] for name in names},
            model_path,
            folder,
            chosen,
            lambda done, total: tell("embedding", done, total),
        )
        episodes = _episodes(checked, data)
        curve, last = _train(checked, data, episodes, chosen, every, tell)
    gains = _gains(checked, last, data, episodes, chosen)
    gain = mean_gain(gains.values())
    config = PluralConfig(**model_config(checked, SIMULATION, last.rounds, "", gain))
    model = PluralPredictor(config).eval()
    model.predictor.load_state_dict(predictor_of(checked, last.values).state_dict())
    embedder = Embedder(checked.embedding, model_path, folder, chosen)
    return Simulation(checked, PreferencePredictor(model, embedder, device), tuple(curve), gains)


def _episodes(spec: RunSpec, data: Mapping[str, GroupData]) -> Episodes:
    """Returns the episodes that each group is scored on in every round, one for each draw of the context."""
    draws, size = range(spec.evaluation.draws), _context(spec)
    return {
        name: [own_episode(spec, group, _part(spec, name), size, draw) for draw in draws]
        for name, group in data.items()
    }


def _train(
    spec: RunSpec, data: Mapping[str, GroupData], episodes: Episodes, device: torch.device, every: int, tell: Tell
) -> tuple[list[Moment], Point]:
    """Returns the scores of some rounds, always of the first and the last, and the last model."""
    curve: list[Moment] = []
    for point in federate(spec, dict(data), device):
        tell("training", point.rounds, spec.rounds)
        if point.rounds % every == 0 or point.rounds == spec.rounds:
            scores = {
                name: alignment(map(Scorer(spec, point.values, group, device).score, episodes[name]))
                for name, group in data.items()
            }
            curve.append(Moment(point.rounds, point.moved_bytes, scores))
    return curve, point


def _gains(
    spec: RunSpec, last: Point, data: Mapping[str, GroupData], episodes: Episodes, device: torch.device
) -> dict[str, float]:
    """Returns each group's gain over the contexts of the next groups of its kind, in alphabetical order."""
    gains = {}
    for name, group in data.items():
        kind = [other for other in data if _part(spec, other) == _part(spec, name)]
        if others := [data[other] for other in next_groups(name, kind)]:
            own, another = gain_of(
                Scorer(spec, last.values, group, device),
                episodes[name],
                others,
                lambda other, draw: episodes[other.group][draw].context,
            )
            gains[name] = own - another
    return gains


def spec_for(answers: Mapping[str, Sequence[Question]], spec: Spec, held_out: Sequence[str]) -> RunSpec:
    """Returns the checked spec. Raises InvalidSpec, or InvalidArgument if the spec and the groups do not fit."""
    train = sorted(set(answers) - set(held_out))
    sizes = {"min_clients": len(train), "target_clients": len(train)}
    usual: dict[str, Any] = {"groups": {"train": train, "held_out": sorted(held_out)}}
    if isinstance(spec, RunSpec):
        checked = spec
        if not spec.groups.named and train:
            checked = _with(spec, {**usual, "round": sizes})
    else:
        values, file = values_of(spec)
        if not values.get("groups"):
            values = merge({**usual, "round": sizes}, values)
        checked = spec_from_values(values, file)
    if not checked.groups.train:
        raise InvalidArgument(field="spec", problem="names no groups; name those that train in groups.train")
    for name in (*checked.groups.train, *checked.groups.held_out, *held_out):
        if name not in answers:
            raise InvalidArgument(
                field="groups", problem=f"has no answers of {name!r}; there are: {', '.join(answers)}"
            )
    clients, cohort = len(checked.groups.train), checked.round.target_clients
    if cohort < clients and checked.training.keep_optimizer_state:
        problem = "training.keep_optimizer_state needs every client in every round here: set round.target_clients to "
        raise InvalidArgument(field="spec", problem=f"{problem}{clients}, or keep_optimizer_state to false")
    return checked


def _with(spec: RunSpec, changes: dict[str, Any]) -> RunSpec:
    """Returns a spec with other values. Raises InvalidSpec if they do not fit the rest of it."""
    try:
        return RunSpec.model_validate(merge(spec.model_dump(), changes))
    except ValidationError as error:
        raise InvalidSpec(file="(RunSpec)", problems=explain(error)) from error


def check_questions(spec: RunSpec, answers: Mapping[str, Sequence[Question]]) -> None:
    """Checks, before any work, that each group has enough questions. Raises TooFewQuestions with both numbers."""
    size = _context(spec)
    for name, questions in answers.items():
        withheld = sum(map(spec.held_out.includes, questions))
        free = len(questions) - withheld
        if _part(spec, name) == "train":
            check_enough(name, free, spec.training.episodes)
            _need(name, withheld, 1, "scoring on questions that nobody trains on (evaluation.holdout_share)")
            _need(name, free, size, f"a context of {size} questions")
        else:
            _need(name, free, size + 1, f"a context of {size} questions and at least 1 to predict")


def _need(group: str, usable: int, needed: int, use: str) -> None:
    if usable < needed:
        raise TooFewQuestions(group=group, usable=usable, needed=needed, use=use)


def _context(spec: RunSpec) -> int:
    return spec.evaluation.context_questions


def _part(spec: RunSpec, group: str) -> str:
    return "test" if group in spec.groups.held_out_names else "train"
