"""What the door reads of a request before it knows who calls."""

from typing import Any

import pytest

from pluralllm.server.members import door
from pluralllm.v1 import federation_pb2 as fed
from pluralllm.v1 import operations_pb2 as ops

LONG = "x" * 4_000_000


@pytest.mark.parametrize(
    "request_", [ops.GetRunRequest(name=LONG), fed.CommitUpdateRequest(task=LONG), ops.CreateRunRequest(run_id=LONG)]
)
def test_a_long_name_is_cut_before_it_is_read(request_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []

    def noted(text: str) -> str:
        lengths.append(len(text))
        return text

    monkeypatch.setattr(door, "printable", noted)
    assert door.about_of(request_).endswith("xxx")
    assert lengths[0] <= 200 + len("runs/")
