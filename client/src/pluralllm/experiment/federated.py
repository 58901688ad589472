"""FedAvg in one process: the service's round machine and aggregator, fed by clients that train in one batched pass."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.common.architecture import initial_values, parameters
from pluralllm.common.data import GroupData
from pluralllm.common.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber, RunId
from pluralllm.common.spec import GroupRole, RunSpec
from pluralllm.experiment.stacked import Flat, train_together
from pluralllm.server import events as ev
from pluralllm.server.aggregate import first_moments, server_optimizer, weighted_mean, weights_of
from pluralllm.server.cohort import task_seed
from pluralllm.server.rounds import step
from pluralllm.server.run_state import Phase, Run

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Point:
    """A model on the way, and what it has cost so far, on every axis."""

    values: Flat  # in layout order
    rounds: int
    gradient_steps: int  # one after the other: of one client, or of the central model
    episodes: int  # over all clients
    moved_bytes: int  # weights down and updates up, over all clients


def first_values(spec: RunSpec) -> Flat:
    """Version 0, in layout order (sorted by name), shape (values,)."""
    found = sorted(parameters(spec.predictor, spec.embedding.dimension), key=lambda p: p.name)
    return np.concatenate([initial_values(p, spec.seed).ravel() for p in found]).astype(np.float32)


def federate(spec: RunSpec, groups: dict[str, GroupData], device: torch.device) -> Iterator[Point]:
    """Version 0, then each round's version. Time stands still in here: every client answers at once."""
    trainers = {ClientId(f"client-{number}"): groups[name] for number, name in enumerate(sorted(spec.groups.train))}
    values = first_values(spec)
    layout_bytes = values.size * FLOAT_BYTES
    moments = np.repeat(np.array(first_moments(spec.aggregation), np.float32)[:, None], values.size, axis=1)
    run = Run(RunId("experiment"), spec.seed, spec.rounds, spec.round, 0, Digest("0"), evaluated=ModelVersion(0))
    run = replace(run, aggregation=spec.aggregation)
    run, _ = step(run, ev.RunStarted(0.0))
    episodes = moved = 0
    yield Point(values, 0, 0, 0, 0)
    while run.phase is not Phase.ENDED:
        run, effects = step(run, ev.ClientsSeen(0.0, tuple(sorted(trainers)), ()))
        cohort = next((effect.cohort for effect in effects if isinstance(effect, ev.OpenRound)), ())
        number = RoundNumber(run.round)
        mine = [trainers[client] for client in cohort]
        seeds = [task_seed(spec.seed, number, client) for client in cohort]
        first_step = (number - 1) * spec.training.local_steps
        trained, _ = train_together(spec, [values] * len(cohort), mine, seeds, first_step, device)
        deltas = dict(zip(cohort, (after - values for after in trained), strict=True))  # delta = local - global
        average: ev.Average | None = None
        for client, data in zip(cohort, mine, strict=True):
            examples = len(data.split(spec.evaluation.holdout_share)[0])
            receipt = ev.Receipt(client, Digest(f"{number}-{client}"), examples)
            run, effects = step(run, ev.UpdateArrived(0.0, number, run.version, receipt))
            average = next((effect for effect in effects if isinstance(effect, ev.Average)), average)
        assert average is not None  # every place delivered
        values, moments = aggregate(spec, values, moments, average, deltas)
        run, effects = step(run, ev.ModelAveraged(0.0, number, Digest(f"version-{number}")))
        run = _pass_evaluation(run, cohort)
        episodes += len(cohort) * spec.training.local_steps * spec.training.batch_episodes
        moved += 2 * len(cohort) * layout_bytes
        yield Point(values, number, number * spec.training.local_steps, episodes, moved)


def aggregate(
    spec: RunSpec, base: Flat, moments: NDArray[np.float32], average: ev.Average, deltas: dict[ClientId, Flat]
) -> tuple[Flat, NDArray[np.float32]]:
    """What the service computes slice by slice, in one slice: the next version, and the server optimizer's moments."""
    stacked: NDArray[np.float32] = np.stack([deltas[receipt.client] for receipt in average.receipts])
    mean = weighted_mean(stacked, weights_of(average.receipts, spec.aggregation, average.weights))
    return server_optimizer(spec.aggregation)(base, mean, moments)


def _pass_evaluation(run: Run, clients: tuple[ClientId, ...]) -> Run:
    """The machine waits for evaluations that this experiment makes in its own way."""
    if run.phase is Phase.EVALUATING:
        run, _ = step(run, ev.ClientsSeen(0.0, clients, ()))
        for client in clients:
            score = ev.Score(client, GroupName(client), GroupRole.TRAIN, run.version, 0.0, 0.0, None, 1)
            run, _ = step(run, ev.EvaluationArrived(0.0, score))
    return run
