"""Choice of the kernel's noise and scale for one context, by the marginal likelihood of its answers.

Source: Rasmussen and Williams 2006, equation 5.8. The residuals are centred over the options of each question, so the
likelihood is that of the centred residuals: a direction that centring removes counts neither in the determinant nor in the
product. Shapes: C context points, d features.
"""

import itertools
import math

import torch
from torch import Tensor

from pluralllm.common.predictor.fourier_kernel import (
    GROUP_SCALE,
    LEAST_NOISE,
    PRIOR_SCALE,
    SHARE_FLOOR,
    FourierKernelPredictor,
    centring,
)
from pluralllm.common.predictor.interface import Points

FACTORS = tuple(2.0 ** (step / 2) for step in range(-4, 5))  # 1/4 .. 4


@torch.no_grad()
def choose(model: FourierKernelPredictor, context: Points, shares: Tensor, *, scales: bool) -> None:
    """Multiplies the model's noise in place, and its scale if `scales` is set, by the factors of the greatest likelihood.

    context: the points of one context without padding. shares: the group's shares of them, (1, C).
    """
    head, before = model.head, (model.head.log_scale.clone(), model.head.log_noise.clone())
    h = model.embed(context)
    choices = list(itertools.product(FACTORS if scales else (1.0,), FACTORS))

    def move(scale: float, noise: float) -> None:
        head.log_scale.copy_(before[0] + math.log(scale))
        head.log_noise.copy_(before[1] + math.log(noise))

    likelihoods = []
    for factors in choices:
        move(*factors)
        likelihoods.append(log_likelihood(model, h, context, shares))
    move(*choices[likelihoods.index(max(likelihoods))])


def log_likelihood(model: FourierKernelPredictor, h: Tensor, context: Points, shares: Tensor) -> float:
    """Returns the logarithm of the marginal likelihood of a context's answers, without its constant. h: (1, C, d)."""
    head = model.head
    scale, noise = head.log_scale.exp(), head.log_noise.exp() + LEAST_NOISE
    centre = centring(context, h.dtype)[0]  # (C, C)
    group = math.sqrt(GROUP_SCALE) * (h[0] @ head.group_projection.T)  # (C, R)
    kernel = centre @ (scale * h[0] @ h[0].T + group @ group.T) @ centre
    covariance = (kernel + noise * torch.eye(len(centre))).double()
    prior = PRIOR_SCALE * math.sqrt(h.shape[-1]) * head.prior
    residual = (centre @ (torch.log(shares[0].clamp_min(0) + SHARE_FLOOR) - h[0] @ prior)).double()  # (C,)
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, residual[:, None], upper=False)  # (C, 1)
    removed = len(centre) - centre.trace().round()  # one direction for each question, with the noise as its variance
    log_determinant = 2 * factor.diagonal().log().sum() - removed * noise.double().log()
    return float(-(white.square().sum() + log_determinant) / 2)
