"""Plays one method with one seed: trains the method, scores it during and after training, and returns the result records.

A result record is one line of a result file.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pluralllm.common.predictor.embedding import Progress
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.alone import centralize, train_alone
from pluralllm.experiment.baselines import TrainingMean
from pluralllm.experiment.federated import Point, federate, first_values
from pluralllm.experiment.groups import Groups, embed_groups, embedding_digest
from pluralllm.experiment.passes import PassWorkers
from pluralllm.experiment.records import (
    Provenance,
    Record,
    distribution_record,
    final_record,
    gain_record,
    options_record,
)
from pluralllm.experiment.scoring import (
    Scorer,
    alignment,
    chosen_questions,
    episode_of,
    gain_of,
    next_groups,
    own_episode,
)
from pluralllm.experiment.spec import Experiment, Method
from pluralllm.experiment.stacked import Flat
from pluralllm.experiment.virtual import groups_of_clients

Models = dict[str, Flat]  # by group: the values of the predictor that is scored for it


@dataclass(frozen=True, slots=True)
class Setting:
    """Inputs that all methods of an experiment share: questions, embedding model, cache and device."""

    experiment: Experiment
    questions: dict[str, tuple[Question, ...]]
    provenance: Provenance
    model_path: Path | None
    cache: Path
    device: torch.device
    passes: PassWorkers | None = None  # of a unit with virtual clients; None: this process trains


class Player:
    """Plays methods: trains and scores each method on the embedded questions of all groups.

    The embedded questions stay in memory as long as the next method uses the same embedding.
    """

    def __init__(self, setting: Setting, embedded: dict[Embedding, Groups] | None = None) -> None:
        """Makes a player. embedded: the groups as they are embedded already, if they are."""
        self._setting = setting
        self._embedded = embedded or {}

    def groups(self, spec: RunSpec, tell: Progress) -> Groups:
        """Returns each group's questions, embedded as the run spec demands.

        tell: is called before each group with the number of embedded groups and the number of all groups.
        Raises ModelUnavailable if there is no embedding model.
        """
        if spec.embedding not in self._embedded:
            setting = self._setting
            embedded = embed_groups(spec, setting.questions, setting.model_path, setting.cache, setting.device, tell)
            self._embedded = {spec.embedding: embedded}
        return self._embedded[spec.embedding]

    def play(self, method: Method, seed: int, on_embedded: Progress, on_step: Progress) -> dict[str, list[Record]]:
        """Trains and scores a method with one seed; returns the result records by the name of their line in the results table.

        The method has one line, and a second line if its model is then adapted to each training group.
        on_embedded: reports embedded groups. on_step: reports gradient steps. An exception in one of these callbacks ends the
        method's training.
        Raises ModelUnavailable if there is no embedding model; NotFinite if training gives infinite values or NaN.
        """
        setting = self._setting
        spec = setting.experiment.run_spec(method, seed)
        groups = self.groups(spec, on_embedded)
        facts = (method.kind, seed, spec, embedding_digest(groups), setting.device)
        models: Models = {}
        clock = _Clock(setting.device, setting.passes)
        total = method.steps or spec.rounds * (spec.training.local_steps if spec.sums is None else 1)
        point_records: list[Record] = []
        for point, models in _points(method, spec, setting, groups):
            on_step(point.gradient_steps, total)
            if _is_due(point, spec, setting.experiment.scoring.every, total):
                clock.stop()
                point_records.append(_point_record(point, clock.seconds, self._curve(spec, groups, models)))
                clock.go_on()
        records = [
            setting.provenance.header(method.name, *facts),
            *point_records,
            *self._finals(method, spec, groups, models),
        ]
        if seed == setting.experiment.seeds[0]:
            records += self._distributions(spec, groups, models)
        if method.adapt_steps is None:
            return {method.name: records}
        clock.go_on()
        adapted, own = _adapted(point, method, spec, setting, groups)
        clock.stop()
        point_records = [*point_records, _point_record(adapted, clock.seconds, self._curve(spec, groups, own))]
        line = method.lines[1]
        own_records = [
            setting.provenance.header(line, *facts),
            *point_records,
            *self._finals(method, spec, groups, own),
        ]
        return {method.name: records, line: own_records}

    def _curve(self, spec: RunSpec, groups: Groups, models: Models) -> dict[str, float]:
        scoring, data = self._setting.experiment.scoring, self._setting.experiment.data
        curve = {}
        for name, values in models.items():
            group_part, size = data.part_of(name), scoring.main_context
            episodes = [own_episode(spec, groups[name], group_part, size, draw) for draw in range(scoring.curve_draws)]
            scorer = Scorer(spec, values, groups[name], self._setting.device)
            curve[name] = round(alignment(map(scorer.score, episodes)), 6)
        return curve

    def _finals(self, method: Method, spec: RunSpec, groups: Groups, models: Models) -> Iterator[Record]:
        scoring, data = self._setting.experiment.scoring, self._setting.experiment.data
        mean = TrainingMean(spec, groups, self._setting.experiment.training_groups(method))
        yield options_record(groups[name] for name in models)
        for name, values in models.items():
            group_part, scorer = data.part_of(name), Scorer(spec, values, groups[name], self._setting.device)
            for context in self._setting.experiment.contexts_of(name):
                episodes = (episode_of(spec, groups[name], group_part, context, draw) for draw in range(scoring.draws))
                yield final_record(groups[name], group_part, context, list(map(scorer.score, episodes)), mean.kind_of)
            yield from self._gain(spec, groups, name, scorer)

    def _gain(self, spec: RunSpec, groups: Groups, name: str, scorer: Scorer) -> Iterator[Record]:
        """Yields a group's scores with its own context and with those of the next groups of its part, if there are any."""
        scoring, data = self._setting.experiment.scoring, self._setting.experiment.data
        group_part, size = data.part_of(name), scoring.main_context
        names = [group for group in groups if data.part_of(group) == group_part]
        if others := [groups[other] for other in next_groups(name, names)]:
            episodes = [own_episode(spec, groups[name], group_part, size, draw) for draw in range(scoring.draws)]
            own, another = gain_of(
                scorer, episodes, others, lambda other, draw: episode_of(spec, other, group_part, size, draw).context
            )
            yield gain_record(groups[name], group_part, size, own, another)

    def _distributions(self, spec: RunSpec, groups: Groups, models: Models) -> Iterator[Record]:
        """Yields records of predicted and true shares, for the questions that were answered by the most test groups."""
        scoring, data = self._setting.experiment.scoring, self._setting.experiment.data
        test_groups = {name: groups[name] for name in data.test if name in models}
        chosen = chosen_questions(test_groups, scoring.shown_questions)
        for name, group in test_groups.items():
            episode = episode_of(spec, group, "test", scoring.main_context, 0)
            predicted = Scorer(spec, models[name], group, self._setting.device).shares(episode)
            for number, shares in predicted.items():
                if group.questions[number].id in chosen:
                    yield distribution_record(group, "test", scoring.main_context, number, shares)


class _Clock:
    """Stopwatch that counts training time; it is stopped while models are scored.

    On a CPU the stopwatch counts CPU time of this process and of the workers that train its passes, so that other processes do
    not change the result. On an accelerator it counts wall-clock time.
    """

    def __init__(self, device: torch.device, passes: PassWorkers | None = None) -> None:
        self._own_s = time.process_time if device.type == "cpu" else time.monotonic
        self._passes = passes
        self.seconds = 0.0
        self._since_s = self._now_s()

    def _now_s(self) -> float:
        return self._own_s() + (0.0 if self._passes is None else self._passes.elsewhere_s)

    def stop(self) -> None:
        self.seconds += self._now_s() - self._since_s

    def go_on(self) -> None:
        self._since_s = self._now_s()


def _points(method: Method, spec: RunSpec, setting: Setting, groups: Groups) -> Iterator[tuple[Point, Models]]:
    """Trains the method and yields points of the training, each with the cost so far and, for each group, the model's values.

    The values of a group are the parameters of the predictor that is scored for the group.
    """
    scored = setting.experiment.scored_groups(method)
    every = setting.experiment.scoring.every * spec.training.local_steps
    steps = method.steps or spec.rounds * spec.training.local_steps
    match method.kind:
        case "fedavg":
            virtual, training = setting.experiment.data.virtual, setting.experiment.training_groups(method)
            clients = None if virtual is None else groups_of_clients(virtual, training, spec.seed)
            for point in federate(spec, groups, setting.device, clients, setting.passes):
                yield point, dict.fromkeys(scored, point.values)
        case "centralized":
            for point in centralize(spec, steps, every, groups, setting.device):
                yield point, dict.fromkeys(scored, point.values)
        case "local":
            yield from train_alone(spec, first_values(spec), steps, every, groups, setting.device)


def _adapted(last: Point, method: Method, spec: RunSpec, setting: Setting, groups: Groups) -> tuple[Point, Models]:
    """Trains a copy of the last federated model for each training group, for a few steps on the group's own questions.

    Returns the cost so far and each training group's adapted values. Other groups keep the last model and are not returned.
    """
    assert method.adapt_steps is not None
    slow = {"learning_rate": method.adapt_learning_rate, "schedule": "constant"}
    adapting = spec.model_copy(update={"training": spec.training.model_copy(update=slow)})
    steps = method.adapt_steps
    *_, (after, models) = train_alone(adapting, last.values, steps, steps, groups, setting.device)
    taken, seen = last.gradient_steps + after.gradient_steps, last.episodes + after.episodes
    return replace(last, gradient_steps=taken, episodes=seen), models


def _is_due(point: Point, spec: RunSpec, every: int, total: int) -> bool:
    if point.rounds:
        return point.rounds % every == 0 or point.rounds == spec.rounds
    return point.gradient_steps % (every * spec.training.local_steps) == 0 or point.gradient_steps == total


def _point_record(point: Point, seconds: float, curve: dict[str, float]) -> Record:
    return {
        "kind": "point",
        "rounds": point.rounds,
        "gradient_steps": point.gradient_steps,
        "episodes": point.episodes,
        "moved_bytes": point.moved_bytes,
        "seconds": round(seconds, 3),
        "alignment": curve,
    }
