"""Makes the predictor of a run spec, and moves parameter values in and out of it."""

from collections.abc import Mapping
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.common.errors.tree import WrongLayout
from pluralllm.common.predictor.fourier_kernel import FourierKernelPredictor
from pluralllm.common.predictor.interface import PreferencePredictor
from pluralllm.common.predictor.kernel_sums import KernelSumsPredictor
from pluralllm.common.predictor.neural_process import NeuralProcessPredictor
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.predictors import AnyPredictor, FourierKernel, KernelSums, NeuralProcess


def new_predictor(config: AnyPredictor, embedding: Embedding) -> PreferencePredictor:
    """Returns a predictor of the run spec's architecture with initial values.

    `load_weights` replaces these values by the values of a model version.
    """
    match config:
        case NeuralProcess():
            return NeuralProcessPredictor(config, embedding)
        case FourierKernel():
            return FourierKernelPredictor(config, embedding)
        case KernelSums():
            return KernelSumsPredictor(config, embedding)
        case _:
            assert_never(config)


def load_weights(model: PreferencePredictor, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Copies the tensors of a model version into the model. tensors: arrays by parameter name.

    Parameters that the version does not have yet are set to 0, if the model's `may_be_absent` lists them.
    Raises WrongLayout if a name or a shape differs from the model's parameters.
    """
    own = dict(model.named_parameters())
    absent = {name: np.zeros(tuple(own[name].shape), np.float32) for name in model.may_be_absent - tensors.keys()}
    tensors = {**tensors, **absent}
    for name in sorted(own.keys() | tensors.keys()):
        actual_shape = tensors[name].shape if name in tensors else "absent"
        expected_shape = tuple(own[name].shape) if name in own else "absent"
        if actual_shape != expected_shape:
            raise WrongLayout(problem=f"tensor {name} is {actual_shape}, expected {expected_shape}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(torch.from_numpy(np.array(tensors[name])))  # a copy: weights files are mapped read-only


def flat_weights(model: PreferencePredictor) -> NDArray[np.float32]:
    """Returns all parameters of the model as one flat float32 array, in the order of the parameter names.

    Shape: (n,), where n is the number of values in all parameters.
    """
    return np.concatenate([p.detach().cpu().numpy().ravel() for _, p in sorted(model.named_parameters())])
