"""The predictor's parameters: names, shapes and first values, without torch.

The coordinator makes version 0 from here; model.py must have exactly these parameters (a test says so). The names are torch
state-dict names. First values follow torch's own for Linear and MultiheadAttention: U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for
weight and bias, Xavier-uniform for the attention's input projection, zeros for its biases, ones and zeros for LayerNorm.
Source: arXiv 2310.11523 (GPO), arXiv 2207.04179 (TNP-D).
"""

import hashlib
import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.weights.layout import Layout, layout_of
from pluralllm.common.words.spec import Predictor, RunSpec

OUTPUTS = 2  # mean and log-std of y


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor; `bound` is the half-width of its uniform first values, `fill` the value when bound is 0."""

    name: str
    shape: tuple[int, ...]
    bound: float
    fill: float = 0.0


def parameters(predictor: Predictor, embedding_dimension: int) -> tuple[Parameter, ...]:
    """All parameters, sorted by name. 713,218 numbers for the paper's predictor at 384 dimensions."""
    d = predictor.d_model
    found: list[Parameter] = []

    def linear(name: str, fan_in: int, fan_out: int) -> None:
        bound = 1 / math.sqrt(fan_in)
        found.append(Parameter(f"{name}.weight", (fan_out, fan_in), bound))
        found.append(Parameter(f"{name}.bias", (fan_out,), bound))

    widths = [embedding_dimension + 1, *[d] * predictor.embedder_layers]  # +1: the point's y
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        linear(f"embedder.{index}", fan_in, fan_out)
    for index in range(predictor.layers):
        layer = f"layers.{index}"
        found.append(Parameter(f"{layer}.attention_in.weight", (3 * d, d), math.sqrt(6 / (3 * d + d))))
        found.append(Parameter(f"{layer}.attention_in.bias", (3 * d,), 0.0))
        found.append(Parameter(f"{layer}.attention_out.weight", (d, d), 1 / math.sqrt(d)))
        found.append(Parameter(f"{layer}.attention_out.bias", (d,), 0.0))
        linear(f"{layer}.feedforward_in", d, predictor.feedforward)
        linear(f"{layer}.feedforward_out", predictor.feedforward, d)
        for norm in ("attention_norm", "feedforward_norm"):
            found.append(Parameter(f"{layer}.{norm}.weight", (d,), 0.0, fill=1.0))
            found.append(Parameter(f"{layer}.{norm}.bias", (d,), 0.0))
    linear("head.0", d, d)
    linear("head.1", d, OUTPUTS)
    return tuple(sorted(found, key=lambda parameter: parameter.name))


def layout_for(spec: RunSpec) -> Layout:
    """The layout of a run's model: a function of its spec alone."""
    return layout_of((tensor.name, tensor.shape) for tensor in parameters(spec.predictor, spec.embedding.dimension))


def initial_values(parameter: Parameter, seed: int) -> NDArray[np.float32]:
    """First values of one tensor. The stream depends on seed and name alone, so a new layer moves no other's values."""
    if parameter.bound == 0:
        return np.full(parameter.shape, parameter.fill, dtype=np.float32)
    key = int.from_bytes(hashlib.sha256(f"{seed}/{parameter.name}".encode()).digest()[:16])
    draw = np.random.Generator(np.random.PCG64(key)).random(math.prod(parameter.shape))
    return ((2 * draw - 1) * parameter.bound).astype(np.float32).reshape(parameter.shape)
