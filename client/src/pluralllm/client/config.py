"""The client daemon's configuration: flag > environment (PLURALLLM_CLIENT_*) > TOML file > default."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, field_validator
from pydantic_settings import SettingsConfigDict

from pluralllm.common.configuration import ProcessConfig, check_address
from pluralllm.common.ids import ID_HELP, is_id
from pluralllm.common.spec import GroupRole


class ClientConfig(ProcessConfig):
    """Everything that may be set. Paths are relative to the working directory."""

    model_config = SettingsConfigDict(env_prefix="PLURALLLM_CLIENT_", extra="forbid", frozen=True)

    client_id: str
    group: Annotated[str, Field(min_length=1, max_length=200)]
    role: GroupRole = GroupRole.TRAIN  # held_out: this group is evaluated and never trains, whatever a coordinator asks
    coordinator: Annotated[str, AfterValidator(check_address)] = "127.0.0.1:7443"
    data: Path  # the private file: JSONL or Parquet
    state_dir: Path = Path("pluralllm-client-state")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    threads: PositiveInt | None = None  # of the training process; None leaves it to torch
    embedding_model_path: Path | None = None  # a local folder to use for the run spec's embedding model
    cache_dir: Path | None = None  # embedded texts; default state_dir/cache. May be shared by daemons of one machine
    policy: Path | None = None  # policy.toml: what this partner allows
    exit_when_run_over: bool = False
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("client_id")
    @classmethod
    def _is_id(cls, client_id: str) -> str:
        if not is_id(client_id):
            raise ValueError(f"must be {ID_HELP}")
        return client_id
