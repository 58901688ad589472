"""The client daemon's configuration: flag > environment (PLURALLLM_CLIENT_*) > TOML file > default."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, PositiveInt, field_validator

from pluralllm.common.process.configuration import ProcessConfig
from pluralllm.common.words.addresses import check_address
from pluralllm.common.words.ids import ID_HELP, is_id
from pluralllm.common.words.spec import GroupRole


class JoinConfig(ProcessConfig):
    """What joining needs to know of the daemon's configuration: where things go. The rest may not be written yet."""

    model_config = ConfigDict(extra="ignore")
    env_prefix: ClassVar[str] = "PLURALLLM_CLIENT_"

    state_dir: Path = Path("pluralllm-client-state")
    identity: Path | None = None
    policy: Path | None = None


class ClientConfig(ProcessConfig):
    """Everything that may be set. Paths are relative to the working directory."""

    env_prefix: ClassVar[str] = "PLURALLLM_CLIENT_"

    data: Path  # the private file: JSONL or Parquet
    state_dir: Path = Path("pluralllm-client-state")
    identity: Path | None = None  # folder with key and certificate; default state_dir/identity, where `join` puts them
    coordinator: Annotated[str, AfterValidator(check_address)] | None = None  # default: as in the invite
    # The address of a second coordinator on the same database, called when the first one does not answer.
    standby: Annotated[str, AfterValidator(check_address)] | None = None
    # Who this is, is said by the certificate; these are needed in plain text only, and must agree with it otherwise.
    client_id: str | None = None
    group: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    role: GroupRole | None = None  # held_out: this group is evaluated and never trains, whatever a coordinator asks
    plain_text: bool = False  # no certificates; a coordinator on the loopback interface only
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    threads: PositiveInt | None = None  # of the training process; None leaves it to torch
    embedding_model_path: Path | None = None  # a local folder to use for the run spec's embedding model
    cache_dir: Path | None = None  # embedded texts; default state_dir/cache. May be shared by daemons of one machine
    policy: Path | None = None  # what this partner allows; default state_dir/policy.toml if there is one
    exit_when_run_over: bool = False
    # OpenTelemetry collector (OTLP over HTTP) that spans go to; needs pluralllm-common[tracing]; default: nowhere.
    traces_endpoint: Annotated[str, Field(pattern=r"^https?://[^/]+/?$")] | None = None
    # host:port where the partner's own Prometheus reads /metrics, without certificates; default: nowhere.
    metrics_listen: Annotated[str, AfterValidator(check_address)] | None = None
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("client_id")
    @classmethod
    def _is_id(cls, client_id: str | None) -> str | None:
        if client_id is not None and not is_id(client_id):
            raise ValueError(f"must be {ID_HELP}")
        return client_id

    @property
    def identity_folder(self) -> Path:
        return self.identity or self.state_dir / "identity"

    @property
    def policy_file(self) -> Path | None:
        default = self.state_dir / "policy.toml"
        return self.policy or (default if default.is_file() else None)
