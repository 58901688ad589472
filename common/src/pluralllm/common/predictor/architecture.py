"""The predictors' parameters: names, shapes and initial values, without torch.

The coordinator makes model version 0 from this module. The models in neural_process.py and fourier_kernel.py must have exactly
these parameters; tests compare the modules. The names are the names in torch's state dict.

Initial values of tnp-d/1 follow torch's defaults for Linear and MultiheadAttention: weights and biases are uniform between
-1/sqrt(fan_in) and 1/sqrt(fan_in). The attention's input projection is Xavier-uniform, and the attention's biases are zeros.
A LayerNorm starts with ones as its weight and zeros as its bias. Source: arXiv 2310.11523 (GPO), arXiv 2207.04179 (TNP-D).

Initial values of fourier-kernel/1 are random Fourier features of Gaussian kernels: normal weights whose standard deviation is
1 / length scale, and phases that are uniform over a period. Source: Rahimi and Recht 2007, Algorithm 1.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.weights.layout import Layout, layout_of
from pluralllm.common.words.predictors import FourierKernel, NeuralProcess
from pluralllm.common.words.spec import RunSpec

OUTPUTS = 2  # of tnp-d/1: mean and logarithm of the standard deviation of y
WEAK_QUESTION = 1 / math.sqrt(3)  # factor on the question weights of features that read the question less
GROUP_SPREAD = 0.02  # standard deviation of the initial values of fourier-kernel/1's group projection


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the model: its name, its shape and how its initial values are drawn."""

    name: str
    shape: tuple[int, ...]
    bound: float  # initial values are uniform in -bound .. bound
    fill: float = 0.0  # the initial value of all elements if bound is 0 and deviations is empty
    # Standard deviations of normal initial values, one for each row; empty if the values are not normal.
    deviations: tuple[float, ...] = ()


def parameters(predictor: NeuralProcess | FourierKernel, embedding_dimension: int) -> tuple[Parameter, ...]:
    """Returns all parameters of a predictor, sorted by name.

    For example, the paper's predictor with embeddings of 384 numbers has parameters with 713,218 values in all.
    """
    match predictor:
        case NeuralProcess():
            tensors = _neural_process(predictor, embedding_dimension)
        case FourierKernel():
            tensors = _fourier_kernel(predictor, embedding_dimension // 2)
        case _:
            assert_never(predictor)
    return tuple(sorted(tensors, key=lambda parameter: parameter.name))


def _neural_process(predictor: NeuralProcess, embedding_dimension: int) -> Iterator[Parameter]:
    d = predictor.d_model

    def linear(name: str, fan_in: int, fan_out: int) -> Iterator[Parameter]:
        bound = 1 / math.sqrt(fan_in)
        yield Parameter(f"{name}.weight", (fan_out, fan_in), bound)
        yield Parameter(f"{name}.bias", (fan_out,), bound)

    widths = [embedding_dimension + 1, *[d] * predictor.embedder_layers]  # +1: the share y of the point
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        yield from linear(f"embedder.{index}", fan_in, fan_out)
    for index in range(predictor.layers):
        layer = f"layers.{index}"
        yield Parameter(f"{layer}.attention_in.weight", (3 * d, d), math.sqrt(6 / (3 * d + d)))
        yield Parameter(f"{layer}.attention_in.bias", (3 * d,), 0.0)
        yield Parameter(f"{layer}.attention_out.weight", (d, d), 1 / math.sqrt(d))
        yield Parameter(f"{layer}.attention_out.bias", (d,), 0.0)
        yield from linear(f"{layer}.feedforward_in", d, predictor.feedforward)
        yield from linear(f"{layer}.feedforward_out", predictor.feedforward, d)
        for norm in ("attention_norm", "feedforward_norm"):
            yield Parameter(f"{layer}.{norm}.weight", (d,), 0.0, fill=1.0)
            yield Parameter(f"{layer}.{norm}.bias", (d,), 0.0)
    yield from linear("head.0", d, d)
    yield from linear("head.1", d, OUTPUTS)


def _fourier_kernel(predictor: FourierKernel, width: int) -> Iterator[Parameter]:
    """Yields the parameters of fourier-kernel/1. width: length of a question's and of an option's vector.

    The model multiplies unit vectors by sqrt(width), so the weights are divided by it.
    """
    d, rank = predictor.features, predictor.group_rank
    question, option, position = feature_deviations(predictor)
    root = math.sqrt(width)
    yield Parameter("embedder.question_weight", (d, width), 0.0, deviations=tuple((question / root).tolist()))
    yield Parameter("embedder.option_weight", (d, width), 0.0, deviations=tuple((option / root).tolist()))
    if predictor.position_share:
        yield Parameter("embedder.position_weight", (d,), 0.0, deviations=tuple(position.tolist()))
    yield Parameter("embedder.phase", (d,), math.pi)
    yield Parameter("head.prior", (d,), 0.0)
    yield Parameter("head.group_projection", (rank, d), 0.0, deviations=(GROUP_SPREAD,) * rank)
    yield Parameter("head.log_scale", (1,), 0.0, fill=math.log(predictor.scale))
    yield Parameter("head.log_noise", (1,), 0.0, fill=math.log(predictor.noise))


def feature_deviations(
    predictor: FourierKernel,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Returns the standard deviations of each feature's question, option and position weights, for unit vectors.

    Most features read the question, fewer read it less, and some do not read it. Independently of that, a share of the features
    reads the option's position, and all others read the option's text. The classes depend only on the feature's number.
    Shapes: (d,) each, d features.
    """
    number = np.arange(predictor.features)
    reads_question = np.ones(predictor.features)
    first_option_only = round((1 - predictor.option_only_share) * predictor.features)
    first_weak = first_option_only - round(predictor.weak_question_share * predictor.features)
    reads_question[max(0, first_weak) : first_option_only] = WEAK_QUESTION
    reads_question[first_option_only:] = 0
    # Spreads the features that read positions evenly over all others.
    share = predictor.position_share
    reads_position = np.floor((number + 1) * share) > np.floor(number * share)
    return (
        reads_question / predictor.question_length_scale,
        np.where(reads_position, 0.0, 1 / predictor.option_length_scale),
        np.where(reads_position, 1 / predictor.position_length_scale, 0.0),
    )


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
    key = int.from_bytes(hashlib.sha256(f"{seed}/{parameter.name}".encode()).digest()[:16])
    draws = np.random.Generator(np.random.PCG64(key))
    if parameter.deviations:
        deviations = np.reshape(parameter.deviations, (-1, *[1] * (len(parameter.shape) - 1)))
        normal: NDArray[np.float32] = (draws.standard_normal(parameter.shape) * deviations).astype(np.float32)
        return normal
    if parameter.bound == 0:
        return np.full(parameter.shape, parameter.fill, dtype=np.float32)
    draw = draws.random(math.prod(parameter.shape))
    return ((2 * draw - 1) * parameter.bound).astype(np.float32).reshape(parameter.shape)
