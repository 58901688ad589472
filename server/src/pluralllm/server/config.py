"""The coordinator's configuration: flag > environment (PLURALLLM_SERVER_*) > TOML file > default."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt
from pydantic_settings import SettingsConfigDict

from pluralllm.common.configuration import ProcessConfig, check_address

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class ServerConfig(ProcessConfig):
    """Everything that may be set. Paths are relative to the working directory."""

    model_config = SettingsConfigDict(env_prefix="PLURALLLM_SERVER_", extra="forbid", frozen=True)

    state_dir: Path = Path("pluralllm-state")
    # host:port on the loopback interface; port 0 takes a free one. The address in use is in state_dir/address.
    listen: Annotated[str, AfterValidator(check_address)] = "127.0.0.1:7443"
    lease_s: Seconds = 60.0  # a client that is silent for so long loses its place
    silence_s: Seconds = 5.0  # between two polls a client counts as connected for so long
    poll_hold_s: Annotated[float, Field(gt=0, le=55)] = 25.0  # below the 60 s at which proxies drop idle calls
    chunk_idle_s: Seconds = 30.0  # an upload stream that sends nothing for so long is ended; what arrived is kept
    keep_updates: PositiveInt = 3  # rounds whose updates stay on disk, for audit
    max_concurrent_rpcs: Annotated[int, Field(ge=16, le=100_000)] = 4096  # each connected client holds one Poll
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
