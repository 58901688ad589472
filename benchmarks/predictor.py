"""Measures one training step and one group's evaluation: our predictor, and a plain version written like the paper's.

.venv/bin/python benchmarks/predictor.py [--device cpu] [--threads 2] [--repeats 7]

Episodes have 55 context and 55 target questions of 5 options; the predictor has the paper's size. The plain version uses
nn.TransformerEncoder with a square mask over context and targets, and a loop over questions for the softmax. Its evaluation
needs one pass for each target question. Results are medians of pairs that are measured one after the other. The losses and
gradients of the two versions are compared before the measurement, and their scores after it. The matrix rate is that of one
large product of float32 matrices, measured in the same run.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from timing import seconds
from torch import Tensor, nn

from pluralllm.client.work.losses import gaussian_loss, prediction_loss
from pluralllm.client.work.train import pick_device
from pluralllm.common.predictor.architecture import initial_values, parameters
from pluralllm.common.predictor.data import Batch, Episode, GroupData, group_data, log_softmax_by_question, make_batch
from pluralllm.common.predictor.metrics import js_distance, js_distances
from pluralllm.common.predictor.model import load_weights
from pluralllm.common.predictor.neural_process import NeuralProcessPredictor
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.predictors import NeuralProcess
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import Training

CONTEXT, TARGETS, OPTIONS = 55, 55, 5
RATE = 3e-4


class Plain(nn.Module):
    """Plain implementation of the predictor of arXiv 2503.09925, section 3, with torch's own encoder layers."""

    def __init__(self, config: NeuralProcess, dimension: int) -> None:
        super().__init__()
        d, width = config.d_model, dimension + 1
        layers: list[nn.Module] = []
        for number in range(config.embedder_layers):
            layers += [nn.Linear(width if number == 0 else d, d), nn.ReLU()]
        self.embedder = nn.Sequential(*layers[:-1])
        layer = nn.TransformerEncoderLayer(d, config.heads, config.feedforward, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 2))

    def forward(self, context: Tensor, shares: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        context_points = torch.cat([context, shares.unsqueeze(-1)], -1)  # (B, C, D + 1)
        target_points = torch.cat([targets, targets.new_zeros((*targets.shape[:2], 1))], -1)  # (B, T, D + 1)
        points = self.embedder(torch.cat([context_points, target_points], 1))  # (B, C + T, d)
        size = points.shape[1]
        mask = torch.ones((size, size), dtype=torch.bool, device=points.device)  # True: may not be attended to
        mask[:, : context.shape[1]] = False
        out = self.head(self.encoder(points, mask=mask)[:, context.shape[1] :])  # (B, T, 2)
        return out[..., 0], out[..., 1]

    def take(self, ours: NeuralProcessPredictor) -> None:
        """Copies the parameter values of our predictor, so that the two versions compute the same function."""
        theirs: dict[str, Tensor] = {}
        for name, value in ours.named_parameters():
            kind, number, *rest = name.split(".")
            if kind == "layers":
                names = {
                    "attention_in": "self_attn.in_proj_",
                    "attention_out": "self_attn.out_proj.",
                    "attention_norm": "norm1.",
                    "feedforward_norm": "norm2.",
                    "feedforward_in": "linear1.",
                    "feedforward_out": "linear2.",
                }
                theirs[f"encoder.layers.{number}.{names[rest[0]]}{rest[1]}"] = value
            else:
                theirs[f"{kind}.{2 * int(number)}.{rest[0]}"] = value
        self.load_state_dict(theirs)


def plain_loss(model: Plain, batch: Batch) -> Tensor:
    mean, log_std = model(batch.context.embeddings, batch.context_shares, batch.targets.embeddings)
    losses = []
    for row in range(len(mean)):
        for start in range(0, mean.shape[1], OPTIONS):
            points = slice(start, start + OPTIONS)
            shares = torch.softmax(mean[row, points], 0)
            losses.append(gaussian_loss(shares, log_std[row, points], batch.target_shares[row, points]))
    return torch.cat(losses).mean()


def our_loss(model: NeuralProcessPredictor, batch: Batch) -> Tensor:
    predicted = model(batch.context, batch.context_shares, batch.targets)
    return prediction_loss(predicted, batch, Training(), clients=1)[0]


@torch.no_grad()
def plain_evaluation(model: Plain, data: GroupData, episode: Episode, device: torch.device) -> float:
    context = torch.from_numpy(data.embeddings[data.points(episode.context)]).to(device)[None]
    shares = torch.from_numpy(data.shares[data.points(episode.context)]).to(device)[None]
    total = 0.0
    for question in episode.targets:
        points = data.points([question])
        mean, _ = model(context, shares, torch.from_numpy(data.embeddings[points]).to(device)[None])
        total += js_distance(torch.softmax(mean[0], 0).cpu().numpy(), data.shares[points])
    return 1 - total / len(episode.targets)


@torch.no_grad()
def our_evaluation(model: NeuralProcessPredictor, data: GroupData, episode: Episode, device: torch.device) -> float:
    batch = make_batch([(data, episode)]).to(device)
    predicted = model(batch.context, batch.context_shares, batch.targets)
    shares = log_softmax_by_question(predicted.mean, batch.targets.question, batch.questions)[0].exp().cpu().numpy()
    starts = np.arange(0, len(shares), OPTIONS)
    return float(1 - js_distances(shares, data.shares[data.points(episode.targets)], starts).mean())


def matrix_rate(device: torch.device) -> float:
    """Measures the floating point operations per second of one large matrix product."""
    size = 2048 if device.type == "cpu" else 8192
    one, other = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    return 2 * size**3 / min(seconds(lambda: one @ other, device) for _ in range(7))


def step_operations(config: NeuralProcess, dimension: int, batch: int) -> float:
    """Number of floating point operations in the matrix products of one training step.

    Each weight needs two operations forward and four backward for each point. The products of attention are added.
    dimension: numbers in an embedding. batch: episodes of the step.
    """
    context, points = CONTEXT * OPTIONS, (CONTEXT + TARGETS) * OPTIONS
    d, ff = config.d_model, config.feedforward
    embedder = (dimension + 1) * d + (config.embedder_layers - 1) * d * d
    layer = d * d + d * d + 2 * d * ff  # queries, output, feedforward; only the context has keys and values
    products = points * embedder + TARGETS * OPTIONS * (d * d + 2 * d)  # plus the head
    products += config.layers * (points * layer + context * 2 * d * d + 2 * points * context * d)
    products -= context * (layer + 2 * context * d)  # the last layer does not compute the context's outputs
    first = points * (dimension + 1) * d  # the first layer's inputs need no gradient
    return batch * (3 * 2 * products - 2 * first)


def made_up(dimension: int) -> GroupData:
    rng = np.random.default_rng(0)
    questions = [
        Question(
            f"Question {number}?", tuple(f"option {n}" for n in range(OPTIONS)), tuple(rng.dirichlet(np.ones(OPTIONS)))
        )
        for number in range(220)
    ]
    embedded = [rng.normal(0, 1 / math.sqrt(dimension), (OPTIONS, dimension)).astype(np.float32) for _ in questions]
    return group_data("made up", questions, embedded)


def pairs(ours: Callable[[], object], plain: Callable[[], object], repeats: int, device: torch.device) -> str:
    """Runs the functions `ours` and `plain` alternately; formats their median times in ms and the median of the ratios."""
    seconds(ours, device), seconds(plain, device)
    times_s = [(seconds(ours, device), seconds(plain, device)) for _ in range(repeats)]
    ratios = sorted(slow / fast for fast, slow in times_s)
    fast, slow = (statistics.median(times) * 1e3 for times in zip(*times_s, strict=True))
    return f"{fast:9.2f} ms   plain {slow:9.2f} ms   ratio {statistics.median(ratios):6.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = pick_device(arguments.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    peak = matrix_rate(device)
    print(f"{device}, {arguments.threads} threads; matrix rate {peak / 1e9:.0f} GFLOP/s")
    for dimension in (384, 4096):
        config = NeuralProcess()
        embedding = Embedding(model="made up", templates=("{question} {option}",), dimension=dimension)
        ours = NeuralProcessPredictor(config, embedding).to(device)
        load_weights(ours, {p.name: initial_values(p, 0) for p in parameters(config, dimension)})
        plain = Plain(config, dimension).to(device)
        plain.take(ours)
        data = made_up(dimension)
        rng = np.random.default_rng(1)
        for size in (1, 8):
            drawn = [rng.permutation(220).tolist() for _ in range(size)]
            episodes = [(data, Episode(tuple(d[:CONTEXT]), tuple(d[CONTEXT : CONTEXT + TARGETS]))) for d in drawn]
            batch = make_batch(episodes).to(device)
            print(f"{dimension} dims, batch of {size}")
            print(f"  equal: {difference(ours, plain, batch)}")
            our_step, plain_step = (
                stepper(ours, partial(our_loss, ours, batch)),
                stepper(plain, partial(plain_loss, plain, batch)),
            )
            comparison = pairs(our_step, plain_step, arguments.repeats, device)
            took_s = statistics.median(seconds(our_step, device) for _ in range(arguments.repeats))
            rate = step_operations(config, dimension, size) / took_s
            print(f"  step        {comparison}   {rate / peak:.0%} of the matrix rate")
            plain.take(ours)
        episode = episodes[0][1]
        scores = our_evaluation(ours, data, episode, device), plain_evaluation(plain, data, episode, device)
        comparison = pairs(
            partial(our_evaluation, ours, data, episode, device),
            partial(plain_evaluation, plain, data, episode, device),
            arguments.repeats,
            device,
        )
        print(f"  evaluation  {comparison}   scores differ by {abs(scores[0] - scores[1]):.1e}")
    return 0


def stepper(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Returns a function that takes one Adam step on `model`, with the gradient of `loss`."""
    fused = next(model.parameters()).device.type != "mps"
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=fused)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def difference(ours: NeuralProcessPredictor, plain: Plain, batch: Batch) -> str:
    """Formats the difference between the losses of the two versions, and the relative difference of their gradients' norms."""
    losses, gradients = [], []
    for model, loss in ((ours, our_loss(ours, batch)), (plain, plain_loss(plain, batch))):
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        gradients.append(sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None) ** 0.5)
    return f"losses differ by {abs(losses[0] - losses[1]):.1e}, norms of gradients by {abs(gradients[0] / gradients[1] - 1):.1e}"


if __name__ == "__main__":
    sys.exit(main())
