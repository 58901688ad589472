"""A block of a model that could not be read is read again for the next client."""

from pathlib import Path
from typing import Any

import pytest

from pluralllm.common.weights.chunks import manifest_of
from pluralllm.server.storage import model_chunks
from pluralllm.server.storage.model_chunks import ModelChunks


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("can't start new thread")])
async def test_a_block_that_could_not_be_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"model")
    manifest, chunks = manifest_of(path), ModelChunks()

    def fail(*_: Any) -> list[bytes]:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(model_chunks, "_read_block", fail)
        with pytest.raises(type(error)):
            await chunks.message(path, manifest, 0)
    assert b"model" in await chunks.message(path, manifest, 0)
