"""Model version 0 of a run. The coordinator makes it; a client makes it again, so that no crafted weights are trained on."""

from pathlib import Path

from pluralllm.common.predictor.architecture import initial_values, parameters, version_layout
from pluralllm.common.process.files import storage_errors
from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.weights.layout import write_weights
from pluralllm.common.words.spec import RunSpec


def write_first_version(draft: Path, spec: RunSpec) -> Manifest:
    """Writes the file of model version 0 to `draft` and returns its manifest. Raises StorageFull if no space is left.

    The initial parameter values are random numbers. The seed in the spec determines these numbers.
    """
    layout = version_layout(spec, 0)
    names = {name for name, _ in layout.tensors}
    tensors = [p for p in parameters(spec.predictor, spec.embedding.dimension) if p.name in names]
    with storage_errors("the first model version"):
        return write_weights(draft, layout, (initial_values(p, spec.seed).ravel() for p in tensors))
