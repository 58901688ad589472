"""Parameter values go into a predictor and out of it bit for bit, and values of another layout are refused."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_survey import DIMENSION, KERNEL, small_spec, write_version_0

from pluralllm.common.errors.tree import WrongLayout
from pluralllm.common.predictor.architecture import initial_values, layout_for, parameters
from pluralllm.common.predictor.interface import PreferencePredictor
from pluralllm.common.predictor.model import flat_weights, load_weights, new_predictor
from pluralllm.common.weights.layout import flat_values, tensors_of

SPEC = small_spec({"predictor": {"layers": 3}})


@pytest.fixture
def model() -> PreferencePredictor:
    return new_predictor(SPEC.predictor, SPEC.embedding)


@pytest.mark.parametrize("over", [{}, {"predictor": KERNEL}], ids=["tnp-d/1", "fourier-kernel/1"])
def test_weights_go_in_and_out_bit_for_bit(over: dict[str, Any], tmp_path: Path) -> None:
    spec = small_spec({"seed": 4, **over})
    path = write_version_0(tmp_path / "v0", spec)
    made = new_predictor(spec.predictor, spec.embedding)
    load_weights(made, tensors_of(path))
    assert np.array_equal(flat_weights(made), flat_values(path, layout_for(spec)))


def test_version_0_of_each_architecture_has_the_bits_that_it_had_in_earlier_releases(tmp_path: Path) -> None:
    digests = {}
    for architecture, over in (("tnp-d/1", {}), ("fourier-kernel/1", {"predictor": KERNEL})):
        path = write_version_0(tmp_path / "v0", small_spec({"seed": 4, **over}))
        digests[architecture] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert digests == {"tnp-d/1": "cc7a1dc2d547227c", "fourier-kernel/1": "91531b47935ff1de"}


@pytest.mark.parametrize(
    ("name", "value", "expected_text"),
    [
        ("head.1.bias", None, r"tensor head.1.bias is absent, expected \(2,\)"),
        ("head.1.bias", np.zeros(3, np.float32), r"tensor head.1.bias is \(3,\), expected \(2,\)"),
        ("surprise", np.zeros(3, np.float32), r"tensor surprise is \(3,\), expected absent"),
    ],
)
def test_weights_of_another_layout_are_refused(
    model: PreferencePredictor,
    name: str,
    value: "np.ndarray[tuple[int], np.dtype[np.float32]] | None",
    expected_text: str,
) -> None:
    tensors = {p.name: initial_values(p, 3) for p in parameters(SPEC.predictor, DIMENSION)}
    tensors.pop(name, None)
    if value is not None:
        tensors[name] = value
    with pytest.raises(WrongLayout, match=expected_text):
        load_weights(model, tensors)
