"""A folder of an embedding model is known by its config.json."""

from pathlib import Path

from pluralllm.common.process.model_folder import is_model_folder


def test_a_model_folder_has_a_config_file(tmp_path: Path) -> None:
    assert not is_model_folder(tmp_path)
    assert not is_model_folder(tmp_path / "none")
    (tmp_path / "config.json").mkdir()
    assert not is_model_folder(tmp_path)
    (tmp_path / "config.json").rmdir()
    (tmp_path / "config.json").touch()
    assert is_model_folder(tmp_path)
