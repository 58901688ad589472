"""Training and evaluation as plain functions, without sockets, processes or a clock.

On one machine, the same files, data, seed and number of threads give the same delta, bit for bit. On CUDA, two conditions must
hold: torch has deterministic kernels for the model, and CUBLAS_WORKSPACE_CONFIG is :4096:8 in the environment.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pluralllm.client.keeping.drafts import next_state
from pluralllm.client.work.losses import base_distances, prediction_loss
from pluralllm.common.errors.tree import InvalidArgument, NotFinite, TooFewQuestions
from pluralllm.common.predictor.data import (
    Batch,
    Episode,
    GroupData,
    check_enough,
    draw_episode,
    log_softmax_by_question,
    make_batch,
    sharpen,
    step_sizes,
)
from pluralllm.common.predictor.interface import Prediction, PreferencePredictor
from pluralllm.common.predictor.metrics import Alignment
from pluralllm.common.predictor.model import flat_weights, load_weights, new_predictor
from pluralllm.common.process.files import publish, storage_errors
from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.weights.layout import Layout, flat_values, read_layout, tensors_of, write_weights
from pluralllm.common.weights.update_format import update_format, write_update
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import GroupRole, RunSpec, Training

log = structlog.get_logger()

Delta = NDArray[np.float32]  # (values,)
Progress = Callable[[int, int], None]  # steps done, steps in all; may raise to cancel


def pick_device(name: str) -> torch.device:
    """Returns a torch device. The name `auto` means CUDA if there is a CUDA device, else MPS, else CPU.

    Raises InvalidArgument if the device cannot be used on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)  # a device that does not work fails here, and not in the middle of a round
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch has no single error for it
        problem = f"{name!r} cannot be used here ({str(error).splitlines()[0]}); auto takes what there is"
        raise InvalidArgument(field="device", problem=problem) from error
    return device


@dataclass(frozen=True, slots=True)
class Trained:
    """The numbers that one training results in, and the manifest of the delta's file."""

    manifest: Manifest  # size and hashes of the delta's file
    examples: int  # training questions of the group: the update's weight, the same in every round
    steps: int
    mean_loss: float
    base_distance: float  # `base_distances` of the weights in `base`, on the first step's targets
    target_questions: int  # different target questions of all steps
    first_target_questions: int  # different target questions of the first step


def train(
    base: Path,
    out: Path,
    spec: RunSpec,
    data: GroupData,
    seed: int,
    first_step: int,
    device: torch.device,
    optimizer_state: Path,
    residual: Path,
    on_step: Progress,
) -> Trained:
    """Trains the weights in the file `base`, and writes the delta to the file `out` (not yet durable).

    The delta is the trained weights minus the weights in `base`.

    first_step: number of local steps of the run before this round; learning rate and episode sizes depend on this number.
    optimizer_state: file of this client's optimizer moments in this run. If the run spec keeps the moments, the file is read
    if it exists, and the new moments are written to `next_state(optimizer_state)`.
    residual: file of the part of earlier updates that rounding took away. If the run spec's encoding rounds updates, the new
    residual is written to `next_state(residual)`.
    on_step: callback (steps done, steps in all); it may raise an error to cancel the training.
    Raises TooFewQuestions, NotFinite, WrongLayout, StorageFull, or the error that `on_step` raises. Then `out` is not written.
    """
    training = spec.training
    usable, _ = data.split(spec.held_out)
    check_enough(data.group, len(usable), training.episodes)
    model = _load(base, spec, device).train()
    optimizer = _new_optimizer(model, training)
    rng = np.random.default_rng(seed)
    anchors = [value.detach().clone() for value in model.parameters()]
    total_loss = 0.0
    first: tuple[Prediction, Batch] | None = None
    targets: list[frozenset[int]] = []  # of each step
    with repeatable(seed, device):
        if training.keep_optimizer_state:
            _restore_moments(model, optimizer, optimizer_state)
        for step in range(training.local_steps):
            on_step(step, training.local_steps)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(spec, first_step + step)
            episodes = draw_episodes(spec, data, usable, first_step + step, rng)
            targets.append(targets_of(episodes))
            batch = make_batch(episodes).to(device)
            predicted = model(batch.context, batch.context_shares, batch.targets)
            first = first or (Prediction(predicted.mean.detach(), predicted.log_std.detach()), batch)
            loss = prediction_loss(predicted, batch, training, clients=1)[0]
            _descend(model, optimizer, loss, anchors, training)
            total_loss += float(loss.detach())
    on_step(training.local_steps, training.local_steps)
    layout = read_layout(base)
    delta = flat_weights(model) - flat_values(base, layout)
    _check_finite(delta, layout)
    assert first is not None  # there is at least one local step
    if training.keep_optimizer_state:
        _save_moments(model, optimizer, next_state(optimizer_state))
    manifest = _write(out, spec, layout, delta, seed, residual)
    (base_distance,) = base_distances(*first, clients=1)
    mean_loss, different = total_loss / training.local_steps, frozenset().union(*targets)
    return Trained(
        manifest, len(usable), training.local_steps, mean_loss, base_distance, len(different), len(targets[0])
    )


def _descend(
    model: PreferencePredictor,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    anchors: Iterable[Tensor],
    training: Training,
) -> None:
    """Changes the model's parameters by one step of the optimizer. anchors: the parameters of the round's base model."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    pull_to_base(model.parameters(), anchors, training.proximal_mu)
    if training.gradient_clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip_norm)
    optimizer.step()


def _write(out: Path, spec: RunSpec, layout: Layout, delta: Delta, seed: int, residual: Path) -> Manifest:
    """Writes the delta to `out` in the run spec's encoding, and returns the manifest of the file.

    An encoding may round the delta. The part that rounding takes away is stored beside `residual` and added to the next delta.
    """
    form = update_format(layout, spec.updates.encoding)
    with storage_errors("an update"):
        if form.encoding == "fp32":
            return write_weights(out, layout, [delta])
        exact = delta + _kept(residual, delta.size)
        manifest, rounded = write_update(out, form, exact, rounding(seed))
        (exact - rounded).astype("<f4").tofile(next_state(residual))
        return manifest


def _kept(residual: Path, values: int) -> Delta:
    """Returns the residual of earlier rounds (the part of earlier updates that rounding took away), shape (values,).

    values: number of the model's parameters. Returns zeros if there is no file, or if the file is damaged.
    """
    kept = np.fromfile(residual, dtype="<f4") if residual.is_file() else np.zeros(values, np.float32)
    if kept.size == values and np.isfinite(kept).all():
        return kept
    log.warning("residual.damaged", file=str(residual), effect="what earlier updates lost by rounding is left out")
    return np.zeros(values, np.float32)


def rounding(seed: int) -> np.random.Generator:
    """Returns the random generator for rounding an update. Its numbers are independent of those that draw the episodes."""
    return np.random.default_rng([seed, 1])


def draw_episodes(
    spec: RunSpec, data: GroupData, usable: Sequence[int], step: int, rng: np.random.Generator
) -> list[tuple[GroupData, Episode]]:
    """Draws the episodes of one local step, each with the group's data that it trains on.

    usable: indices of the questions to draw from. step: number of the local step, counted from 0 over the whole run. If the run
    spec sets sharpness_spread, an episode's data have shares that are randomly sharpened or flattened.
    """
    sizes, spread, episodes = step_sizes(spec.seed, step), spec.training.sharpness_spread, []
    for _ in range(spec.training.batch_episodes):
        episode = draw_episode(usable, spec.training.episodes, sizes, rng)
        episodes.append((sharpen(data, math.exp(rng.normal(0, spread))) if spread else data, episode))
    return episodes


def targets_of(episodes: Iterable[tuple[GroupData, Episode]]) -> frozenset[int]:
    """Returns the indices of the target questions of all episodes."""
    return frozenset(number for _, episode in episodes for number in episode.targets)


@torch.no_grad()
def pull_to_base(parameters: Iterable[Tensor], anchors: Iterable[Tensor], proximal_mu: float) -> None:
    """Adds the gradient of (mu / 2) * |local - global|^2 to each parameter's gradient.

    local: the value of the parameter. global: its value in the base model of the round, which `anchors` holds.

    Source: FedProx, Li et al. 2020 (arXiv 1812.06127), equation 2.
    """
    if proximal_mu:
        for parameter, anchor in zip(parameters, anchors, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - anchor, alpha=proximal_mu)


def learning_rate(spec: RunSpec, step: int) -> float:
    """Returns the learning rate at a local step. step: number of the local step, counted from 0 over the whole run."""
    training = spec.training
    if training.schedule == "constant":
        return training.learning_rate
    half_wave = training.cosine_steps or spec.rounds * training.local_steps
    return training.learning_rate * (1 + math.cos(math.pi * step / half_wave)) / 2


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of a model version for one group: with the group's own context, and with uniform answers in its place."""

    alignment: Alignment
    uniform: Alignment  # the same context questions and target questions, and every context answer uniform

    @property
    def context_gain(self) -> float:
        """The difference of the two alignment scores. Near 0, the predictions do not depend on the group."""
        return self.alignment.score - self.uniform.score


@torch.no_grad()
def evaluate(
    weights: Path,
    spec: RunSpec,
    data: GroupData,
    role: GroupRole,
    device: torch.device,
    on_step: Progress,
    context_seed: int | None = None,
) -> Evaluation:
    """Predicts the group's answers with a model version, and compares the predictions with the real answers.

    The run spec sets the number of draws. Each draw has its own seeded context questions. Every predicted question counts
    alike.
    on_step: callback (draws done, draws in all). context_seed: seed of the contexts; None for the run's seed.
    Raises TooFewQuestions, WrongLayout, or the error that `on_step` raises.
    """
    model = _load(weights, spec, device).eval()
    totals = [Alignment(), Alignment()]  # with the own context, with uniform answers
    for draw in range(spec.evaluation.draws):
        on_step(draw, spec.evaluation.draws)
        episode = evaluation_episode(spec, data, role, draw, context_seed)
        batch = make_batch([(data, episode)]).to(device)
        targets = model.embed(batch.targets)
        uniform = torch.from_numpy(uniform_shares(data, episode.context)).to(device)[None]
        for place, answers in enumerate((batch.context_shares, uniform)):
            predicted = model.predict_embedded(model.encode_context(batch.context, answers), targets)
            log_shares = log_softmax_by_question(predicted.mean, batch.targets.question, batch.questions)  # (1, T)
            shares = log_shares[0].exp().cpu().numpy()
            ends = np.cumsum([len(data.questions[q].options) for q in episode.targets])[:-1]
            for number, guess in zip(episode.targets, np.split(shares, ends), strict=True):
                question = data.questions[number]
                totals[place] = totals[place].add(guess, question.shares, question.scale)
    on_step(spec.evaluation.draws, spec.evaluation.draws)
    return Evaluation(*totals)


def uniform_shares(data: GroupData, questions: Sequence[int]) -> NDArray[np.float32]:
    """Returns equal shares for the options of each question, one question after another.

    questions: indices of the questions. Shape of the result: (n,), where n is the number of all options of these questions.
    """
    sizes = np.diff(data.offsets)[list(questions)]
    return np.repeat(1 / sizes, sizes).astype(np.float32)


def evaluation_episode(
    spec: RunSpec, data: GroupData, role: GroupRole, draw: int, context_seed: int | None = None
) -> Episode:
    """Returns the context questions and target questions of one evaluation. draw: number of the evaluation's draw.

    The episode depends only on the context seed, the group and the draw, so that scores of different versions can be compared.
    context_seed: seed of the contexts; None for the run's seed.
    For a held-out group (one that never trains), the context is drawn from all questions, and all other questions are targets.
    For a training group, the context is drawn from the questions that it trains on. Its targets are the held-out questions,
    which no group trains on. If the run spec holds out no questions (holdout_share = 0), a training group is treated like a
    held-out group; its targets are then questions that it trains on.
    Raises TooFewQuestions if the group has too few questions for an episode.
    """
    size = spec.evaluation.context_questions
    use = f"an evaluation ({size} context questions and at least 1 to predict)"
    trained, held_out = data.split(spec.held_out)
    apart = role is GroupRole.TRAIN and spec.evaluation.holdout_share > 0
    if apart and not held_out:
        raise TooFewQuestions(group=data.group, usable=0, needed=1, use="an evaluation on questions nobody trains on")
    pool = trained if apart else range(len(data.questions))
    needed = size if apart else size + 1
    if len(pool) < needed:
        raise TooFewQuestions(group=data.group, usable=len(pool), needed=needed, use=use)
    seed = spec.seed if context_seed is None else context_seed
    key = hashlib.sha256(f"evaluation/{seed}/{data.group}/{draw}".encode()).digest()
    drawn = np.random.default_rng(int.from_bytes(key[:16])).permutation(np.asarray(pool)).tolist()
    return Episode(tuple(drawn[:size]), held_out if apart else tuple(sorted(drawn[size:])))


def reward_context(spec: RunSpec, data: GroupData, context_seed: int | None = None) -> list[Question]:
    """Returns a selection of the group's answered questions, from which the group's rewards are predicted.

    The run spec sets the number of questions; if the group has fewer, all its questions are returned. The selection depends
    only on the context seed and the group. context_seed: None for the run's seed.
    """
    assert spec.rewards is not None
    seed = spec.seed if context_seed is None else context_seed
    key = hashlib.sha256(f"rewards/{seed}/{data.group}".encode()).digest()
    drawn = np.random.default_rng(int.from_bytes(key[:16])).permutation(len(data.questions)).tolist()
    return [data.questions[number] for number in sorted(drawn[: spec.rewards.context_questions])]


def _load(weights: Path, spec: RunSpec, device: torch.device) -> PreferencePredictor:
    model = new_predictor(spec.predictor, spec.embedding)
    load_weights(model, tensors_of(weights))
    return model.to(device)


def _new_optimizer(model: PreferencePredictor, training: Training) -> torch.optim.Optimizer:
    if training.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=training.learning_rate)
    return torch.optim.Adam(model.parameters(), lr=training.learning_rate)


def _save_moments(model: PreferencePredictor, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Writes the optimizer moments (the optimizer's state) to a safetensors file.

    Each tensor is named by its parameter and by torch's name of the moment. Plain SGD has no moments, so its file has no
    tensors.
    """
    moments = {
        f"{name}/{moment}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for moment, value in optimizer.state[parameter].items()
    }
    with storage_errors("the optimizer's moments"):
        draft = path.with_suffix(".tmp")
        save_file(moments, draft)
        publish(draft, path)


def _restore_moments(model: PreferencePredictor, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Reads the optimizer moments that `_save_moments` wrote. Without a file, or if it is damaged, the moments begin anew."""
    if not path.is_file():
        return
    parameters = dict(model.named_parameters())
    try:
        moments = {tuple(key.rsplit("/", 1)): value for key, value in load_file(path).items()}
        fits = all(
            value.isfinite().all() and value.shape in ((), parameters[name].shape)
            for (name, _), value in moments.items()
        )
    except (SafetensorError, OSError, KeyError, ValueError):
        fits = False
    if not fits:
        log.warning("moments.damaged", file=str(path), effect="the optimizer's moments begin anew")
        return
    for (name, moment), value in moments.items():
        parameter = parameters[name]
        # Adam's count of steps is a scalar, which torch wants on the CPU.
        optimizer.state[parameter][moment] = value.to(parameter.device) if value.shape == parameter.shape else value


@contextlib.contextmanager
def repeatable(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch (for dropout) and selects deterministic kernels until the block ends.

    Torch warns if a device has no deterministic kernel for an operation. CUDA's fast attention has no deterministic
    kernel, so torch's plain attention is used.
    """
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")
    torch.manual_seed(seed)
    try:
        with sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else contextlib.nullcontext():
            yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _check_finite(delta: Delta, layout: Layout) -> None:
    finite = np.isfinite(delta)
    if not finite.all():
        raise NotFinite(tensor=layout.tensor_at(int(np.argmin(finite))), count=int((~finite).sum()))
