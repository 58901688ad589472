"""The transformer is torch's own under a square mask; it reads the context, and nothing but the real context."""

import math

import pytest
import torch
from support.points import padded, random_points, random_shares, selected
from support.small_survey import DIMENSION, small_spec
from torch import Tensor, nn

from pluralllm.common.predictor.architecture import initial_values, parameters
from pluralllm.common.predictor.interface import Points
from pluralllm.common.predictor.model import load_weights
from pluralllm.common.predictor.neural_process import EncoderLayer, NeuralProcessPredictor, input_scale
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.predictors import NeuralProcess

SPEC = small_spec({"predictor": {"layers": 3, "share_scale": 5.0}})
assert isinstance(SPEC.predictor, NeuralProcess)
CONFIG = SPEC.predictor


@pytest.fixture
def model() -> NeuralProcessPredictor:
    made = NeuralProcessPredictor(CONFIG, SPEC.embedding)
    found = parameters(SPEC.predictor, DIMENSION)
    load_weights(made, {p.name: initial_values(p, 3) for p in found})
    return made.eval()


def random_context(batch: int, points: int, seed: int = 0) -> tuple[Points, Tensor]:
    context = random_points(batch, points, DIMENSION, seed)
    return context, random_shares(context, seed)


def random_targets(batch: int, points: int) -> Points:
    return random_points(batch, points, DIMENSION, seed=1)


def outputs(model: NeuralProcessPredictor, context: tuple[Points, Tensor], targets: Points) -> Tensor:
    with torch.no_grad():
        predicted = model(*context, targets)
    return torch.stack([predicted.mean, predicted.log_std], dim=-1)  # (B, T, 2)


def square_masked(model: NeuralProcessPredictor, context: Points, shares: Tensor, targets: Points) -> Tensor:
    """Computes the paper's form: torch's encoder over context and targets together, under a square mask. (B, T, 2)."""
    config = CONFIG
    count, total = shares.shape[1], shares.shape[1] + targets.is_real.shape[1]
    y = torch.cat([shares * config.share_scale, torch.zeros(targets.is_real.shape)], dim=1)
    embeddings = torch.cat([context.embeddings, targets.embeddings], dim=1)
    x = torch.cat([embeddings * model.input_scale, y.unsqueeze(-1)], dim=-1)
    for number, linear in enumerate(model.embedder):
        x = linear(x) if number == len(model.embedder) - 1 else linear(x).relu()
    forbidden = torch.ones(total, total, dtype=torch.bool)
    forbidden[:, :count] = False
    for own in model.layers:
        theirs = nn.TransformerEncoderLayer(config.d_model, config.heads, config.feedforward, 0.0, batch_first=True)
        renamed = {
            "self_attn.in_proj_": "attention_in.",
            "self_attn.out_proj.": "attention_out.",
            "linear1.": "feedforward_in.",
            "linear2.": "feedforward_out.",
            "norm1.": "attention_norm.",
            "norm2.": "feedforward_norm.",
        }
        state = own.state_dict()
        theirs.load_state_dict({a + p: state[b + p] for a, b in renamed.items() for p in ("weight", "bias")})
        x = theirs(x, src_mask=forbidden)
    hidden, out = model.head
    found: Tensor = out(hidden(x[:, count:]).relu())
    return found


@pytest.mark.parametrize(("dimension", "count"), [(384, 713_218), (4096, 1_188_354)])
def test_the_parameters_are_exactly_those_of_the_architecture(dimension: int, count: int) -> None:
    config = NeuralProcess()
    made = NeuralProcessPredictor(config, Embedding(model="m", dimension=dimension))
    shapes = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    assert shapes == {p.name: p.shape for p in parameters(config, dimension)}
    assert sum(value.numel() for value in made.parameters()) == count


def test_predictions_are_those_of_a_plain_transformer_under_a_square_mask(model: NeuralProcessPredictor) -> None:
    context, shares = random_context(2, 17)
    targets = random_targets(2, 9)
    with torch.no_grad():
        expected = square_masked(model, context, shares, targets)
    assert torch.allclose(outputs(model, (context, shares), targets), expected, atol=1e-5)


def test_gradients_are_those_of_a_plain_transformer_under_a_square_mask(model: NeuralProcessPredictor) -> None:
    context, shares = random_context(2, 11)
    targets = random_targets(2, 5)
    plain = square_masked(model, context, shares, targets)[..., 0].square().sum()
    plain.backward()  # type: ignore[no-untyped-call]
    # torch's layers are copies, so only the embedder's and the head's own parameters get gradients
    shared = [*model.embedder.parameters(), *model.head.parameters()]
    expected = [parameter.grad.clone() for parameter in shared if parameter.grad is not None]
    model.zero_grad()
    model(context, shares, targets).mean.square().sum().backward()
    for parameter, gradient in zip(shared, expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-5)


def test_the_order_of_the_context_does_not_matter(model: NeuralProcessPredictor) -> None:
    context, shares = random_context(1, 12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    targets = random_targets(1, 4)
    shuffled = (selected(context, order), shares[:, order])
    assert torch.allclose(outputs(model, shuffled, targets), outputs(model, (context, shares), targets), atol=1e-6)


def test_a_target_is_scored_the_same_whatever_the_other_targets_are(model: NeuralProcessPredictor) -> None:
    context = random_context(1, 12)
    targets = random_targets(1, 6)
    together = outputs(model, context, targets)
    for number in range(6):
        assert torch.allclose(
            outputs(model, context, selected(targets, [number]))[:, 0], together[:, number], atol=1e-6
        )


def test_the_context_matters(model: NeuralProcessPredictor) -> None:
    context, shares = random_context(1, 12)
    targets = random_targets(1, 4)
    assert not torch.allclose(
        outputs(model, (context, 1 - shares), targets),
        outputs(model, (context, shares), targets),
        atol=1e-4,
    )


def test_a_context_is_encoded_once_for_targets_that_come_later(model: NeuralProcessPredictor) -> None:
    context = random_context(2, 12)
    targets = random_targets(2, 8)
    with torch.no_grad():
        encoded = model.encode_context(*context)
        pieces = [model.predict_targets(encoded, selected(targets, part)).mean for part in (slice(0, 3), slice(3, 8))]
        assert torch.allclose(torch.cat(pieces, dim=1), model(*context, targets).mean, atol=1e-6)


def test_padding_changes_nothing_whatever_it_holds(model: NeuralProcessPredictor) -> None:
    context, shares = random_context(1, 7)
    targets = random_targets(1, 3)
    alone = outputs(model, (context, shares), targets)
    for junk in (torch.zeros(1, 5, DIMENSION), 1e3 * random_points(1, 5, DIMENSION, seed=2).embeddings):
        longer = padded(context, junk), torch.cat([shares, torch.full((1, 5), 9.0)], dim=1)
        found = outputs(model, longer, padded(targets, junk))
        assert torch.allclose(found[:, :3], alone, atol=1e-5)
        assert torch.isfinite(found).all()


def test_a_real_point_that_is_all_zero_still_counts(model: NeuralProcessPredictor) -> None:
    """PAPER's defect 8: padding is recognised by sum(x) == 0."""
    context, shares = random_context(1, 7)
    context.embeddings[:, 6] = 0
    targets = random_targets(1, 3)
    with_it = outputs(model, (context, shares), targets)
    without = outputs(model, (selected(context, slice(6)), shares[:, :6]), targets)
    assert not torch.allclose(with_it, without, atol=1e-5)


def test_gradients_are_finite_with_padding(model: NeuralProcessPredictor) -> None:
    context, shares = random_context(2, 7)
    context.is_real[1, 1:] = False
    model(context, shares, random_targets(2, 3)).mean.sum().backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_unit_variance_gives_components_of_concatenated_unit_vectors_variance_1() -> None:
    embedding = Embedding(model="m", dimension=768, templates=("{question}", "{option}"))
    scale = input_scale(NeuralProcess(input_scale="unit_variance"), embedding)
    assert scale == pytest.approx(math.sqrt(384))
    two = nn.functional.normalize(torch.randn(50, 2, 384, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert float((two.flatten(1) * scale).square().mean()) == pytest.approx(1, abs=1e-5)
    assert input_scale(NeuralProcess(input_scale="none"), embedding) == 1


def test_dropout_is_on_in_training_only() -> None:
    made = NeuralProcessPredictor(CONFIG.model_copy(update={"dropout": 0.5}), SPEC.embedding)
    context, targets = random_context(1, 7), random_targets(1, 3)
    assert torch.equal(outputs(made.eval(), context, targets), outputs(made, context, targets))
    assert not torch.allclose(outputs(made.train(), context, targets), outputs(made, context, targets))


def test_dropout_is_on_every_branch_of_a_layer() -> None:
    layer = EncoderLayer(NeuralProcess(d_model=16, heads=2, feedforward=16, dropout=1 - 1e-9)).train()
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = layer(x, *layer.keys_and_values(x), torch.ones(1, 1, 1, 5, dtype=torch.bool))
        assert torch.allclose(found, layer.feedforward_norm(layer.attention_norm(x)), atol=1e-6)
