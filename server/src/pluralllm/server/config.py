"""The coordinator's configuration: flag > environment (PLURALLLM_SERVER_*) > TOML file > default."""

import ipaddress
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from pluralllm.common.errors import InvalidConfig, NotLoopback
from pluralllm.common.spec import explain

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class ServerConfig(BaseSettings):
    """Everything that may be set. Paths in a file are relative to the working directory."""

    model_config = SettingsConfigDict(env_prefix="PLURALLLM_SERVER_", extra="forbid", frozen=True)

    state_dir: Path = Path("pluralllm-state")
    listen: str = "127.0.0.1:7443"  # host:port; port 0 takes a free one, its number is in state_dir/address
    lease_s: Seconds = 60.0  # a client that is silent for so long loses its place
    silence_s: Seconds = 5.0  # between two polls a client counts as connected for so long
    poll_hold_s: Annotated[float, Field(gt=0, le=55)] = 25.0  # below the 60 s at which proxies drop idle calls
    chunk_idle_s: Seconds = 30.0  # an upload stream that sends nothing for so long is ended; what arrived is kept
    keep_updates: PositiveInt = 3  # rounds whose updates stay on disk, for audit
    max_concurrent_rpcs: Annotated[int, Field(ge=16, le=100_000)] = 4096  # each connected client holds one Poll
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("listen")
    @classmethod
    def _host_and_port(cls, listen: str) -> str:
        host, separator, port = listen.rpartition(":")
        if not separator or not host or not port.isdecimal() or int(port) > 65_535:
            raise ValueError("must be host:port, for example 127.0.0.1:7443")
        return listen

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic calls by these names
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _File(settings_cls)


class _File(TomlConfigSettingsSource):
    """The TOML file given by --config, if any."""

    path: Path | None = None

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, toml_file=self.path)


def load_config(file: Path | None, flags: dict[str, Any]) -> ServerConfig:
    """Reads every source once. Raises InvalidConfig (file, key, what is allowed) and NotLoopback."""
    name = str(file) if file is not None else "(flags and environment)"
    _File.path = file
    try:
        if file is not None and not file.is_file():
            raise InvalidConfig(file=name, problems="  there is no such file")
        config = ServerConfig(**{key: value for key, value in flags.items() if value is not None})
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(file=name, problems=f"  not TOML: {error}") from error
    except ValidationError as error:
        raise InvalidConfig(file=name, problems=explain(error)) from error
    finally:
        _File.path = None
    check_loopback(config.listen)
    return config


def check_loopback(listen: str) -> None:
    """Plain text stays on this machine: members' identity and weights would be readable and forgeable on any other interface.

    Raises NotLoopback.
    """
    host = listen.rpartition(":")[0].strip("[]")
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise NotLoopback(address=listen)
