"""The predictor with fixed features is Gaussian process regression on them; its files grow with the stage of the run."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support.points import padded, random_points, random_shares, selected
from support.small_survey import SUMS, small_spec
from torch import Tensor

from pluralllm.common.errors.tree import WrongLayout
from pluralllm.common.predictor.architecture import (
    finds_subspace,
    layout_for,
    option_signs,
    random_features,
    update_layout,
    version_layout,
)
from pluralllm.common.predictor.first_version import write_first_version
from pluralllm.common.predictor.interface import Points
from pluralllm.common.predictor.kernel_sums import KernelSumsPredictor
from pluralllm.common.predictor.model import load_weights, new_predictor
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.predictors import KernelSums

WIDTH = 6
EMBEDDING = Embedding(model="m", dimension=2 * WIDTH)
CONFIG = KernelSums(architecture="kernel-sums/1", features=60, group_rank=3, feature_seed=5)
SPEC = small_spec(SUMS)  # 8 rounds, the last two of the second stage


def predictor() -> KernelSumsPredictor:
    made = KernelSumsPredictor(CONFIG, EMBEDDING)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.head.prior.copy_(0.1 * torch.randn(60, generator=generator))
        made.head.group_projection.copy_(0.3 * torch.randn(3, 60, generator=generator))
    return made.eval()


def points(count: int, seed: int, options: int = 3) -> Points:
    """Returns points whose options share the vector of their question."""
    made = random_points(1, count, 2 * WIDTH, seed, options, templates=2)
    made.embeddings[..., :WIDTH] = made.embeddings[:, ::options, :WIDTH].repeat_interleave(options, dim=1)
    return made


def means(model: KernelSumsPredictor, context: Points, shares: Tensor, targets: Points) -> Tensor:
    with torch.no_grad():
        mean: Tensor = model(context, shares, targets).mean
    return mean


def features_written_out(some: Points, options: int) -> Tensor:
    """The features of CORRECTIONS by numbers: one feature class after the other, in double precision."""
    drawn, signs = random_features(CONFIG, WIDTH), option_signs(CONFIG, options).astype(np.float64)
    x = some.embeddings[0].double().numpy()
    angle = x[:, :WIDTH] @ drawn.question_weight.T.astype(np.float64)
    angle += x[:, WIDTH:] @ drawn.option_weight.T.astype(np.float64)
    angle += some.positions[0].double().numpy()[:, None] * drawn.position_weight + drawn.phase
    sign = np.where(drawn.flips, signs, 1.0)
    # 62 % of the features read the question fully, 19 % read it weakly, and 19 % do not read it.
    factor = np.where(np.arange(60) < 60 - 11 - 11, 1.0, 0.3) * math.sqrt(2 * 1.6 / 60)
    return torch.from_numpy(factor * sign * np.cos(angle))


def centred(values: Tensor, options: int = 3) -> Tensor:
    by_question = values.view(-1, options, *values.shape[1:])
    return (by_question - by_question.mean(1, keepdim=True)).flatten(0, 1)


@pytest.mark.parametrize("options", [2, 3])
def test_predictions_are_those_of_gaussian_process_regression_written_out(options: int) -> None:
    model, context, targets = predictor(), points(12, 1, options), points(6, 2, options)
    shares = random_shares(context)
    h, ht = (centred(features_written_out(some, options), options) for some in (context, targets))
    w, projection = model.head.prior.detach().double(), model.head.group_projection.detach().double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return 0.9 * a @ b.T + 1.44 * (a @ projection.T) @ (b @ projection.T).T

    residual = centred(torch.log(shares[0].double() + 0.01), options) - h @ w
    solved = torch.linalg.inv(kernel(h, h) + 0.7 * torch.eye(12)) @ residual
    expected = 1.08 * (ht @ w + kernel(ht, h) @ solved)
    predicted = centred(means(model, context, shares, targets)[0].double(), options)
    assert torch.allclose(predicted, expected, atol=2e-5)


def test_every_second_feature_of_positions_changes_its_sign_with_the_number_of_options() -> None:
    drawn = random_features(CONFIG, WIDTH)
    reads_positions = drawn.position_weight != 0
    assert reads_positions.sum() == 30
    assert drawn.flips.sum() == 15
    assert not (drawn.flips & ~reads_positions).any()
    assert set(option_signs(CONFIG, 4)) == {-1.0, 1.0}
    assert (option_signs(CONFIG, 4) != option_signs(CONFIG, 5)).any()


def test_features_depend_on_the_predictors_seed_alone() -> None:
    same, other = (random_features(CONFIG.model_copy(update={"feature_seed": seed}), WIDTH) for seed in (5, 6))
    drawn = random_features(CONFIG, WIDTH)
    assert np.array_equal(drawn.question_weight, same.question_weight)
    assert np.array_equal(drawn.phase, same.phase)
    for name in ("question_weight", "option_weight", "position_weight", "phase"):
        assert not np.array_equal(getattr(drawn, name), getattr(other, name)), name


def test_padding_and_other_episodes_change_nothing() -> None:
    model, context, targets = predictor(), points(9, 1), points(6, 2)
    shares = random_shares(context)
    alone = means(model, context, shares, targets)
    junk = 1e3 * random_points(1, 5, 2 * WIDTH, 3, 1, templates=2).embeddings
    longer = torch.cat([shares, torch.full((1, 5), 9.0)], dim=1)
    assert torch.allclose(means(model, padded(context, junk), longer, padded(targets, junk))[:, :6], alone, atol=1e-5)
    some = selected(targets, [3, 4, 5])
    assert torch.allclose(means(model, context, shares, some), alone[:, 3:], atol=1e-5)


def test_a_version_of_the_first_stage_predicts_without_a_group_projection(tmp_path: Path) -> None:
    model = new_predictor(SPEC.predictor, SPEC.embedding)
    load_weights(model, {"head.prior": np.ones(24, np.float32)})
    values = dict(model.named_parameters())
    assert not values["head.group_projection"].any()
    assert values["head.prior"].sum() == 24
    with pytest.raises(WrongLayout, match=r"head\.prior is absent"):
        load_weights(model, {"head.group_projection": np.zeros((3, 24), np.float32)})


def test_the_stage_of_a_version_follows_from_its_number() -> None:
    assert [finds_subspace(SPEC, version) for version in (0, 5, 6, 8)] == [False, False, True, True]
    assert not finds_subspace(small_spec(), 8)
    prior, both = ("head.prior",), ("head.group_projection", "head.prior")
    names = {v: tuple(name for name, _ in version_layout(SPEC, v).tensors) for v in (0, 5, 6, 8)}
    assert names == {0: prior, 5: prior, 6: both, 8: both}
    sent = {v: tuple(name for name, _ in update_layout(SPEC, v).tensors) for v in (0, 5, 6, 7)}
    assert sent == {0: prior, 5: prior, 6: both[:1], 7: both[:1]}
    assert [version_layout(SPEC, 8), update_layout(SPEC, 6).values] == [layout_for(SPEC), 3 * 24]
    other = small_spec()
    assert version_layout(other, 0) == update_layout(other, 3) == layout_for(other)


def test_version_0_is_a_prior_of_zeros(tmp_path: Path) -> None:
    manifest = write_first_version(tmp_path / "v0", SPEC)
    layout = version_layout(SPEC, 0)
    assert manifest.size_bytes == layout.size_bytes
    assert (tmp_path / "v0").read_bytes() == layout.header + bytes(4 * 24)
