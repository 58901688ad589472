"""An adversarial task: settings and weights with which one row of the update is a linear system in the answers.

One step of plain SGD from weights that the attacker knows, one context question, all others targets. The context has no
influence: its shares are scaled to nothing, and the weights of the attention's output are 0. A client does such a task only if
its owner consents, because the settings depart from every preset.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leak.setting import Flat, Shares, model_of, of_question
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.predictor.data import Episode, GroupData, make_batch
from pluralllm.common.predictor.neural_process import NeuralProcessPredictor
from pluralllm.common.words.spec import RunSpec

WIDTH = 2048  # more than a group has points
SETTINGS: dict[str, Any] = {
    "rounds": 1,
    "predictor": {"d_model": WIDTH, "heads": 8, "feedforward": 8, "dropout": 0.0, "share_scale": 1e-30},
    "training": {
        "optimizer": "sgd",
        "learning_rate": 1.0,
        "schedule": "constant",
        "local_steps": 1,
        "loss": "cross_entropy",
        "sharpness_spread": 0.0,
        "target_temperature": 1.0,
        "episodes": {"min_context": 1, "max_context": 1, "min_targets": 1000, "max_targets": 1000},
    },
    "evaluation": {"holdout_share": 0.0},
}


def settings_for(data: GroupData) -> dict[str, Any]:
    """Returns the settings of the adversarial spec. All questions of the group but one are targets."""
    targets = len(data.questions) - 1
    episodes = {"min_context": 1, "max_context": 1, "min_targets": targets, "max_targets": targets}
    return {**SETTINGS, "training": {**SETTINGS["training"], "episodes": episodes}}


def without_context(spec: RunSpec, values: Flat) -> Flat:
    """Returns weights whose predictions do not depend on the context, and whose head for the mean begins at 0."""
    changed = values.copy()
    for name, rows in (
        ("layers.0.attention_out.weight", None),
        ("layers.0.attention_out.bias", None),
        ("head.1.weight", 1),
    ):
        tensor = values_of(spec, changed, name)
        tensor[: len(tensor) if rows is None else rows] = 0
    return changed


def values_of(spec: RunSpec, values: Flat, name: str) -> Flat:
    """Returns the view of one parameter's values, in the parameter's shape."""
    start = 0
    for tensor, shape in layout_for(spec).tensors:
        size = math.prod(shape)
        if tensor == name:
            return values[start : start + size].reshape(shape)
        start += size
    raise KeyError(name)


@torch.no_grad()
def hidden(spec: RunSpec, base: Flat, data: GroupData) -> NDArray[np.float64]:
    """Returns the inputs of the model's last layer for all points of a group. Shape (P, d_model)."""
    model = model_of(spec, base)
    assert isinstance(model, NeuralProcessPredictor)
    caught: list[torch.Tensor] = []
    model.head[1].register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0]))
    batch = make_batch([(data, Episode((0,), tuple(range(len(data.questions)))))])
    model(batch.context, batch.context_shares * 0, batch.targets)
    return caught[0][0].double().numpy()


def answers_of(spec: RunSpec, base: Flat, delta: Flat, data: GroupData) -> Shares:
    """Returns the shares that the update hands over, by least squares on the row that predicts the mean."""
    row = values_of(spec, delta, "head.1.weight")[0].astype(np.float64)
    points = hidden(spec, base, data)
    errors = np.linalg.lstsq(points.T, row, rcond=1e-9)[0]  # (P,): (true share - predicted share) / targets
    sizes = np.diff(data.offsets)
    guess = 1 / sizes[of_question(data)] + errors * (len(data.questions) - 1)
    shares: Shares = np.maximum(guess, 0) + 1e-9
    return shares / np.add.reduceat(shares, data.offsets[:-1])[of_question(data)]
