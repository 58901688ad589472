"""The predictor's parameters: names, shapes and initial values, without torch.

The coordinator makes model version 0 from this module. model.py must have exactly these parameters; a test compares the two
modules. The names are the names in torch's state dict.
Initial values follow torch's defaults for Linear and MultiheadAttention: weights and biases are uniform between
-1/sqrt(fan_in) and 1/sqrt(fan_in). The attention's input projection is Xavier-uniform, and the attention's biases are zeros.
A LayerNorm starts with ones as its weight and zeros as its bias.
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

OUTPUTS = 2  # mean and logarithm of the standard deviation of y


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the model: its name, its shape and how its initial values are drawn."""

    name: str
    shape: tuple[int, ...]
    bound: float  # initial values are uniform in -bound .. bound
    fill: float = 0.0  # the initial value of all elements if bound is 0


def parameters(predictor: Predictor, embedding_dimension: int) -> tuple[Parameter, ...]:
    """Returns all parameters of a predictor, sorted by name.

    For example, the paper's predictor with embeddings of 384 numbers has parameters with 713,218 values in all.
    """
    d = predictor.d_model
    tensors: list[Parameter] = []

    def linear(name: str, fan_in: int, fan_out: int) -> None:
        bound = 1 / math.sqrt(fan_in)
        tensors.append(Parameter(f"{name}.weight", (fan_out, fan_in), bound))
        tensors.append(Parameter(f"{name}.bias", (fan_out,), bound))

    widths = [embedding_dimension + 1, *[d] * predictor.embedder_layers]  # +1: the share y of the point
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        linear(f"embedder.{index}", fan_in, fan_out)
    for index in range(predictor.layers):
        layer = f"layers.{index}"
        tensors.append(Parameter(f"{layer}.attention_in.weight", (3 * d, d), math.sqrt(6 / (3 * d + d))))
        tensors.append(Parameter(f"{layer}.attention_in.bias", (3 * d,), 0.0))
        tensors.append(Parameter(f"{layer}.attention_out.weight", (d, d), 1 / math.sqrt(d)))
        tensors.append(Parameter(f"{layer}.attention_out.bias", (d,), 0.0))
        linear(f"{layer}.feedforward_in", d, predictor.feedforward)
        linear(f"{layer}.feedforward_out", predictor.feedforward, d)
        for norm in ("attention_norm", "feedforward_norm"):
            tensors.append(Parameter(f"{layer}.{norm}.weight", (d,), 0.0, fill=1.0))
            tensors.append(Parameter(f"{layer}.{norm}.bias", (d,), 0.0))
    linear("head.0", d, d)
    linear("head.1", d, OUTPUTS)
    return tuple(sorted(tensors, key=lambda parameter: parameter.name))


def layout_for(spec: RunSpec) -> Layout:
    """Returns the layout (names and shapes of the tensors) of a run's model.

    The layout depends only on the spec's predictor and on the dimension of its embeddings, so every process computes
    the same layout.
    """
    return layout_of((tensor.name, tensor.shape) for tensor in parameters(spec.predictor, spec.embedding.dimension))


def initial_values(parameter: Parameter, seed: int) -> NDArray[np.float32]:
    """Returns the initial values of one tensor, float32, of the parameter's shape.

    The random stream depends only on the seed and the parameter's name, so adding a layer changes no other layer's values.
    """
    if parameter.bound == 0:
        return np.full(parameter.shape, parameter.fill, dtype=np.float32)
    key = int.from_bytes(hashlib.sha256(f"{seed}/{parameter.name}".encode()).digest()[:16])
    draw = np.random.Generator(np.random.PCG64(key)).random(math.prod(parameter.shape))
    return ((2 * draw - 1) * parameter.bound).astype(np.float32).reshape(parameter.shape)
