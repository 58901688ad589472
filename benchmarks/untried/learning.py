"""FedAvg in its plainest form, for any predictor, and two changes of it: the server's step of Reptile and first-order MAML.

The episodes of a client are those of the service and of experiments: the same seeds, sizes and learning rates.
Shape: V parameter values of the predictor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pluralllm.client.work.losses import prediction_loss
from pluralllm.client.work.train import draw_episodes, learning_rate, repeatable
from pluralllm.common.predictor.data import Episode, GroupData, make_batch
from pluralllm.common.predictor.interface import PreferencePredictor
from pluralllm.common.words.ids import ClientId, RoundNumber
from pluralllm.common.words.spec import RunSpec, Training
from pluralllm.experiment.stacked import Flat
from pluralllm.server.aggregation.arithmetic import weighted_mean
from pluralllm.server.rounds.cohort import task_seed

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Steps:
    """Plain gradient steps on a context, in which half of its questions predict the other half; drawn anew for each step."""

    count: int
    rate: float
    only: str = ""  # moves the parameters whose names begin so


@dataclass(frozen=True, slots=True)
class Recipe:
    """Changes of the training: Reptile's step of the server, and MAML's steps before each gradient."""

    reptile: bool = False  # equal weights, and a step of the server that falls linearly to 0
    inner: Steps | None = None  # before each gradient: first-order MAML


def flat(model: nn.Module) -> Flat:
    """Returns the values of all parameters that are trained, (V,), in the order of their names."""
    return np.concatenate([value.detach().numpy().ravel() for _, value in sorted(model.named_parameters())])


@torch.no_grad()
def load(model: nn.Module, values: Flat) -> None:
    """Copies values into the parameters. values: (V,), in the order of the parameters' names."""
    parameters = [value for _, value in sorted(model.named_parameters())]
    sizes = np.cumsum([value.numel() for value in parameters])[:-1]
    for parameter, piece in zip(parameters, np.split(values, sizes), strict=True):
        parameter.copy_(torch.from_numpy(piece.reshape(parameter.shape)))


def federate(
    spec: RunSpec,
    model: PreferencePredictor,
    groups: Mapping[str, GroupData],
    recipe: Recipe,
    on_round: Callable[[int, Flat], None],
) -> None:
    """Trains the model in place, over all rounds of the spec. groups: the training groups' data by name.

    on_round: is called with the number of each round that has ended, and the values of its model version.
    """
    clients = {ClientId(f"client-{number}"): groups[name] for number, name in enumerate(sorted(groups))}
    usable = {client: data.split(spec.held_out)[0] for client, data in clients.items()}
    weights = np.array([1.0 if recipe.reptile else float(len(usable[client])) for client in clients])
    values = flat(model)
    for number in range(1, spec.rounds + 1):
        deltas = []
        for client, data in clients.items():
            load(model, values)
            learn(spec, model, data, usable[client], RoundNumber(number), client, recipe)
            deltas.append(flat(model) - values)
        rate = 1 - (number - 1) / spec.rounds if recipe.reptile else 1.0
        values = (values + rate * weighted_mean(np.stack(deltas), weights)).astype(np.float32)
        on_round(number, values)
    load(model, values)


def learn(
    spec: RunSpec,
    model: PreferencePredictor,
    data: GroupData,
    usable: tuple[int, ...],
    number: RoundNumber,
    client: ClientId,
    recipe: Recipe,
) -> None:
    """Trains the model in place as one client does in one round. usable: indices of the questions to train on."""
    training, seed = spec.training, task_seed(spec.seed, number, client)
    rng, splits = np.random.default_rng(seed), np.random.default_rng([seed, 2])
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate, fused=True)
    first_step = (number - 1) * training.local_steps
    model.train()
    with repeatable(seed, CPU):
        for step in range(first_step, first_step + training.local_steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(spec, step)
            (drawn, episode), *_ = draw_episodes(spec, data, usable, step, rng)
            before = flat(model) if recipe.inner is not None else None
            if recipe.inner is not None:
                adapt(model, drawn, episode.context, training, recipe.inner, splits)
            model.zero_grad()
            loss_of(model, drawn, episode, training).backward()  # type: ignore[no-untyped-call]
            if before is not None:  # the gradient at the adapted point moves the point before
                load(model, before)
            optimizer.step()


def adapt(
    model: PreferencePredictor,
    data: GroupData,
    context: tuple[int, ...],
    training: Training,
    steps: Steps,
    rng: np.random.Generator,
) -> None:
    """Changes the model in place by gradient steps on the context's answers. context: indices of questions."""
    moving = [value for name, value in model.named_parameters() if name.startswith(steps.only)]
    for _ in range(steps.count):
        drawn = rng.permutation(np.asarray(context)).tolist()
        episode = Episode(tuple(drawn[: len(drawn) // 2]), tuple(drawn[len(drawn) // 2 :]))
        gradients = torch.autograd.grad(loss_of(model, data, episode, training), moving, allow_unused=True)
        with torch.no_grad():
            for value, gradient in zip(moving, gradients, strict=True):
                if gradient is not None:
                    value.sub_(gradient, alpha=steps.rate)


def loss_of(model: PreferencePredictor, data: GroupData, episode: Episode, training: Training) -> torch.Tensor:
    """Returns the loss of one episode, a tensor without dimensions."""
    batch = make_batch([(data, episode)])
    predicted = model(batch.context, batch.context_shares, batch.targets)
    return prediction_loss(predicted, batch, training, clients=1)[0]
