"""The key `proxy` of client.toml: it is checked when the file is read, and its password is shown nowhere."""

from pathlib import Path

import pytest

from pluralllm.client.process.config import ClientConfig, JoinConfig
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.process.configuration import load_config

COORDINATOR = "fl.example.org:7443"


@pytest.fixture(params=[ClientConfig, JoinConfig])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[ClientConfig] | type[JoinConfig]:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    chosen: type[ClientConfig] | type[JoinConfig] = request.param
    return chosen


def config_of(kind: type[ClientConfig] | type[JoinConfig], folder: Path, line: str) -> ClientConfig | JoinConfig:
    file = folder / "client.toml"
    file.write_text(f'data = "answers.jsonl"\n{line}\n')
    return load_config(kind, file, {})


def test_the_password_of_the_proxy_reaches_the_proxy_and_no_text(
    kind: type[ClientConfig] | type[JoinConfig], tmp_path: Path
) -> None:
    config = config_of(kind, tmp_path, 'proxy = "http://ann:hidden@proxy.example:3128"')
    proxy = config.proxies.to(COORDINATOR)
    assert proxy is not None
    assert (proxy.address, proxy.credentials) == ("proxy.example:3128", "ann:hidden")
    assert "hidden" not in f"{config!r} {config} {config.model_dump(mode='json')} {config.proxies!r}"


@pytest.mark.parametrize("url", ["socks5://ann:hidden@proxy.example:1080", "http://ann:hidden", ""])
def test_a_proxy_that_cannot_be_used_is_refused_without_its_password(
    kind: type[ClientConfig] | type[JoinConfig], tmp_path: Path, url: str
) -> None:
    with pytest.raises(InvalidConfig, match=r"proxy: must be http://HOST:PORT") as refusal:
        config_of(kind, tmp_path, f'proxy = "{url}"')
    assert "hidden" not in str(refusal.value)


def test_none_overrides_the_environment(
    kind: type[ClientConfig] | type[JoinConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert config_of(kind, tmp_path, "").proxies.to(COORDINATOR) is not None
    for spelling in ("none", "NONE"):
        assert config_of(kind, tmp_path, f'proxy = "{spelling}"').proxies.to(COORDINATOR) is None
