"""Runs an experiment: first the baselines, which need no training, then every method with every seed.

An interrupted experiment continues with the methods and seeds that have no result yet.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pluralllm.client.work import embedding_pool
from pluralllm.client.work.embedding_pool import Workers
from pluralllm.client.work.train import pick_device
from pluralllm.common.errors.tree import InvalidArgument, InvalidSpec
from pluralllm.common.process.files import make_folder
from pluralllm.common.words.embedding import Embedding
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
from pluralllm.experiment.engines.processes import Processes
from pluralllm.experiment.engines.units import Engine, RayOptions, Shard, Unit, check_results
from pluralllm.experiment.groups import (
    Fill,
    Groups,
    check_sizes,
    data_digest,
    embedding_digest,
    fill_cache,
    read_groups,
)
from pluralllm.experiment.orders import Play
from pluralllm.experiment.play import Player, Setting
from pluralllm.experiment.records import Provenance, file_of, final_record, is_done, options_record, write_records
from pluralllm.experiment.scoring import episode_of
from pluralllm.experiment.spec import Experiment, Method
from pluralllm.server.aggregation.aggregator import aggregator

Tell = Callable[[str, int, int], None]  # reports progress: what is done, how much of it, of how much


@dataclass(frozen=True, slots=True)
class Plan:
    """Experiment to run, with its output folder, embedding model, cache, device and number of worker processes."""

    experiment: Experiment
    out: Path
    model_path: Path | None
    cache: Path
    device: str
    jobs: int  # processes side by side
    only: tuple[str, ...] = ()  # methods to play now; the others can follow in the same folder
    shard: Shard = Shard(0, 1)  # the units of this call; other calls play the others
    ray: RayOptions | None = None  # None: the units are played by processes of this machine
    embedding: Workers | None = None  # the processes that embed the texts side by side; None: this process embeds


def usual_jobs(device: str) -> int:
    """Returns the number of processes side by side: the number of cores, or 1 on an accelerator. device: for torch."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return cores if device == "cpu" else 1


def run_experiment(plan: Plan, tell: Tell) -> None:
    """Writes a result for each method and seed into the folder `plan.out`; keeps results that are already there.

    tell: is called with the present stage, the amount of work done and the whole amount.
    Raises InvalidSpec if the folder holds results of another experiment. Also raises InvalidArgument, InvalidData,
    TooFewQuestions, ModelUnavailable, PluginMissing, PluginBroken, StorageFull or WorkerDied.
    """
    experiment = plan.experiment
    device = pick_device(plan.device)
    names = [method.name for method in experiment.methods]
    if unknown := [name for name in plan.only if name not in names]:
        raise InvalidArgument(field="--only", problem=f"is {unknown[0]!r}, the methods are: {', '.join(names)}")
    chosen = [method for method in experiment.methods if not plan.only or method.name in plan.only]
    questions = read_groups(experiment)
    check_sizes(experiment, questions)
    for method in chosen:
        _check_aggregator(experiment, method)
    provenance = Provenance(experiment, data_digest(questions))
    # Seeds in the outer loop: an interrupted experiment then compares all methods on few seeds, not few methods on all seeds.
    units = plan.shard.of([Unit(method, seed) for seed in experiment.seeds for method in chosen])
    todo = [
        unit
        for unit in units
        if not all(is_done(file_of(plan.out, line, unit.seed), provenance) for line in unit.method.lines)
    ]
    make_folder(plan.out, 0o755)
    player = Player(Setting(experiment, questions, provenance, plan.model_path, plan.cache, device))
    methods = {unit.method.name: unit.method for unit in units}
    filled: set[Embedding] = set()
    for method in methods.values():  # fills the cache once, so that the workers do not all compute the same vectors
        spec = experiment.run_spec(method, experiment.seeds[0])
        if (fill := _fill(plan)) is not None and spec.embedding not in filled:
            filled.add(spec.embedding)
            fill_cache(
                spec.embedding,
                questions,
                (plan.model_path, plan.cache, device),
                fill,
                lambda done, of: tell("embedding", done, of),
            )
        groups = player.groups(spec, lambda done, of: tell("embedding", done, of))
        if plan.shard.index == 0:
            _guess(plan, provenance, groups)
    engine = _engine(plan, provenance, player)
    asyncio.run(_play_all(plan, engine, todo, len(units), provenance, tell))


def _check_aggregator(experiment: Experiment, method: Method) -> None:
    """Checks before any work that this machine has the package of a method's aggregator, if it is another package's.

    Raises PluginMissing or PluginBroken if it cannot be used; InvalidSpec if it looks at whole updates of virtual clients, which
    are in memory piece by piece.
    """
    rule = aggregator(experiment.run_spec(method, experiment.seeds[0]).aggregation)
    if rule.choose is not None and experiment.data.virtual is not None and method.kind == "fedavg":
        problem = "  data.virtual: leave it out, or name an aggregator that looks at no distances between updates"
        raise InvalidSpec(file=f"of method {method.name}", problems=problem)


async def _play_all(
    plan: Plan, engine: Engine, todo: list[Unit], total: int, provenance: Provenance, tell: Tell
) -> None:
    """Plays the units on the engine, and writes the result files of each unit as soon as its records are there.

    todo: the units that have no result. total: number of all units of this call, for the progress.
    The first error of a worker stops all workers and is raised.
    """
    shares_done: dict[str, float] = {}  # for each unit that was begun: share of its training done

    def progress(unit: Unit, stage: str, done: int, of: int) -> None:
        shares_done[str(unit)] = done / of if stage == "training" and of else 0.0
        finished = total - len(todo) + sum(shares_done.values())
        tell(f"{unit}: {stage}", int(1000 * finished), 1000 * total)

    async with contextlib.aclosing(engine.map(todo, progress)) as played:
        async for unit, results in played:
            check_results(unit, results, provenance)
            for line in unit.method.lines:
                write_records(file_of(plan.out, line, unit.seed), results[line])
            progress(unit, "training", 1, 1)


def _fill(plan: Plan) -> Fill | None:
    """Returns the function that fills the cache with several workers; None if this process embeds."""
    if plan.ray is not None and plan.ray.embeds:
        from pluralllm.experiment.engines.ray_embedding import fill_on_ray  # noqa: PLC0415 - Ray is an extra

        options = plan.ray
        return lambda embedder, pieces, on_text: fill_on_ray(embedder, pieces, options, plan.jobs, on_text)
    if plan.embedding is not None:
        return lambda embedder, pieces, on_text: embedding_pool.fill(embedder, pieces, plan.embedding, on_text)
    return None


def _engine(plan: Plan, provenance: Provenance, player: Player) -> Engine:
    if plan.ray is not None:
        from pluralllm.experiment.engines.ray_cluster import RayCluster  # noqa: PLC0415 - Ray is an extra

        def groups_of(method: Method) -> Groups:
            return player.groups(plan.experiment.run_spec(method, plan.experiment.seeds[0]), lambda *_: None)

        return RayCluster(plan.ray, provenance, plan.jobs, groups_of)
    order = Play(
        experiment_json=plan.experiment.model_dump_json(),
        method="",
        seed=0,
        model_path=plan.model_path,
        cache=plan.cache,
        device=plan.device,
    )
    return Processes(order, plan.jobs)


def _guess(plan: Plan, provenance: Provenance, groups: Groups) -> None:
    """Writes the results of the baselines, which need no training.

    A baseline has one result only, because a seed would change nothing.
    """
    experiment = plan.experiment
    of_all = experiment.methods[0].model_copy(update={"groups": None})  # a baseline knows every training group
    spec, scored = experiment.run_spec(of_all, experiment.seeds[0]), experiment.scored_groups(of_all)
    scoring, partition = experiment.scoring, experiment.data
    mean = TrainingMean(spec, groups, experiment.training_groups(of_all))
    guessers: dict[str, Guesser] = {UNIFORM: uniform, NEAREST: nearest, TRAINING_MEAN: mean}
    for method, guess in guessers.items():
        path = file_of(plan.out, method, 0)
        if is_done(path, provenance):
            continue
        records = [provenance.header(method, "baseline", 0, None, embedding_digest(groups), torch.device("cpu"))]
        records.append(options_record(groups[name] for name in scored))
        for name in scored:
            data = groups[name]
            for context in experiment.contexts_of(name):
                episodes = [
                    episode_of(spec, data, partition.part_of(name), context, draw) for draw in range(scoring.draws)
                ]
                draws = score_guesses(guess, data, episodes)
                records.append(final_record(data, partition.part_of(name), context, draws, mean.kind_of))
        write_records(path, records)
