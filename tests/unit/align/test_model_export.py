"""`pluralllm model export` over a connection that breaks: a model that was in the folder before stays whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.exported_model import SPEC, export

from pluralllm.align.commands import model
from pluralllm.align.model_folder import CONFIG, WEIGHTS, check_weights
from pluralllm.common.errors.tree import Unreachable
from pluralllm.common.text.reading import read_json
from pluralllm.common.words.names import ModelName

DIGEST = "d" * 64
RECORD: dict[str, Any] = {
    "name": "runs/r/models/0",
    "version": 0,
    "round": 0,
    "digest": DIGEST,
    "record_sha256": "c" * 64,
    "parent_record_sha256": "",
}


class BreakingRemote:
    """A coordinator that answers the first calls; then the connection breaks."""

    def __init__(self, answers: int) -> None:
        self._left, self.pulled = answers, ""

    def _answer(self, value: Any) -> Any:
        if not self._left:
            raise Unreachable(address="x:1", problem="it broke")
        self._left -= 1
        return value

    def model_record(self, _: ModelName) -> tuple[dict[str, Any], int, bytes]:
        whole: tuple[dict[str, Any], int, bytes] = self._answer((RECORD, 1, SPEC.canonical_json()))
        return whole

    def evaluations(self, _: str) -> list[dict[str, Any]]:
        return list(self._answer([]))

    def get_run(self, _: str) -> dict[str, Any]:
        return dict(self._answer({"participants": []}))

    def rounds(self, _: str) -> list[dict[str, Any]]:
        return list(self._answer([]))

    def pull_model(self, name: ModelName, folder: Path, _: Callable[[int, int], None]) -> None:
        self._answer(None)
        self.pulled = str(name)
        (folder / WEIGHTS).write_bytes(b"new")


@pytest.mark.parametrize("answers", range(6))
def test_an_export_that_breaks_off_leaves_the_model_in_its_folder_whole(
    answers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export(tmp_path / "model")
    monkeypatch.setattr(model, "remote", lambda _: BreakingRemote(answers))
    with pytest.raises(Unreachable):
        model.export("r", folder)
    check_weights(read_json(folder / CONFIG), [folder / WEIGHTS], "model")


def test_the_version_that_was_the_current_one_at_the_start_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, connection = export(tmp_path / "model"), BreakingRemote(6)
    monkeypatch.setattr(model, "remote", lambda _: connection)
    model.export("r", folder)
    assert connection.pulled == RECORD["name"]
    assert read_json(folder / CONFIG)["weights_sha256"] == DIGEST
