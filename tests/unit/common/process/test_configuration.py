from pathlib import Path

import pytest

from pluralllm.common.process.configuration import origins_of
from pluralllm.server.process.config import ServerConfig


def test_each_value_has_the_origin_that_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "coordinator.toml"
    file.write_text('listen = "127.0.0.1:1"\nlease_s = 9\n')
    monkeypatch.setenv("PLURALLLM_SERVER_LEASE_S", "7")
    found = origins_of(ServerConfig, file)
    assert found["lease_s"] == "environment PLURALLLM_SERVER_LEASE_S"
    assert found["listen"] == f"file {file}"
    assert found["silence_s"] == "default"
    assert found.keys() == ServerConfig.model_fields.keys()


def test_without_a_file_there_are_environment_and_defaults_only() -> None:
    assert set(origins_of(ServerConfig, None).values()) == {"default"}
