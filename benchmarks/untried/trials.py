"""The trials: each has a name, the idea that it belongs to, and what it changes of the preset `fourier`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pluralllm.common.predictor.data import GroupData
from pluralllm.common.predictor.fourier_kernel import FourierKernelPredictor
from pluralllm.common.predictor.interface import PreferencePredictor
from pluralllm.common.words.spec import RunSpec, Training
from untried.evidence import choose
from untried.heads import AttentionPredictor, CrossOptionPredictor, kernel_predictor
from untried.learning import Recipe, Steps, adapt
from untried.scoring import Tune, context_of

PRESET = "fourier"  # the preset that every trial changes, and the name of the trial that changes nothing
RANK = 32  # numbers in the message of an option
SAME_BYTES = 833  # features with which messages of that rank make the predictor no larger than the preset's
Vectors = Literal["transformer", "token means", "weighted token means"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One change of the preset `fourier`."""

    name: str
    idea: str
    build: Callable[[RunSpec], PreferencePredictor] = kernel_predictor
    spec: Mapping[str, Any] = field(default_factory=dict)  # changes of the preset's values
    recipe: Recipe = Recipe()
    vectors: Vectors = "transformer"
    trained_as: str = ""  # the trial whose trained model is taken; empty: its own
    tune: Callable[[Training], Tune] | None = None  # changes the model for each context


def by_evidence(*, scales: bool) -> Callable[[Training], Tune]:
    """Returns what chooses the noise (with `scales` the scale too) by the marginal likelihood of a context."""

    def tune(model: PreferencePredictor, data: GroupData, context: tuple[int, ...]) -> None:
        assert isinstance(model, FourierKernelPredictor)
        choose(model, *context_of(data, context), scales=scales)

    return lambda _training: tune


def by_steps(steps: Steps) -> Callable[[Training], Tune]:
    """Returns what takes gradient steps on a context. Which half of the context predicts the other is drawn with a fixed seed."""

    def of(training: Training) -> Tune:
        return lambda model, data, context: adapt(model, data, context, training, steps, np.random.default_rng(0))

    return of


INNER = Steps(count=1, rate=0.3)
TWELVE: Mapping[str, Any] = {"training": {"local_steps": 12}}
CONSTANT: Mapping[str, Any] = {"training": {"local_steps": 12, "schedule": "constant"}}
SMALLER: Mapping[str, Any] = {"predictor": {"features": SAME_BYTES}}

TRIALS = (
    Trial(PRESET, "-"),
    Trial("attention on Fourier features", "a", lambda spec: AttentionPredictor(spec, "features")),
    Trial("attention on unit vectors", "a", lambda spec: AttentionPredictor(spec, "vectors")),
    Trial("noise by marginal likelihood", "c", trained_as=PRESET, tune=by_evidence(scales=False)),
    Trial("noise and scale by marginal likelihood", "c", trained_as=PRESET, tune=by_evidence(scales=True)),
    Trial("10 steps on the prior at test time", "c", trained_as=PRESET, tune=by_steps(Steps(10, 1.0, "head.prior"))),
    Trial("10 steps on all values at test time", "c", trained_as=PRESET, tune=by_steps(Steps(10, 0.1))),
    Trial("attention between options", "d", lambda s: CrossOptionPredictor(s, RANK, attends=True), SMALLER),
    Trial("mean of the other options", "d", lambda s: CrossOptionPredictor(s, RANK, attends=False), SMALLER),
    Trial("means of token vectors", "e", vectors="token means"),
    Trial("weighted means of token vectors", "e", vectors="weighted token means"),
    Trial("first-order MAML, 1 inner step", "b", recipe=Recipe(inner=INNER), tune=by_steps(INNER)),
    Trial("the same without its step at test time", "b", trained_as="first-order MAML, 1 inner step"),
    Trial("12 local steps", "b", spec=TWELVE),
    Trial("Reptile, 12 local steps", "b", spec=CONSTANT, recipe=Recipe(reptile=True)),
)
