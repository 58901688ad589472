"""The predictor fourier-kernel/1: Gaussian process regression on the context's answers, with trained Fourier features.

It cannot ignore its context, because regression on the context is built in; training learns which options are alike. A point's
features are h = sqrt(2/d) cos(Wq q + Wo o + wt t + b) for the vectors q of its question and o of its option, and its position t
among the question's options. With random weights, h.h' is close to a Gaussian kernel. The logit of an option is

    prior:        m(x) = 0.1 sqrt(d) w.h(x)
    kernel:       k(x, x') = scale h.h' + 32 (U h).(U h')
    regression:   logit(x) = m(x) + k(x, C) (k(C, C) + noise I)^-1 (log(y + 0.01) - m(C))

for a context C with the shares y, where residuals and kernel of the context are centred over the options of each question: the
softmax over a question's options ignores a number that is added to all its logits, so only differences count. For the same
reason the features of a target need no centring. All of the context goes into one vector v of d numbers, and a logit is h.v.

Shapes: B episodes, C context points, T target points, N points of either kind, D numbers in an embedding (two vectors of D/2),
d features, R = group_rank. Names, shapes and initial values of the parameters are in architecture.py.
Sources: Rahimi and Recht 2007 (random Fourier features); Rasmussen and Williams 2006, equation 2.23 and Algorithm 2.1 (Gaussian
process regression), section 2.7 (with a prior mean).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from pluralllm.common.predictor.architecture import initial_values, parameters
from pluralllm.common.predictor.interface import EncodedContext, Points, Prediction, PreferencePredictor
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.predictors import FourierKernel

PRIOR_SCALE = 0.1  # with sqrt(d) the factor of the prior's weights, which sets how fast they learn
GROUP_SCALE = 32.0  # factor of the group part of the kernel, which sets how fast its projection learns
SHARE_FLOOR = 0.01  # added to shares before the logarithm
LEAST_NOISE = 1e-4  # keeps the solution stable in float32, whatever the learnt noise is
SPREAD = 0.15  # the standard deviation of a predicted share, the same for all points: this model does not predict it


@dataclass(frozen=True, slots=True)
class KernelContext(EncodedContext):
    """The encoded context: the weights of a linear function of the features."""

    weights: Tensor  # (B, d): v


class FourierKernelPredictor(PreferencePredictor):
    """Gaussian process regression on Fourier features that are trained."""

    def __init__(self, config: FourierKernel, embedding: Embedding) -> None:
        """Creates the parameters with the initial values of version 0 of a run with seed 0."""
        super().__init__()
        first = {p.name: torch.from_numpy(initial_values(p, 0)) for p in parameters(config, embedding.dimension)}
        self.embedder = FourierEmbedder(config.dropout, _inside("embedder.", first))
        self.head = KernelHead(**_inside("head.", first))

    def encode_context(self, context: Points, shares: Tensor) -> KernelContext:
        """Solves the regression on the context points. shares: the group's share of each point, (B, C)."""
        h = self.embedder(context)  # (B, C, d)
        return KernelContext(self.head(h, shares, context))

    def embed(self, targets: Points) -> Tensor:
        """Returns the features of the target points, (B, T, d). In training, dropout is applied."""
        features: Tensor = self.embedder(targets)
        return features

    def predict_embedded(self, encoded: EncodedContext, embedded: Tensor) -> Prediction:
        """Predicts target points from their features: embedded (B, T, d) -> mean and log_std (B, T)."""
        assert isinstance(encoded, KernelContext)
        mean = torch.einsum("btd,bd->bt", embedded, encoded.weights)  # (B, T)
        return Prediction(mean, torch.full_like(mean, math.log(SPREAD)))


class FourierEmbedder(nn.Module):
    """Fourier features of points. If there are no position weights, positions are not read."""

    def __init__(self, dropout: float, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.dropout = dropout
        self.question_weight = nn.Parameter(weights["question_weight"])  # (d, D/2)
        self.option_weight = nn.Parameter(weights["option_weight"])  # (d, D/2)
        self.position_weight = (
            nn.Parameter(weights["position_weight"]) if "position_weight" in weights else None
        )  # (d,)
        self.phase = nn.Parameter(weights["phase"])  # (d,)

    def forward(self, points: Points) -> Tensor:
        """Returns the features of the points, (B, N, d)."""
        features, width = self.question_weight.shape
        # Components of a unit vector of D/2 numbers get variance 1, so that the weights learn as fast as in other layers.
        question, option = (points.embeddings * math.sqrt(width)).chunk(2, dim=-1)  # (B, N, D/2) each
        angle = F.linear(question, self.question_weight, self.phase) + F.linear(option, self.option_weight)  # (B, N, d)
        if self.position_weight is not None:
            angle = angle + points.positions.unsqueeze(-1) * self.position_weight
        h = math.sqrt(2 / features) * torch.cos(angle)
        return F.dropout(h, self.dropout, self.training)


class KernelHead(nn.Module):
    """Regression on the context's answers. Its result is one vector for each context."""

    def __init__(self, prior: Tensor, group_projection: Tensor, log_scale: Tensor, log_noise: Tensor) -> None:
        super().__init__()
        self.prior = nn.Parameter(prior)  # (d,): w
        self.group_projection = nn.Parameter(group_projection)  # (R, d): U
        self.log_scale = nn.Parameter(log_scale)  # (1,)
        self.log_noise = nn.Parameter(log_noise)  # (1,)

    def forward(self, h: Tensor, shares: Tensor, context: Points) -> Tensor:
        """Returns the weights v of the logits as a function of the features: h (B, C, d), shares (B, C) -> (B, d)."""
        scale, noise = self.log_scale.exp(), self.log_noise.exp() + LEAST_NOISE
        prior = PRIOR_SCALE * math.sqrt(h.shape[-1]) * self.prior  # (d,)
        return context_weights(h, shares, context, prior, self.group_projection, Kernel(scale, noise, GROUP_SCALE))


@dataclass(frozen=True, slots=True)
class Kernel:
    """The factors of a kernel scale h.h' + group_scale (U h).(U h'), and the variance of the noise in the context's answers."""

    scale: Tensor | float
    noise: Tensor | float
    group_scale: float


def context_weights(
    h: Tensor, shares: Tensor, context: Points, prior: Tensor, projection: Tensor, kernel: Kernel
) -> Tensor:
    """Returns the weights v of the logits h.v, from the regression on the context: h (B, C, d), shares (B, C) -> (B, d).

    prior: (d,), weights of the prior mean. projection: (R, d), U.
    """
    group = math.sqrt(kernel.group_scale) * (h @ projection.T)  # (B, C, R)
    centre = centring(context, h.dtype)  # (B, C, C)
    covariances = kernel.scale * (h @ h.mT) + group @ group.mT  # (B, C, C)
    identity = torch.eye(h.shape[1], dtype=h.dtype, device=h.device)
    covariance = centre @ covariances @ centre + kernel.noise * identity
    logs = torch.log(shares.clamp_min(0) + SHARE_FLOOR) - h @ prior  # (B, C)
    residual = centre @ logs.unsqueeze(-1)  # (B, C, 1), 0 for padding
    answer = h.mT @ solve(covariance, residual)  # (B, d, 1)
    by_group = projection.T @ (projection @ answer)  # (B, d, 1)
    return prior + (kernel.scale * answer + kernel.group_scale * by_group).squeeze(-1)


def centring(points: Points, dtype: torch.dtype) -> Tensor:
    """Returns the matrix that subtracts from each point the mean over its question, and sets padding to 0: (B, N, N)."""
    same = (points.question[:, :, None] == points.question[:, None, :]) & points.is_real[:, :, None]
    same = (same & points.is_real[:, None, :]).to(dtype)  # (B, N, N)
    one = torch.diag_embed(points.is_real.to(dtype))  # (B, N, N)
    return one - same / same.sum(-1, keepdim=True).clamp_min(1)


def solve(covariance: Tensor, right: Tensor) -> Tensor:
    """Solves covariance @ x = right for positive definite matrices: (B, C, C), (B, C, 1) -> (B, C, 1).

    The solution is NaN if a matrix is not positive definite, which happens only if parameters are not finite.
    """
    factor, problem = torch.linalg.cholesky_ex(covariance)  # (B, C, C), (B,)
    solution = torch.cholesky_solve(right, factor)
    return torch.where(problem[:, None, None] == 0, solution, torch.nan)


def _inside(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
