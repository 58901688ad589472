"""Local work as plain functions: one TRAIN task, one EVALUATE task. No sockets, no processes, no clock.

The same base weights, data, seed and machine give the same delta, bit for bit.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pluralllm.common.data import (
    Batch,
    Episode,
    GroupData,
    check_enough,
    draw_episode,
    log_softmax_by_question,
    make_batch,
)
from pluralllm.common.errors import NotFinite, TooFewQuestions
from pluralllm.common.metrics import Alignment
from pluralllm.common.model import Predictor, new_predictor
from pluralllm.common.spec import GroupRole, RunSpec, Training
from pluralllm.common.weights import Manifest, flat_values, read_layout, tensors_of, write_weights

MIN_LOG_STD, MAX_LOG_STD = -7.0, 4.0  # keeps the likelihood finite; 0.001 .. 55 on a scale of shares

Progress = Callable[[int, int], None]  # steps done, steps in all; may raise to cancel


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA if there, else MPS, else CPU. Raises ValueError for a device this machine does not have."""
    if name != "auto":
        device = torch.device(name)
        torch.empty(1, device=device)  # fails here and not in the middle of a round
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@dataclass(frozen=True, slots=True)
class Trained:
    """What one TRAIN task gave."""

    manifest: Manifest  # of the delta's file
    examples: int  # training questions of the group
    steps: int
    mean_loss: float


def train(
    base: Path,
    out: Path,
    spec: RunSpec,
    data: GroupData,
    seed: int,
    first_step: int,
    device: torch.device,
    optimizer_state: Path,
    on_step: Progress,
) -> Trained:
    """Trains the weights in `base` and writes delta = local - global to `out` (not yet durable).

    `first_step`: local steps of this client before this round, for the schedule. `optimizer_state`: where moments are kept
    between rounds if the spec keeps them. Raises TooFewQuestions, NotFinite, or what `on_step` raises.
    """
    usable, _ = data.split(spec.evaluation.holdout_share)
    check_enough(data, len(usable), spec.training.episodes)
    model = _load(base, spec, device)
    model.train()
    torch.manual_seed(seed % 2**63)  # dropout
    rng = np.random.default_rng(seed)
    optimizer = _new_optimizer(model, spec.training)
    if spec.training.keep_optimizer_state:
        _restore(optimizer, optimizer_state, device)
    total_loss = 0.0
    for step in range(spec.training.local_steps):
        on_step(step, spec.training.local_steps)
        for group in optimizer.param_groups:
            group["lr"] = _rate(spec.training, first_step + step)
        episodes = [draw_episode(usable, spec.training.episodes, rng) for _ in range(spec.training.batch_episodes)]
        batch = make_batch([(data, episode) for episode in episodes]).to(device)
        loss = loss_of(model, batch, spec.training.loss)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if spec.training.gradient_clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), spec.training.gradient_clip_norm)
        optimizer.step()
        total_loss += float(loss.detach())
    if spec.training.keep_optimizer_state:
        _save(optimizer, next_state(optimizer_state))
    on_step(spec.training.local_steps, spec.training.local_steps)
    layout = read_layout(base)
    local = np.concatenate(list(model.flat(layout)))
    delta = (local.astype(np.float64) - flat_values(base, layout).astype(np.float64)).astype(np.float32)
    if not np.isfinite(delta).all():
        first = int(np.argmin(np.isfinite(delta)))
        raise NotFinite(tensor=layout.tensor_at(first), count=int((~np.isfinite(delta)).sum()))
    manifest = write_weights(out, layout, [delta])
    return Trained(manifest, len(usable), spec.training.local_steps, total_loss / spec.training.local_steps)


def loss_of(model: Predictor, batch: Batch, kind: str) -> Tensor:
    """Mean loss over the real target points (gaussian) or target questions (cross_entropy); a scalar.

    gaussian: -log N(y; softmaxed mean, exp(log-std)), arXiv 2310.11523. cross_entropy: between the true shares and the
    softmaxed means of each question, plus the same Gaussian on detached means, so that the predicted spread is trained too.
    """
    mean, log_std = model(batch.context, batch.context_shares, batch.context_is_real, batch.targets)  # (B, T) each
    log_shares = log_softmax_by_question(mean, batch.target_question, batch.questions)
    real = batch.target_is_real
    if kind == "gaussian":
        return gaussian_loss(log_shares.exp(), log_std, batch.target_shares)[real].mean()
    spread = gaussian_loss(log_shares.exp().detach(), log_std, batch.target_shares)[real].mean()
    questions = _count_questions(batch)
    return -(batch.target_shares * log_shares)[real].sum() / questions + spread


def gaussian_loss(mean: Tensor, log_std: Tensor, y: Tensor) -> Tensor:
    """Negative log-likelihood of y under N(mean, exp(log_std)), elementwise."""
    log_std = log_std.clamp(MIN_LOG_STD, MAX_LOG_STD)
    return 0.5 * ((y - mean) * torch.exp(-log_std)) ** 2 + log_std + 0.5 * math.log(2 * math.pi)


def _count_questions(batch: Batch) -> int:
    last = torch.where(batch.target_is_real, batch.target_question, -1).amax(dim=1)
    return int((last + 1).sum())


@torch.no_grad()
def evaluate(
    weights: Path, spec: RunSpec, data: GroupData, role: GroupRole, device: torch.device, on_step: Progress
) -> Alignment:
    """How well these weights predict the group, over the spec's seeded contexts.

    A training group: context from its training questions, targets are the questions nobody trains on. A held-out group:
    context from all its questions, targets are the rest. The draws depend on spec, group and draw number only, so that
    versions can be compared. Raises TooFewQuestions.
    """
    model = _load(weights, spec, device)
    model.eval()
    total = Alignment()
    for number in range(spec.evaluation.draws):
        on_step(number, spec.evaluation.draws)
        episode = evaluation_episode(spec, data, role, number)
        batch = make_batch([(data, episode)]).to(device)
        mean, _ = model(batch.context, batch.context_shares, batch.context_is_real, batch.targets)
        log_shares = log_softmax_by_question(mean, batch.target_question, batch.questions)
        total = total.merge(_score(data, episode, log_shares[0].exp().double().cpu().numpy()))
    on_step(spec.evaluation.draws, spec.evaluation.draws)
    return total


def evaluation_episode(spec: RunSpec, data: GroupData, role: GroupRole, draw: int) -> Episode:
    """Context and targets of one evaluation draw. Raises TooFewQuestions."""
    size = spec.evaluation.context_questions
    trained, unseen = data.split(spec.evaluation.holdout_share)
    pool = trained if role is GroupRole.TRAIN and unseen else tuple(range(len(data.questions)))
    if len(pool) < size + (0 if pool is trained else 1):
        use = f"evaluation ({size} context questions, and others to predict)"
        raise TooFewQuestions(group=data.group, usable=len(pool), needed=size + 1, use=use)
    key = hashlib.sha256(f"evaluation/{spec.seed}/{data.group}/{draw}".encode()).digest()
    drawn = np.random.default_rng(int.from_bytes(key[:16])).permutation(np.asarray(pool)).tolist()
    context = tuple(drawn[:size])
    return Episode(context, unseen if pool is trained else tuple(sorted(drawn[size:])))


def _score(data: GroupData, episode: Episode, predicted: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Alignment:
    total, start = Alignment(), 0
    for number in episode.targets:
        question = data.questions[number]
        end = start + len(question.options)
        total = total.add(predicted[start:end], question.shares, question.scale)
        start = end
    return total


def _load(weights: Path, spec: RunSpec, device: torch.device) -> Predictor:
    model = new_predictor(spec.predictor, spec.embedding)
    model.load(tensors_of(weights))
    return model.to(device)


def _new_optimizer(model: Predictor, training: Training) -> torch.optim.Optimizer:
    if training.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=training.learning_rate)
    return torch.optim.Adam(model.parameters(), lr=training.learning_rate)


def _rate(training: Training, step: int) -> float:
    """The learning rate at a local step, counted over the whole run."""
    if training.schedule == "constant":
        return training.learning_rate
    return training.learning_rate * (1 + math.cos(math.pi * step / training.cosine_steps)) / 2


def next_state(path: Path) -> Path:
    """Where new moments wait until the round's update has its receipt: a round that is trained again starts from the old."""
    return path.with_suffix(".next")


def _save(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Moments as safetensors: Adam's step, exp_avg and exp_avg_sq of each parameter by number."""
    state = optimizer.state_dict()["state"]
    tensors = {
        f"{number}.{name}": value.detach().cpu() for number, kept in state.items() for name, value in kept.items()
    }
    draft = path.with_suffix(".tmp")
    save_file(tensors, draft)
    draft.replace(path)


def _restore(optimizer: torch.optim.Optimizer, path: Path, device: torch.device) -> None:
    if not path.is_file():
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(path, device=str(device)).items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
