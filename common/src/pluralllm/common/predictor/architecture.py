"""The predictors' parameters: names, shapes and initial values, without torch.

The coordinator makes model version 0 from this module. The models in neural_process.py, fourier_kernel.py and kernel_sums.py
must have exactly these parameters; tests compare the modules. The names are the names in torch's state dict.

Initial values of tnp-d/1 follow torch's defaults for Linear and MultiheadAttention: weights and biases are uniform between
-1/sqrt(fan_in) and 1/sqrt(fan_in). The attention's input projection is Xavier-uniform, and the attention's biases are zeros.
A LayerNorm starts with ones as its weight and zeros as its bias. Source: arXiv 2310.11523 (GPO), arXiv 2207.04179 (TNP-D).

Initial values of fourier-kernel/1 are random Fourier features of Gaussian kernels: normal weights whose standard deviation is
1 / length scale, and phases that are uniform over a period. Source: Rahimi and Recht 2007, Algorithm 1.

The features of kernel-sums/1 are of the same kind. They are no parameters: every client draws them itself (`random_features`).
The files of its versions do not all have the same tensors; `version_layout` and `update_layout` say which ones.
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
from pluralllm.common.words.predictors import AnyPredictor, FourierKernel, KernelSums, NeuralProcess
from pluralllm.common.words.spec import RunSpec

OUTPUTS = 2  # of tnp-d/1: mean and logarithm of the standard deviation of y
WEAK_QUESTION = 1 / math.sqrt(3)  # factor on the question weights of features that read the question less
GROUP_SPREAD = 0.02  # standard deviation of the initial values of the group projections
PRIOR, GROUP_PROJECTION = "head.prior", "head.group_projection"  # the parameters of kernel-sums/1
# Of kernel-sums/1: the sum of the squares of a point's features, if all have the factor 1; and the factor of the other features.
FEATURE_POWER, WEAK_FACTOR = 1.6, 0.3


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the model: its name, its shape and how its initial values are drawn."""

    name: str
    shape: tuple[int, ...]
    bound: float  # initial values are uniform in -bound .. bound
    fill: float = 0.0  # the initial value of all elements if bound is 0 and deviations is empty
    # Standard deviations of normal initial values, one for each row; empty if the values are not normal.
    deviations: tuple[float, ...] = ()


def parameters(predictor: AnyPredictor, embedding_dimension: int) -> tuple[Parameter, ...]:
    """Returns all parameters of a predictor, sorted by name.

    For example, the paper's predictor with embeddings of 384 numbers has parameters with 713,218 values in all.
    """
    match predictor:
        case NeuralProcess():
            tensors = _neural_process(predictor, embedding_dimension)
        case FourierKernel():
            tensors = _fourier_kernel(predictor, embedding_dimension // 2)
        case KernelSums():
            tensors = _kernel_sums(predictor)
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


def _kernel_sums(predictor: KernelSums) -> Iterator[Parameter]:
    d, rank = predictor.features, predictor.group_rank
    yield Parameter(PRIOR, (d,), 0.0)
    yield Parameter(GROUP_PROJECTION, (rank, d), 0.0, deviations=(GROUP_SPREAD,) * rank)


def feature_deviations(
    predictor: FourierKernel | KernelSums,
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


@dataclass(frozen=True, slots=True, eq=False)
class RandomFeatures:
    """The fixed features of kernel-sums/1: factor * sign * cos(question_weight q + option_weight o + position_weight t + phase).

    q and o are unit vectors of `width` numbers. The sign is `option_signs` for the features in `flips`, and 1 for all others.
    Shapes: d features.
    """

    question_weight: NDArray[np.float32]  # (d, width)
    option_weight: NDArray[np.float32]  # (d, width); rows of zeros for features that read positions
    position_weight: NDArray[np.float32]  # (d,)
    phase: NDArray[np.float32]  # (d,)
    factor: NDArray[np.float32]  # (d,)
    flips: NDArray[np.bool_]  # (d,)


def random_features(predictor: KernelSums, width: int) -> RandomFeatures:
    """Draws the features of kernel-sums/1 from the predictor's seed. width: length of a question's and of an option's vector.

    Features that read the question less, or not at all, have the factor 0.3. Every second feature that reads positions changes
    its sign with the number of options, so that scales of different lengths share less.
    """
    d, seed = predictor.features, predictor.feature_seed
    question, option, position = feature_deviations(predictor)
    reads_question_fully = question > WEAK_QUESTION * 1.01 / predictor.question_length_scale
    reads_position = position > 0
    return RandomFeatures(
        initial_values(Parameter("features/question_weight", (d, width), 0.0, deviations=tuple(question)), seed),
        initial_values(Parameter("features/option_weight", (d, width), 0.0, deviations=tuple(option)), seed),
        initial_values(Parameter("features/position_weight", (d,), 0.0, deviations=tuple(position)), seed),
        initial_values(Parameter("features/phase", (d,), math.pi), seed),
        (math.sqrt(2 * FEATURE_POWER / d) * np.where(reads_question_fully, 1.0, WEAK_FACTOR)).astype(np.float32),
        reads_position & (np.cumsum(reads_position) % 2 == 0),
    )


def option_signs(predictor: KernelSums, options: int) -> NDArray[np.float32]:
    """Returns a random sign for each feature, which depends on the number of a question's options. Shape: (features,)."""
    draw = initial_values(Parameter(f"features/sign/{options}", (predictor.features,), 1.0), predictor.feature_seed)
    return np.where(draw < 0, -1.0, 1.0).astype(np.float32)


def layout_for(spec: RunSpec) -> Layout:
    """Returns the layout (names and shapes of the tensors) of a run's model.

    The layout depends only on the spec's predictor and on the dimension of its embeddings, so every process computes
    the same layout.
    """
    return layout_of((tensor.name, tensor.shape) for tensor in parameters(spec.predictor, spec.embedding.dimension))


def finds_subspace(spec: RunSpec, version: int) -> bool:
    """Returns whether the version and the answers to it hold the group projection, in a run whose updates are terms of sums.

    In the first stage of such a run, each version makes the prior better. The version with the number rounds - subspace_rounds is
    the solution, and from it on each version has a better group projection. If rounds are abandoned, the run ends with fewer
    versions: with fewer steps of the second stage, or in the first stage with a prior alone. Every version is a usable model.
    """
    return spec.sums is not None and version >= spec.rounds - spec.sums.subspace_rounds


def version_layout(spec: RunSpec, version: int) -> Layout:
    """Returns the layout of the file of one model version. A run whose updates are terms of sums begins without projection."""
    if spec.sums is None or finds_subspace(spec, version):
        return layout_for(spec)
    return layout_of([(PRIOR, (spec.sums.features,))])


def update_layout(spec: RunSpec, base_version: int) -> Layout:
    """Returns the layout of an update, decoded. base_version: number of the model version that the update starts from.

    An update has the tensors of the model. A term of a sum has the only tensor that the next version changes.
    """
    if spec.sums is None:
        return layout_for(spec)
    if finds_subspace(spec, base_version):
        return layout_of([(GROUP_PROJECTION, (spec.sums.group_rank, spec.sums.features))])
    return version_layout(spec, base_version)


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
