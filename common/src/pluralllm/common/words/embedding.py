"""The table [embedding] of a run spec: how every client turns a text into the same vector."""

from typing import Annotated, Any, Literal, Self

from pydantic import FailFast, Field, model_validator

from pluralllm.common.words.plugins import Plugin
from pluralllm.common.words.spec_part import Name, SpecPart
from pluralllm.common.words.templates import check_template

MAX_PROBES = 64

Pooling = Literal["mean", "cls", "last"]


class Probe(SpecPart):
    """A text with the vector that every client's embedding model must give for the text."""

    text: Name
    vector: Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(max_length=65_536), FailFast()]


MIN_COSINE = 0.999


class Embedding(SpecPart):
    """The rules by which all clients turn a text into the same vector; otherwise the shared weights would have no meaning.

    Each option of a question becomes one vector. For this vector, every template is filled in and embedded, and the vectors
    of all templates are concatenated. The fields of a template are {question}, {options} ("A. .. B. .."), {letter} and
    {option}.
    """

    model: Name  # model id; a client may map it to a local folder. With a plug-in, the plug-in's name
    revision: Name = "main"
    # The mean of the tokens' states; the first token's (cls); or the last one's, for causal models. A model's card names it.
    pooling: Pooling = "mean"
    normalize: bool = True  # scales the vector of each template to unit length
    max_tokens: Annotated[int, Field(ge=8, le=8192)] = 256
    templates: Annotated[tuple[Name, ...], Field(min_length=1, max_length=4)] = ("{question}", "{option}")
    dimension: Annotated[int, Field(ge=1, le=65_536)]  # length of the concatenated vector
    probes: Annotated[tuple[Probe, ...], Field(max_length=MAX_PROBES)] = ()
    # A constant: below it two installations embed differently, above it are only rounding errors. It stays in the format
    # because it is part of the hash of every spec.
    min_cosine: Annotated[float, Field(ge=MIN_COSINE, le=MIN_COSINE)] = MIN_COSINE

    # The embedder of another package, in the place of a model: it makes the vector of a whole text, so revision, pooling and
    # max_tokens say nothing. A partner's policy allows embedders by their packages (allowed_embedders).
    plugin: Annotated[Plugin | None, Field(exclude_if=lambda plugin: plugin is None)] = None

    @model_validator(mode="before")
    @classmethod
    def _model_of_plugin(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("plugin"), dict) and "model" not in values:
            return {**values, "model": values["plugin"].get("name", "")}
        return values

    @model_validator(mode="after")
    def _plugin_fits(self) -> Self:
        usual = type(self).model_fields
        if self.plugin is None:
            return self
        if self.model != self.plugin.name:
            raise ValueError(f"model {self.model!r} is not the plug-in's name, {self.plugin.name!r}: leave model out")
        for key in ("revision", "pooling", "max_tokens"):
            if getattr(self, key) != usual[key].default:
                raise ValueError(f"{key} says nothing to a plug-in: leave it out, and see the plug-in's options")
        return self

    @model_validator(mode="after")
    def _probes_fit(self) -> Self:
        if self.dimension % len(self.templates):
            raise ValueError(f"dimension {self.dimension} is not a multiple of the {len(self.templates)} templates")
        width = self.dimension // len(self.templates)
        for number, probe in enumerate(self.probes, 1):
            if len(probe.vector) != width:
                raise ValueError(f"probe {number} has {len(probe.vector)} numbers, one template's vector has {width}")
        for template in self.templates:
            check_template(template)
        return self
