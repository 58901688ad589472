"""The setting of all attacks: real groups with their embeddings, a spec, and what the coordinator sees of a training.

Every attacker knows the run spec, every model version, the update of each client, and the texts of all questions, in the order
of the private file (the questions of a public survey are public). It does not know the answers. Shapes: Q questions of a
group, P points (one for each option of each question), V parameter values of the predictor.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.client.data.importers import import_globalopinionqa
from pluralllm.client.work.train import train
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.predictor.data import Episode, GroupData, log_softmax_by_question, make_batch
from pluralllm.common.predictor.fourier_kernel import PRIOR_SCALE, FourierKernelPredictor, KernelContext
from pluralllm.common.predictor.interface import PreferencePredictor
from pluralllm.common.predictor.metrics import js_distances
from pluralllm.common.predictor.model import load_weights, new_predictor
from pluralllm.common.weights.layout import flat_values, read_layout, tensors_of, write_weights
from pluralllm.common.words.ids import ClientId, RoundNumber
from pluralllm.common.words.spec import RunSpec, merge, preset_values
from pluralllm.experiment.federated import LocalTraining, first_values
from pluralllm.experiment.groups import embed_groups
from pluralllm.experiment.spec import load_experiment
from pluralllm.server.aggregation.arithmetic import weighted_mean

PAPER = load_experiment(Path(__file__).parents[1] / "experiments" / "paper.toml")
GROUPS = PAPER.data.train  # the training groups of arXiv 2503.09925
CONTEXT = 40  # questions in a context that an attacker makes up
CONTEXTS = 3  # such contexts, whose predictions are averaged
CPU = torch.device("cpu")

Flat = NDArray[np.float32]  # (V,), in layout order
Shares = NDArray[np.float64]  # (P,)


@dataclass(frozen=True, slots=True)
class Round:
    """One round of the federation: the model that it started from, and each client's update."""

    number: int
    base: Flat
    deltas: dict[str, Flat]


def spec_of(groups: Sequence[str], preset: str = "default", **changes: object) -> RunSpec:
    """Returns a preset's spec for these groups; `changes` are merged over it."""
    values = {
        "groups": {"train": list(groups)},
        "round": {"min_clients": len(groups), "target_clients": len(groups)},
        "embedding": {"model": "sentence-transformers/all-MiniLM-L6-v2", "dimension": 768},
    }
    return RunSpec.model_validate(merge(merge(preset_values(preset), values), changes))


def read_groups(file: Path, names: Sequence[str], spec: RunSpec, model: Path, cache: Path) -> dict[str, GroupData]:
    """Reads and embeds the groups' questions. file: GlobalOpinionQA in its original layout. cache: folder of vectors."""
    questions = {name: import_globalopinionqa(file, name) for name in names}
    return embed_groups(spec, questions, model, cache, CPU, lambda _done, _all: None)


def federation(spec: RunSpec, groups: dict[str, GroupData], rounds: int) -> Iterator[Round]:
    """Trains the federation, and yields its rounds and one last round number with the final model and no updates."""
    values = first_values(spec)
    clients = {ClientId(name): data for name, data in groups.items()}
    training = LocalTraining(spec, clients, values, CPU)
    weights = [float(len(data.split(spec.held_out)[0])) for data in groups.values()]
    for number in range(1, rounds + 1):
        deltas, _ = training.train_round(values, RoundNumber(number))
        yield Round(number, values, {str(client): delta for client, delta in deltas.items()})
        stacked = np.stack([deltas[ClientId(name)] for name in groups])
        values = (values + weighted_mean(stacked, np.array(weights))).astype(np.float32)
    yield Round(rounds + 1, values, {})


def update_of(spec: RunSpec, base: Flat, data: GroupData, seed: int, round_number: int) -> Flat:
    """Returns the update that the service's own training makes. seed: of the task, after the client has mixed in its secret."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        layout = layout_for(spec)
        write_weights(folder / "base", layout, [base])
        first_step = (round_number - 1) * spec.training.local_steps
        files = (folder / "moments", folder / "residual")
        train(folder / "base", folder / "out", spec, data, seed, first_step, CPU, *files, lambda _done, _all: None)
        return np.array(flat_values(folder / "out", read_layout(folder / "out")))


def model_of(spec: RunSpec, values: Flat) -> PreferencePredictor:
    """Returns the predictor with these parameter values, in evaluation mode."""
    with tempfile.TemporaryDirectory() as name:
        write_weights(Path(name) / "model", layout_for(spec), [values])
        model = new_predictor(spec.predictor, spec.embedding)
        load_weights(model, tensors_of(Path(name) / "model"))
    return model.eval()


def uniform(data: GroupData) -> Shares:
    """Returns the guess of somebody who knows nothing: equal shares for the options of each question."""
    sizes = np.diff(data.offsets)
    return np.repeat(1 / sizes, sizes)


def shares_of(data: GroupData) -> Shares:
    """Returns the group's true shares."""
    return data.shares.astype(np.float64)


def of_question(data: GroupData) -> NDArray[np.int64]:
    """Returns the number of each point's question, shape (P,)."""
    return np.repeat(np.arange(len(data.questions)), np.diff(data.offsets))


@torch.no_grad()
def predicted(spec: RunSpec, values: Flat, data: GroupData, seed: int = 0) -> Shares:
    """Returns a model's predictions for all questions of a group, by somebody who knows none of the group's answers.

    A kernel predictor predicts without any context, from its prior alone, because it follows whatever context it gets. For an
    attention predictor the context consists of guesses: at first uniform shares, and then twice the model's own predictions.
    """
    model, rng = model_of(spec, values), np.random.default_rng(seed)
    guess, everything = uniform(data), tuple(range(len(data.questions)))
    if isinstance(model, FourierKernelPredictor):
        batch = make_batch([(data, Episode((0,), everything))])
        prior = PRIOR_SCALE * math.sqrt(len(model.head.prior)) * model.head.prior  # (d,)
        means = model.predict_embedded(KernelContext(prior[None]), model.embed(batch.targets)).mean
        return log_softmax_by_question(means, batch.targets.question, batch.questions)[0].exp().double().numpy()
    for _ in range(3):
        total = np.zeros_like(guess)
        for _ in range(CONTEXTS):
            context = tuple(rng.permutation(len(everything))[:CONTEXT].tolist())
            batch = make_batch([(data, Episode(context, everything))])
            shares = torch.from_numpy(guess[data.points(context)].astype(np.float32))[None]
            means = model(batch.context, shares, batch.targets).mean
            total += log_softmax_by_question(means, batch.targets.question, batch.questions)[0].exp().numpy()
        guess = total / CONTEXTS
    return guess


def distance(data: GroupData, guess: Shares, questions: Sequence[int] | None = None) -> float:
    """Returns the mean Jensen-Shannon distance (natural logarithm) of the guessed shares to the true ones; 0 is exact.

    questions: indices of the questions that count; default: all.
    """
    distances = js_distances(guess, shares_of(data), data.offsets[:-1])
    return float(distances.mean() if questions is None else distances[list(questions)].mean())


def trained_questions(spec: RunSpec, data: GroupData) -> tuple[int, ...]:
    """Returns the indices of the questions that the group trains on."""
    return data.split(spec.held_out)[0]


def auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Returns the probability that a member's score is above another's score (ties count half): 0.5 is a coin."""
    above = (members[:, None] > others[None]).mean() + (members[:, None] == others[None]).mean() / 2
    return float(above)
