"""The kernel predictor is Gaussian process regression on the context; padding, order and other targets do not matter."""

import math

import numpy as np
import pytest
import torch
from support.points import padded, random_points, random_shares, selected
from torch import Tensor

from pluralllm.common.predictor.architecture import WEAK_QUESTION, feature_deviations, initial_values, parameters
from pluralllm.common.predictor.fourier_kernel import LEAST_NOISE, FourierKernelPredictor, KernelContext, solve
from pluralllm.common.predictor.interface import Points
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.predictors import FourierKernel

WIDTH = 6
EMBEDDING = Embedding(model="m", dimension=2 * WIDTH)
CONFIG = FourierKernel(architecture="fourier-kernel/1", features=50, group_rank=3)


def predictor(seed: int = 0, **changes: object) -> FourierKernelPredictor:
    """Returns a predictor in evaluation mode with random values where the first values are 0."""
    made = FourierKernelPredictor(CONFIG.model_copy(update=changes), EMBEDDING)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.head.prior.copy_(0.1 * torch.randn(made.head.prior.shape, generator=generator))
    return made.eval()


def points(count: int, seed: int, batch: int = 1, options: int = 3) -> Points:
    return random_points(batch, count, 2 * WIDTH, seed, options, templates=2)


def means(model: FourierKernelPredictor, context: Points, shares: Tensor, targets: Points) -> Tensor:
    with torch.no_grad():
        mean: Tensor = model(context, shares, targets).mean
    return mean


def centred(values: Tensor, options: int = 3) -> Tensor:
    """Returns each value minus the mean of its question: (.., N) -> (.., N)."""
    by_question = values.view(*values.shape[:-1], -1, options)
    return (by_question - by_question.mean(-1, keepdim=True)).flatten(-2)


def test_predictions_are_those_of_gaussian_process_regression_written_out() -> None:
    """Rasmussen and Williams 2006, equation 2.23, with a prior mean: one matrix at a time, features centred one by one."""
    model = predictor().double()
    context, targets = (selected(points(n, seed), slice(n)) for n, seed in ((12, 1), (6, 2)))
    context, targets = (
        Points(p.embeddings.double(), p.positions.double(), p.question, p.is_real) for p in (context, targets)
    )
    shares = random_shares(context).double()
    own = {name: value.detach() for name, value in model.named_parameters()}

    def features(some: Points) -> Tensor:
        question, option = some.embeddings[0, :, :WIDTH], some.embeddings[0, :, WIDTH:]
        angle = math.sqrt(WIDTH) * (
            question @ own["embedder.question_weight"].T + option @ own["embedder.option_weight"].T
        )
        angle += some.positions[0][:, None] * own["embedder.position_weight"] + own["embedder.phase"]
        return centred((math.sqrt(2 / 50) * torch.cos(angle)).T.contiguous()).T  # (N, d)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        projection = own["head.group_projection"]
        return own["head.log_scale"].exp() * a @ b.T + 32 * (a @ projection.T) @ (b @ projection.T).T

    h, ht = features(context), features(targets)
    weights = 0.1 * math.sqrt(50) * own["head.prior"]
    noise = own["head.log_noise"].exp() + LEAST_NOISE
    residual = centred(torch.log(shares[0] + 0.01)) - h @ weights
    expected = ht @ weights + kernel(ht, h) @ torch.linalg.inv(kernel(h, h) + noise * torch.eye(12)) @ residual
    assert torch.allclose(centred(means(model, context, shares, targets)[0]), expected, atol=1e-10)


def test_single_precision_is_close_to_double() -> None:
    model, context, targets = predictor(), points(90, 1), points(30, 2)
    shares = random_shares(context)
    single = means(model, context, shares, targets)
    double = means(model.double(), _double(context), shares.double(), _double(targets))
    assert torch.allclose(single.double(), double, atol=2e-4)


def test_all_gradients_are_those_of_finite_differences() -> None:
    model = predictor(features=7, group_rank=2).double()
    context, targets = _double(points(6, 1, options=2)), _double(points(4, 2, options=2))
    shares = random_shares(context).double()
    names = [name for name, _ in model.named_parameters()]

    def means_of(*values: Tensor) -> Tensor:
        own = dict(zip(names, values, strict=True))
        mean: Tensor = torch.func.functional_call(model, own, (context, shares, targets)).mean
        return mean

    values = [value.detach().clone().requires_grad_() for value in model.parameters()]
    assert torch.autograd.gradcheck(means_of, values)


def test_padding_changes_nothing_whatever_it_holds() -> None:
    model, context, targets = predictor(), points(9, 1), points(6, 2)
    shares = random_shares(context)
    alone = means(model, context, shares, targets)
    for junk in (torch.zeros(1, 5, 2 * WIDTH), 1e3 * points(5, 3).embeddings):
        for share in (0.0, 9.0, -1.0):
            longer = torch.cat([shares, torch.full((1, 5), share)], dim=1)
            found = means(model, padded(context, junk), longer, padded(targets, junk))
            assert torch.allclose(found[:, :6], alone, atol=1e-5)
            assert torch.isfinite(found).all()


def test_gradients_are_finite_with_padding() -> None:
    model, context = predictor().train(), points(9, 1, batch=2)
    context.is_real[1, 3:] = False
    model(context, random_shares(context), points(6, 2, batch=2)).mean.sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_a_batch_predicts_each_episode_as_it_is_alone() -> None:
    model, context, targets = predictor(), points(9, 1, batch=3), points(6, 2, batch=3)
    shares = random_shares(context)
    together = means(model, context, shares, targets)
    for row in range(3):
        alone = means(model, _row(context, row), shares[row : row + 1], _row(targets, row))
        assert torch.allclose(together[row], alone[0], atol=1e-5)


def test_the_order_of_the_contexts_questions_does_not_matter() -> None:
    model, context, targets = predictor(), points(9, 1), points(6, 2)
    shares = random_shares(context)
    order = [6, 7, 8, 0, 1, 2, 3, 4, 5]
    shuffled = means(model, selected(context, order), shares[:, order], targets)
    assert torch.allclose(shuffled, means(model, context, shares, targets), atol=1e-5)


def test_a_target_is_scored_the_same_whatever_the_other_targets_are() -> None:
    model, context, targets = predictor(), points(9, 1), points(6, 2)
    shares = random_shares(context)
    together = means(model, context, shares, targets)
    for number in range(6):
        alone = means(model, context, shares, selected(targets, [number]))
        assert torch.allclose(alone[:, 0], together[:, number], atol=1e-6)


def test_the_first_version_already_answers_a_question_as_its_context_does() -> None:
    """Before any training, the same question as in the context gets nearly the context's answer, and the prior is 0."""
    model = FourierKernelPredictor(CONFIG.model_copy(update={"features": 2000}), EMBEDDING).eval()
    context = points(9, 1)
    shares = torch.tensor([[0.8, 0.1, 0.1] * 3])
    predicted = means(model, context, shares, context).view(1, 3, 3).softmax(-1)
    assert (predicted[..., 0] > 0.55).all()
    assert torch.allclose(means(model, context, torch.full((1, 9), 1 / 3), context), torch.zeros(1, 9), atol=1e-5)


def test_the_position_of_an_option_is_read_unless_the_spec_gives_it_no_features() -> None:
    context, targets = points(9, 1), points(6, 2)
    turned = Points(targets.embeddings, 1 - targets.positions, targets.question, targets.is_real)
    shares = random_shares(context)
    with_positions, without = predictor(), predictor(position_share=0.0)
    one, other = (means(with_positions, context, shares, p) for p in (targets, turned))
    assert not torch.allclose(one, other, atol=1e-3)
    one, other = (means(without, context, shares, p) for p in (targets, turned))
    assert torch.equal(one, other)
    names = {name for name, _ in without.named_parameters()}
    assert {name for name, _ in with_positions.named_parameters()} - names == {"embedder.position_weight"}


def test_options_without_an_order_are_not_told_apart_by_position() -> None:
    """Equal positions shift all logits of a question alike, whatever they are."""
    model, targets = predictor(), points(6, 2)
    only_positions = model.embedder.question_weight.detach().abs().sum(
        1
    ) + model.embedder.option_weight.detach().abs().sum(1)
    assert (only_positions == 0).any()
    at_zero = Points(targets.embeddings, torch.zeros_like(targets.positions), targets.question, targets.is_real)
    h = model.embed(at_zero)[0][:, only_positions == 0]
    assert torch.equal(h, h[:1].expand_as(h))


def test_a_context_is_one_vector_and_features_serve_every_context() -> None:
    model, targets = predictor(), points(6, 2)
    with torch.no_grad():
        features = model.embed(targets)
        for seed in (1, 3):
            context = points(9, seed)
            shares = random_shares(context, seed)
            encoded = model.encode_context(context, shares)
            assert isinstance(encoded, KernelContext)
            assert encoded.weights.shape == (1, CONFIG.features)
            assert torch.allclose(
                features[0] @ encoded.weights[0], means(model, context, shares, targets)[0], atol=1e-6
            )


def test_dropout_is_on_in_training_only_and_apart_for_context_and_targets() -> None:
    model, context = predictor(dropout=0.5), points(9, 1)
    shares = random_shares(context)
    assert torch.equal(means(model, context, shares, context), means(model, context, shares, context))
    model.train()
    assert not torch.allclose(means(model, context, shares, context), means(model, context, shares, context))
    first, second = (model.embedder(context) for _ in range(2))
    assert not torch.equal(first == 0, second == 0)
    whole = predictor()
    kept = first != 0
    assert torch.allclose(first[kept], 2 * whole.embedder(context)[kept])
    assert 0.4 < float(kept.float().mean()) < 0.6


@pytest.mark.parametrize("log_noise", [-100.0, 0.0])
def test_the_solution_is_finite_whatever_the_noise_has_become(log_noise: float) -> None:
    model, context = predictor(), points(90, 1)
    with torch.no_grad():
        model.head.log_noise.fill_(log_noise)
    context = Points(context.embeddings[:, :3].repeat(1, 30, 1), context.positions, context.question, context.is_real)
    assert torch.isfinite(means(model, context, random_shares(context), points(6, 2))).all()


def test_a_matrix_that_is_not_positive_definite_gives_nan_and_no_error() -> None:
    matrices = torch.stack([torch.eye(2), -torch.eye(2), torch.full((2, 2), torch.nan)])
    solution = solve(matrices, torch.ones(3, 2, 1))
    assert torch.isfinite(solution).flatten(1).all(1).tolist() == [True, False, False]


def test_the_features_first_values_are_of_the_classes_that_the_spec_sets() -> None:
    config = FourierKernel(
        architecture="fourier-kernel/1", features=1000, question_length_scale=2, option_length_scale=4
    )
    question, option, position = feature_deviations(config)
    assert sorted(set(question.tolist())) == [0, WEAK_QUESTION / 2, 1 / 2]
    assert [(question == value).sum() for value in (1 / 2, WEAK_QUESTION / 2, 0)] == [620, 190, 190]
    assert set(option.tolist()) == {0, 1 / 4}
    assert set(position.tolist()) == {0, 1 / config.position_length_scale}
    assert ((option == 0) == (position > 0)).all()
    for of_class in (question == 1 / 2, question == WEAK_QUESTION / 2, question == 0):
        assert (position[of_class] > 0).mean() == 0.5, "independent of what is read of the question"


def test_the_first_kernel_falls_with_the_distance_as_the_length_scale_says() -> None:
    """E h.h' = exp(-r^2 / 2 l^2) for two options at distance r of one question, over the features that read options."""
    config = FourierKernel(architecture="fourier-kernel/1", features=4096, position_share=0.0, option_length_scale=0.8)
    model = FourierKernelPredictor(config, Embedding(model="m", dimension=64)).eval()
    some = random_points(50, 2, 64, seed=1, options=2, templates=2)
    some.embeddings[:, 1, :32] = some.embeddings[:, 0, :32]
    with torch.no_grad():
        h = model.embed(some)
    distances = (some.embeddings[:, 0] - some.embeddings[:, 1]).norm(dim=-1)
    expected = torch.exp(-(distances**2) / 2 / 0.8**2)
    assert float(((h[:, 0] * h[:, 1]).sum(-1) - expected).mean()) == pytest.approx(0, abs=0.02)
    assert float(h.square().sum(-1).mean()) == pytest.approx(1, abs=0.02)


def test_the_parameters_are_exactly_those_of_the_architecture_and_no_more_than_the_default_has() -> None:
    config = FourierKernel(architecture="fourier-kernel/1")
    made = FourierKernelPredictor(config, Embedding(model="m", dimension=768))
    shapes = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    assert shapes == {p.name: p.shape for p in parameters(config, 768)}
    assert sum(value.numel() for value in made.parameters()) == 705_154 < 724_994


def test_first_values_depend_on_seed_and_name_alone() -> None:
    few, many = (parameters(CONFIG.model_copy(update={"group_rank": rank}), 2 * WIDTH) for rank in (3, 5))
    by_name = {p.name: initial_values(p, 5) for p in many}
    assert all(np.array_equal(initial_values(p, 5), by_name[p.name]) for p in few if "group" not in p.name)
    weight = next(p for p in few if p.name == "embedder.question_weight")
    assert not np.array_equal(initial_values(weight, 5), initial_values(weight, 6))
    assert np.exp(initial_values(next(p for p in few if p.name == "head.log_noise"), 5)) == pytest.approx(0.5)


def _double(some: Points) -> Points:
    return Points(some.embeddings.double(), some.positions.double(), some.question, some.is_real)


def _row(some: Points, row: int) -> Points:
    one = slice(row, row + 1)
    return Points(some.embeddings[one], some.positions[one], some.question[one], some.is_real[one])
