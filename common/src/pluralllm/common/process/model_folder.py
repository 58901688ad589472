"""The test by which every command knows a folder of an embedding model, before the library that loads the model is imported."""

from pathlib import Path


def is_model_folder(path: Path) -> bool:
    """Returns whether a path is a folder with a config.json, as the library `transformers` writes a model."""
    return (path / "config.json").is_file()
