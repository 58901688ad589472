"""Random points for tests of the predictors."""

import torch
from torch import Tensor, nn

from pluralllm.common.predictor.interface import Points


def points_of(embeddings: Tensor, options: int = 1) -> Points:
    """Returns real points with these embeddings (B, N, D); each question has `options` options, in order."""
    batch, count = embeddings.shape[:2]
    number = torch.arange(count).expand(batch, -1)
    positions = (number % options).to(embeddings.dtype) / max(1, options - 1)
    return Points(embeddings, positions, number // options, torch.ones(batch, count, dtype=torch.bool))


def random_points(
    batch: int, points: int, dimension: int, seed: int = 0, options: int = 1, templates: int = 1
) -> Points:
    """Returns points with random embeddings: one unit vector for each template."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(batch, points, templates, dimension // templates, generator=generator)
    return points_of(nn.functional.normalize(vectors, dim=-1).flatten(2), options)


def random_shares(points: Points, seed: int = 0) -> Tensor:
    """Returns random shares between 0 and 1, one for each point."""
    return torch.rand(points.is_real.shape, generator=torch.Generator().manual_seed(seed))


def selected(points: Points, index: Tensor | slice | list[int]) -> Points:
    """Returns some of the points of each episode."""
    tensors = (points.embeddings, points.positions, points.question, points.is_real)
    return Points(*(tensor[:, index] for tensor in tensors))


def padded(points: Points, junk: Tensor) -> Points:
    """Returns the points with padding behind them whose embeddings are `junk`, (B, N, D)."""
    batch, count = junk.shape[:2]
    question = torch.full((batch, count), int(points.question.max()) + 1)
    return Points(
        torch.cat([points.embeddings, junk], dim=1),
        torch.cat([points.positions, torch.full((batch, count), 0.7)], dim=1),
        torch.cat([points.question, question], dim=1),
        torch.cat([points.is_real, torch.zeros(batch, count, dtype=torch.bool)], dim=1),
    )
