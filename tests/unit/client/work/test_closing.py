"""The update of a closing round is 0, and tells nothing about its client."""

from pathlib import Path

import numpy as np
import pytest
from support.coordinator_harness import small_spec

from pluralllm.client.work import closing
from pluralllm.client.work.closing import untrained
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.weights.layout import flat_values, read_layout


@pytest.mark.parametrize("piece", [100, 10**6])
def test_an_update_without_training_is_0_and_counts_as_one_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(closing, "PIECE", piece)
    spec, out = small_spec(), tmp_path / "delta"
    made = untrained(spec, out)
    assert (made.examples, made.measured.target_questions, made.measured.first_target_questions) == (1, 0, 0)
    values = flat_values(out, read_layout(out))
    assert values.size == layout_for(spec).values
    assert not np.any(values)
