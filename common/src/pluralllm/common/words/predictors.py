"""The predictor table of the run spec: one class for each architecture, with the settings that decide the model's shape.

The key `architecture` names the version of the code that defines a predictor. The code of a version never changes.
"""

from importlib.metadata import version
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter, model_validator

from pluralllm.common.words.spec_part import Positive, Seed, Share, SpecPart, Width

ARCHITECTURES = NEURAL_PROCESS, FOURIER_KERNEL, KERNEL_SUMS = "tnp-d/1", "fourier-kernel/1", "kernel-sums/1"
SUMS_SHOW = "a coordinator can compute this group's answers from its sums"  # the danger of kernel-sums/1
MAX_SHOWN = 40  # characters of an unknown architecture in an error


class NeuralProcess(SpecPart):
    """The transformer neural process of arXiv 2503.09925. A table that names no architecture has this one."""

    architecture: Literal["tnp-d/1"] = "tnp-d/1"
    d_model: Width = 128
    embedder_layers: Annotated[int, Field(ge=2, le=16)] = 4
    layers: Annotated[int, Field(ge=1, le=64)] = 6
    heads: Width = 4
    feedforward: Annotated[int, Field(ge=1, le=16_384)] = 128
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # unit_variance multiplies unit vectors of n numbers by sqrt(n).
    input_scale: Literal["none", "unit_variance"] = "none"
    share_scale: Annotated[float, Field(gt=0, le=1_000)] = 1.0  # factor on the shares in the context

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError(f"heads {self.heads} does not divide d_model {self.d_model}")
        return self

    def problem_with(self, unit_vectors: bool, _templates: int) -> str | None:
        """Returns why this predictor cannot read the run's embeddings; None if it can.

        unit_vectors: whether each template's vector has length 1. _templates: number of templates, which does not matter here.
        """
        if self.input_scale == "unit_variance" and not unit_vectors:
            return "predictor.input_scale unit_variance is for unit vectors: set embedding.normalize = true"
        return None


class RandomFeatures(SpecPart):
    """The settings that random Fourier features of a question and an option are drawn by.

    The embedding must have two templates, the first for the question and the second for the option, with unit vectors.
    """

    architecture: str
    # Distances between unit vectors at which the kernel has fallen to exp(-1/2).
    question_length_scale: Annotated[float, Field(ge=0.01, le=100)] = 0.775
    option_length_scale: Annotated[float, Field(ge=0.01, le=100)] = 0.707  # the same for options
    # The same for positions: the first of a question's options has position 0 and the last has position 1.
    position_length_scale: Annotated[float, Field(ge=0.01, le=100)] = 0.212
    weak_question_share: Share = (
        0.19  # share of the features that read the question less, at sqrt(3) times the length scale
    )
    option_only_share: Share = 0.19  # share of the features that do not read the question
    # Share of the features that read the option's position instead of its text. With 0, positions are no input: for questions
    # whose options have no order, such as candidate answers.
    position_share: Share = 0.5

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.weak_question_share + self.option_only_share > 1:
            raise ValueError("weak_question_share + option_only_share is above 1")
        return self

    def problem_with(self, unit_vectors: bool, templates: int) -> str | None:
        """Returns why this predictor cannot read the run's embeddings; None if it can.

        unit_vectors: whether each template's vector has length 1. templates: number of templates.
        """
        if unit_vectors and templates == 2:
            return None
        return (
            f"predictor.architecture {self.architecture} reads two unit vectors, of the question and of the option: set "
            "embedding.normalize = true and give embedding.templates two templates"
        )


class FourierKernel(RandomFeatures):
    """Gaussian process regression on the context's answers, with a trained kernel on random Fourier features of the options.

    The settings describe the kernel of the first model version; training then changes it.
    """

    architecture: Literal["fourier-kernel/1"]
    features: Width = 896
    group_rank: Annotated[int, Field(ge=1, le=256)] = 16  # dimensions of the part of the kernel in which groups differ
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of single features in training
    scale: Positive = 0.6  # variance of the kernel of the first model version
    noise: Annotated[float, Field(ge=1e-3, le=100)] = (
        0.5  # variance of the noise in the context's answers, of the first version
    )


class KernelSums(RandomFeatures):
    """Gaussian process regression on the context's answers, with Fourier features that are fixed by a seed and never sent.

    Clients do not train: an update is a term of a sum, from which the coordinator solves a linear problem. A coordinator can
    compute a group's answers from its sums, so a client takes part only if its policy sets allow_sums = true.
    """

    architecture: Literal["kernel-sums/1"]
    features: Annotated[int, Field(ge=8, le=65_536)] = 16_384
    feature_seed: Seed = 0  # draws the features
    group_rank: Annotated[int, Field(ge=1, le=64)] = 7  # dimensions of the part of the kernel in which groups differ
    # Rounds at the end of the run that find the part of the kernel in which groups differ. The rounds before solve the prior.
    subspace_rounds: Annotated[int, Field(ge=1, le=100)] = 3


AnyPredictor = NeuralProcess | FourierKernel | KernelSums


def architecture_of(value: Any) -> Any:
    """Returns the architecture that a predictor table names; the first architecture if the table names none."""
    if isinstance(value, dict):
        return value.get("architecture", NEURAL_PROCESS)
    return getattr(value, "architecture", NEURAL_PROCESS)


def _check_known(value: Any) -> Any:
    architecture = architecture_of(value)
    if architecture not in ARCHITECTURES:
        names = f"{', '.join(ARCHITECTURES[:-1])} and {ARCHITECTURES[-1]}"
        release = version("pluralllm-common")
        raise ValueError(
            f"architecture {ascii(architecture)[:MAX_SHOWN]} needs another release of PluralLLM; this is release {release}, "
            f"which knows {names}. If the run's other members know it, upgrade to their release"
        )
    return value


Predictor = Annotated[
    Annotated[NeuralProcess, Tag(NEURAL_PROCESS)]
    | Annotated[FourierKernel, Tag(FOURIER_KERNEL)]
    | Annotated[KernelSums, Tag(KERNEL_SUMS)],
    Discriminator(architecture_of),
    BeforeValidator(_check_known),
]
_ADAPTER: TypeAdapter[AnyPredictor] = TypeAdapter(Predictor)


def parse_predictor(values: Any) -> AnyPredictor:
    """Returns the predictor table with these values. Raises ValidationError if a value or the architecture is not allowed."""
    return _ADAPTER.validate_python(values)
