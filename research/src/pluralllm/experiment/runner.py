"""Runs an experiment: first the baselines, which need no training, then every method with every seed.

An interrupted experiment continues with the methods and seeds that have no result yet.
"""

import asyncio
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pluralllm.client.work.train import pick_device
from pluralllm.client.work.worker_process import WorkerProcess
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.files import make_folder
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
from pluralllm.experiment.groups import Groups, check_sizes, data_digest, embedding_digest, read_groups
from pluralllm.experiment.orders import PLAY, Play
from pluralllm.experiment.play import Player, Setting
from pluralllm.experiment.records import Provenance, file_of, final_record, is_done, options_record, write_records
from pluralllm.experiment.scoring import episode_of
from pluralllm.experiment.spec import Experiment, Method

WORKER_COMMAND = (sys.executable, "-m", "pluralllm.experiment.worker")
Work = tuple[Method, int]  # a method and a seed
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


def run_experiment(plan: Plan, tell: Tell) -> None:
    """Writes a result for each method and seed into the folder `plan.out`; keeps results that are already there.

    tell: is called with the present stage, the amount of work done and the whole amount.
    Raises InvalidSpec if the folder holds results of another experiment. Also raises InvalidArgument, InvalidData,
    TooFewQuestions, ModelUnavailable, StorageFull or WorkerDied.
    """
    experiment = plan.experiment
    device = pick_device(plan.device)
    names = [method.name for method in experiment.methods]
    if unknown := [name for name in plan.only if name not in names]:
        raise InvalidArgument(field="--only", problem=f"is {unknown[0]!r}, the methods are: {', '.join(names)}")
    chosen = [method for method in experiment.methods if not plan.only or method.name in plan.only]
    questions = read_groups(experiment)
    check_sizes(experiment, questions)
    provenance = Provenance(experiment, data_digest(questions))
    # Seeds in the outer loop: an interrupted experiment then compares all methods on few seeds, not few methods on all seeds.
    work = [(method, seed) for seed in experiment.seeds for method in chosen]
    todo = [
        (method, seed)
        for method, seed in work
        if not all(is_done(file_of(plan.out, line, seed), provenance) for line in method.lines)
    ]
    make_folder(plan.out, 0o755)
    player = Player(Setting(experiment, questions, provenance, plan.model_path, plan.cache, device))
    for method in chosen:  # fills the cache once, so that the workers do not all compute the same vectors
        groups = player.groups(
            experiment.run_spec(method, experiment.seeds[0]), lambda done, of: tell("embedding", done, of)
        )
        _guess(plan, provenance, groups)
    asyncio.run(_play_all(plan, todo, len(work), tell))


async def _play_all(plan: Plan, todo: list[Work], total: int, tell: Tell) -> None:
    """Starts worker processes; each process takes the next pair of method and seed until no pair is left.

    The number of processes is `plan.jobs`. A process trains and scores the method with the seed. todo: the pairs that have no
    result. total: number of all pairs, for the progress.
    The first error of a worker stops all workers and is raised.
    """
    waiting = iter(todo)
    shares_done: dict[
        tuple[str, int], float
    ] = {}  # for each method and seed that was begun: share of its training done

    def progress(piece: Work, stage: str, done: int, of: int) -> None:
        method, seed = piece
        shares_done[method.name, seed] = done / of if stage == "training" and of else 0.0
        finished = total - len(todo) + sum(shares_done.values())
        tell(f"{method.name}, seed {seed}: {stage}", int(1000 * finished), 1000 * total)

    async def work() -> None:
        worker = WorkerProcess(WORKER_COMMAND)
        try:
            for piece in waiting:
                method, seed = piece
                order = Play(
                    experiment_json=plan.experiment.model_dump_json(),
                    method=method.name,
                    seed=seed,
                    out=plan.out,
                    model_path=plan.model_path,
                    cache=plan.cache,
                    device=plan.device,
                )
                await worker.ask(PLAY, order, functools.partial(progress, piece))
                progress(piece, "training", 1, 1)
        finally:
            await worker.stop()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(plan.jobs, len(todo))):
                group.create_task(work())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _guess(plan: Plan, provenance: Provenance, groups: Groups) -> None:
    """Writes the results of the baselines, which need no training.

    A baseline has one result only, because a seed would change nothing.
    """
    experiment = plan.experiment
    of_all = experiment.methods[0].model_copy(update={"groups": None})  # a baseline knows every training group
    spec, scored = experiment.run_spec(of_all, experiment.seeds[0]), experiment.scored_groups(of_all)
    scoring, partition = experiment.scoring, experiment.data
    mean = TrainingMean(spec, groups)
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
