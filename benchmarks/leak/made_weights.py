"""A model version that a dishonest coordinator makes: with it, a preset's own task is a linear system in the answers.

All settings are those of the preset, so no consent is asked. The weights are so small that the gradients of one layer stay far
below the epsilon of Adam. Adam's step is then proportional to the gradient and no longer to its sign, and this layer's update is
a weighted sum of the steps' gradients. It gives more equations than there are points. The context has no influence on the
predictions. The attack needs a small learning rate, as in the last round of a run.
In the preset attention, the layers behind dropout are 0, and the first layer is read. In the default preset, the kernel is 0, and
all angles are so small that a feature's slope is a random linear function of the question. The rows of option_weight are then
sums of products of question and option. Dropout of features only adds noise to them.
The seed is unknown: the attacker does not know which step had which question as a target, nor how an episode's answers were
sharpened. It takes what is nearest to the prediction of an honest model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leak.crafted import values_of
from leak.setting import Flat, Shares, of_question, trained_questions
from pluralllm.client.work.losses import SMOOTHING
from pluralllm.client.work.train import learning_rate
from pluralllm.common.predictor.data import GroupData, draw_episode, step_sizes
from pluralllm.common.predictor.fourier_kernel import PRIOR_SCALE
from pluralllm.common.words.predictors import FourierKernel
from pluralllm.common.words.spec import RunSpec

BEFORE, BEHIND = 4e-4, 7e-6  # sizes of the weights before and behind the layers that have dropout
PRIOR, ANGLE = 3e-4, 1e-7  # sizes of the prior's weights and of the question's weights in a kernel predictor
NO_KERNEL = -30.0  # logarithm of the kernel's scale
NORM_EPSILON = 1e-5  # of torch's layer norm
TEMPERATURE = 1.15  # of the preset's targets
BETA1, EPSILON = 0.9, 1e-8  # of Adam
LEAST = 1e-7  # eigenvalues below this part of the largest one are rounding
LEAST_NOISY = 0.01  # the same where dropout adds noise
ITERATIONS = 400  # to find the answer behind a gradient


@dataclass(frozen=True, slots=True)
class Candidate:
    """Guessed shares, (P,), and how far the gradient of each question is from the one that these shares give, (Q,)."""

    shares: Shares
    misfit: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Equations:
    """The rows of a layer's update: each is -1 / epsilon times the sum over points of gradient, slope and input."""

    inputs: NDArray[np.float64]  # (P, I): of the layer
    slopes: NDArray[np.float64]  # (P, rows): of the predicted mean by each row's output
    moved: NDArray[np.float64]  # (rows, I): the update
    least: float  # eigenvalues below this part of the largest one are left out


def tiny_weights(spec: RunSpec, values: Flat) -> Flat:
    """Returns the weights of the attack, made from a model's first weights."""
    if isinstance(spec.predictor, FourierKernel):
        return _tiny_kernel(spec, values)
    changed = values.copy()
    constants: dict[str, float] = {
        **{f"layers.0.attention_{kind}": 0 for kind in ("in.weight", "in.bias", "out.weight", "out.bias")},
        **{f"layers.0.feedforward_{kind}": 0 for kind in ("in.weight", "out.weight", "out.bias")},
        "layers.0.feedforward_in.bias": -1,
        "layers.0.attention_norm.weight": BEFORE,
        "layers.0.feedforward_norm.weight": BEHIND,
        **{f"embedder.{number}.bias": 0 for number in (0, 1)},
        "head.0.bias": 1,  # all units stay on, however far Adam moves this value
        "head.1.weight": 0,
    }
    for name, value in constants.items():
        values_of(spec, changed, name)[:] = value
    for name, size in (("embedder.0", BEFORE), ("embedder.1", BEFORE), ("head.0", BEHIND)):
        tensor = values_of(spec, changed, f"{name}.weight")
        tensor *= size / tensor.std()
    out = values_of(spec, changed, "head.1.weight")
    out[0] = np.where(np.arange(out.shape[1]) % 2, 0.1, -0.1)
    values_of(spec, changed, "head.1.bias")[:] = (0.0, 100.0)  # a spread beyond its bound has no gradient
    return changed


def step_weights(spec: RunSpec, data: GroupData, first_step: int) -> NDArray[np.float64]:
    """Returns the weight of each step's gradient in the update, divided by the step's number of targets. Shape (steps,)."""
    steps, usable = spec.training.local_steps, trained_questions(spec, data)
    rates = [learning_rate(spec, first_step + step) for step in range(steps)]
    weights = []
    for step in range(steps):
        reached = (rates[later] * BETA1 ** (later - step) / (1 - BETA1 ** (later + 1)) for later in range(step, steps))
        sizes = step_sizes(spec.seed, first_step + step)
        targets = len(draw_episode(usable, spec.training.episodes, sizes, np.random.default_rng(0)).targets)
        weights.append((1 - BETA1) * sum(reached) / targets)
    return np.array(weights)


def gradients_of(spec: RunSpec, base: Flat, delta: Flat, data: GroupData) -> NDArray[np.float64]:
    """Returns the sum over the steps of weight times gradient, for the predicted mean of each point. Shape (P,)."""
    of_kernel = isinstance(spec.predictor, FourierKernel)
    equations = (_equations_of_kernel if of_kernel else _equations_of_attention)(spec, base, delta, data)
    values, vectors = np.linalg.eigh((equations.inputs @ equations.inputs.T) * (equations.slopes @ equations.slopes.T))
    kept = values > equations.least * values[-1]
    total = -EPSILON * ((equations.inputs @ equations.moved.T) * equations.slopes).sum(1)  # (P,)
    exact: NDArray[np.float64] = vectors[:, kept] @ ((vectors[:, kept].T @ total) / values[kept])
    return exact


def _equations_of_attention(spec: RunSpec, base: Flat, delta: Flat, data: GroupData) -> Equations:
    """Returns the equations of the first layer, whose units are on for a part of the points."""
    points = data.embeddings.astype(np.float64) * np.sqrt(
        spec.embedding.dimension / len(spec.embedding.templates)
    )  # (P, D)
    first, second, head, out = (
        values_of(spec, base, f"{name}.weight").astype(np.float64)
        for name in ("embedder.0", "embedder.1", "head.0", "head.1")
    )
    slope = head.T @ out[0]  # (d,)
    for gain in (BEHIND, BEFORE):  # the norms: of tiny values, a norm only subtracts the mean and multiplies
        slope = (slope - slope.mean()) * gain / np.sqrt(NORM_EPSILON)
    slope = second.T @ slope
    active = (points @ first[:, :-1].T > 0) * slope  # (P, d)
    moved = values_of(spec, delta, "embedder.0.weight").astype(np.float64)[:, :-1]  # (d, D)
    return Equations(points, active, moved, LEAST)


def _tiny_kernel(spec: RunSpec, values: Flat) -> Flat:
    """Returns the weights of the attack on a kernel predictor: all features are nearly constant, and their slopes tiny."""
    changed = values.copy()
    for name in ("option_weight", "position_weight", "phase"):
        values_of(spec, changed, f"embedder.{name}")[:] = 0
    question = values_of(spec, changed, "embedder.question_weight")
    question[:] = np.random.default_rng(0).normal(0, ANGLE, question.shape)
    prior = values_of(spec, changed, "head.prior")
    prior[:] = np.where(np.arange(len(prior)) % 2, PRIOR, -PRIOR)
    values_of(spec, changed, "head.group_projection")[:] = 0
    values_of(spec, changed, "head.log_scale")[:] = NO_KERNEL
    return changed


def _equations_of_kernel(spec: RunSpec, base: Flat, delta: Flat, data: GroupData) -> Equations:
    """Returns the equations of option_weight: the slope of a feature is a linear function of the question."""
    width = spec.embedding.dimension // 2
    question, option = np.split(data.embeddings.astype(np.float64) * np.sqrt(width), 2, axis=1)  # (P, D/2) each
    angles = question @ values_of(spec, base, "embedder.question_weight").astype(np.float64).T  # (P, d)
    # of logit = 0.1 sqrt(d) w.h with h = sqrt(2/d) cos(angle)
    slopes = -PRIOR_SCALE * np.sqrt(2) * values_of(spec, base, "head.prior") * angles
    return Equations(option, slopes, values_of(spec, delta, "embedder.option_weight").astype(np.float64), LEAST_NOISY)


def candidates(spec: RunSpec, base: Flat, delta: Flat, data: GroupData, first_step: int) -> list[Candidate]:
    """Returns what the update hands over for each local step, as if each question were a target of this step alone."""
    combined = gradients_of(spec, base, delta, data)
    return [Candidate(*shares_behind(data, combined / weight)) for weight in step_weights(spec, data, first_step)]


def most_likely(data: GroupData, made: Sequence[Candidate], likely: Shares) -> Shares:
    """Returns for each question the candidate that is nearest to a likely answer. likely: an honest model's predictions, (P,)."""
    question, starts = of_question(data), data.offsets[:-1]
    best, nearest = likely.copy(), np.full(len(data.questions), np.inf)
    for candidate in made:
        far = np.add.reduceat(np.abs(candidate.shares - likely), starts) + 10 * candidate.misfit
        better = far < nearest
        nearest[better] = far[better]
        best[better[question]] = candidate.shares[better[question]]
    return best


def shares_behind(data: GroupData, gradient: NDArray[np.float64]) -> tuple[Shares, NDArray[np.float64]]:
    """Returns the answers for which the loss of a uniform prediction has this gradient, and how far each question's is from it.

    gradient: of one question's loss by the predicted means, (P,). The second result has shape (Q,).
    """
    question = torch.from_numpy(of_question(data))
    sizes = np.diff(data.offsets)
    uniform = torch.from_numpy(1 / sizes[of_question(data)])
    observed = torch.from_numpy(gradient)
    logits = torch.zeros(len(gradient), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)

    def by_question(values: Tensor) -> Tensor:
        return torch.zeros(len(sizes), dtype=values.dtype).index_add(0, question, values)

    def shares() -> Tensor:
        raised = (logits.clamp(-12, 12)).exp()
        return raised / by_question(raised)[question]

    def misfit() -> Tensor:
        y = shares()
        middle = (uniform + y) / 2
        ratio = (uniform / middle).log()
        divergence = by_question(y * (y / middle).log() + uniform * ratio) / 2
        slope = uniform * (ratio - by_question(uniform * ratio)[question]) / 2
        of_distance = slope / (2 * (divergence + SMOOTHING).sqrt())[question]
        return by_question((uniform - y + of_distance - observed) ** 2)

    for _ in range(ITERATIONS):
        optimizer.zero_grad()
        misfit().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        raised = shares() ** TEMPERATURE
        return (raised / by_question(raised)[question]).numpy(), misfit().sqrt().numpy()
