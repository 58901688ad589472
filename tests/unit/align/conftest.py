"""A model that several modules score with."""

from pathlib import Path

import pytest
from support.exported_model import export
from support.process_harness import tiny_embedding_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an exported model (`model`) and its embedding model (`tiny`)."""
    folder = tmp_path_factory.mktemp("align")
    export(folder / "model")
    tiny_embedding_model(folder / "tiny")
    return folder
