"""Runs an experiment: every method with every seed, and the guesses that need no training. Resumable by method and seed."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pluralllm.common.data import GroupData
from pluralllm.common.questions import Question
from pluralllm.common.spec import RunSpec
from pluralllm.experiment.alone import centralize, train_alone
from pluralllm.experiment.baselines import (
    NEAREST,
    TRAINING_MEAN,
    UNIFORM,
    Guesser,
    TrainingMean,
    nearest,
    score_guesses,
    uniform,
)
from pluralllm.experiment.federated import Point, federate
from pluralllm.experiment.groups import Groups, check_sizes, data_digest, embed_groups, read_groups
from pluralllm.experiment.records import Provenance, Record, file_of, final_record, is_done, write_records
from pluralllm.experiment.scoring import Scored, alignment, episode_of, score_model
from pluralllm.experiment.spec import Experiment, Method
from pluralllm.experiment.stacked import Flat

Tell = Callable[[str, int, int], None]  # what, done, of


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and with what an experiment runs."""

    experiment: Experiment
    out: Path
    model_path: Path | None
    cache: Path
    device: torch.device
    tell: Tell


def run_experiment(setting: Setting) -> None:
    """Writes a result for each method and seed into `out`; what is there already is left alone.

    Raises InvalidData, TooFewQuestions, ModelUnavailable, InvalidSpec (results of another experiment in `out`), StorageFull.
    """
    experiment = setting.experiment
    questions = read_groups(experiment)
    check_sizes(experiment, questions)
    provenance = Provenance(experiment.sha256(), data_digest(questions))
    setting.out.mkdir(parents=True, exist_ok=True)
    work = [(method, seed) for method in experiment.methods for seed in experiment.seeds]
    todo = [(m, s) for m, s in work if not is_done(file_of(setting.out, m.name, s), provenance)]
    first_spec = experiment.run_spec(experiment.methods[0], experiment.seeds[0])
    _guess(setting, provenance, first_spec, _embedded(setting, first_spec, questions))
    for number, (method, seed) in enumerate(todo):
        setting.tell(f"{method.name}, seed {seed} (run {number + 1} of {len(todo)})", 0, 1)
        spec = experiment.run_spec(method, seed)
        groups = _embedded(setting, spec, questions)
        records = [provenance.header(method.name, seed, spec.model_dump(mode="json"), spec.sha256())]
        records += _played(setting, method, spec, groups)
        write_records(file_of(setting.out, method.name, seed), records)


def _embedded(setting: Setting, spec: RunSpec, questions: dict[str, tuple[Question, ...]]) -> Groups:
    """From the cache but for the first time."""
    return embed_groups(
        spec,
        questions,
        setting.model_path,
        setting.cache,
        setting.device,
        lambda name: setting.tell(f"embedding {name}", 0, 1),
    )


def _played(setting: Setting, method: Method, spec: RunSpec, groups: Groups) -> Iterator[Record]:
    """The curve, then every score of the last model."""
    scoring, parts = setting.experiment.scoring, setting.experiment.data
    started_s, scored_s = time.monotonic(), 0.0
    total = method.steps or spec.rounds * spec.training.local_steps
    every = scoring.every * spec.training.local_steps
    last: dict[str, Flat] = {}
    for point, models in _points(method, spec, every, groups, setting.device):
        last = models
        is_due = point.rounds % scoring.every == 0 or point.rounds == spec.rounds
        setting.tell(method.name, point.gradient_steps, total)
        if not is_due:
            continue
        began_s = time.monotonic()
        seconds = began_s - started_s - scored_s
        curve = {}
        for name, values in models.items():
            draws = _scores(
                spec, values, groups[name], parts.part_of(name), scoring.main_context, scoring.curve_draws, setting
            )
            curve[name] = round(alignment(draws), 6)
        scored_s += time.monotonic() - began_s
        yield {
            "kind": "point",
            "rounds": point.rounds,
            "gradient_steps": point.gradient_steps,
            "episodes": point.episodes,
            "moved_bytes": point.moved_bytes,
            "seconds": round(seconds, 3),
            "alignment": curve,
        }
    yield from _finals(setting, spec, groups, last)


def _points(
    method: Method, spec: RunSpec, every: int, groups: Groups, device: torch.device
) -> Iterator[tuple[Point, dict[str, Flat]]]:
    """Each point with the values that are to be scored for each group."""
    steps = method.steps or spec.rounds * spec.training.local_steps
    match method.kind:
        case "fedavg":
            for point in federate(spec, groups, device):
                yield point, dict.fromkeys(groups, point.values)
        case "centralized":
            is_cosine = method.steps is not None
            for point in centralize(spec, steps, is_cosine, min(every, steps), groups, device):
                yield point, dict.fromkeys(groups, point.values)
        case "local":
            yield from train_alone(spec, steps, every, groups, device)


def _finals(setting: Setting, spec: RunSpec, groups: Groups, models: dict[str, Flat]) -> Iterator[Record]:
    scoring, parts = setting.experiment.scoring, setting.experiment.data
    mean = TrainingMean(spec, groups)
    for name, values in models.items():
        data, part = groups[name], parts.part_of(name)
        for context in scoring.contexts:
            draws = _scores(spec, values, data, part, context, scoring.draws, setting)
            yield final_record(data, part, context, draws, _known(mean, data, draws))


def _scores(
    spec: RunSpec, values: Flat, data: GroupData, part: str, context: int, draws: int, setting: Setting
) -> list[list[Scored]]:
    episodes = [episode_of(spec, data, part, context, draw) for draw in range(draws)]
    return score_model(spec, values, data, episodes, setting.device)


def _guess(setting: Setting, provenance: Provenance, spec: RunSpec, groups: Groups) -> None:
    """The trivial baselines: no seed changes them."""
    scoring, parts = setting.experiment.scoring, setting.experiment.data
    mean = TrainingMean(spec, groups)
    guessers: dict[str, Guesser] = {UNIFORM: uniform, NEAREST: nearest, TRAINING_MEAN: mean}
    for method, guess in guessers.items():
        path = file_of(setting.out, method, 0)
        if is_done(path, provenance):
            continue
        records = [provenance.header(method, 0, None, "")]
        for name, data in groups.items():
            for context in scoring.contexts:
                episodes = [episode_of(spec, data, parts.part_of(name), context, draw) for draw in range(scoring.draws)]
                draws = score_guesses(guess, data, episodes)
                records.append(final_record(data, parts.part_of(name), context, draws, _known(mean, data, draws)))
        write_records(path, records)


def _known(mean: TrainingMean, data: GroupData, draws: list[list[Scored]]) -> list[list[bool]]:
    return [[mean.knows(data, each.question) for each in draw] for draw in draws]
