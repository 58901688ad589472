"""The configuration of the client daemon.

A flag overrides an environment variable (PLURALLLM_CLIENT_*), a variable overrides the TOML file, and the file overrides the
default.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, PositiveInt, SecretStr, field_validator

from pluralllm.common.process.configuration import LogFormat, ProcessConfig
from pluralllm.common.process.environment import proxies_of
from pluralllm.common.process.proxies import Proxies, names_a_proxy, parse_proxy
from pluralllm.common.text.printable import check_group_name
from pluralllm.common.words.address_fields import Address, ListenAddress
from pluralllm.common.words.ids import ID_HELP, is_id
from pluralllm.common.words.spec import GroupRole


def check_proxy(secret: SecretStr) -> SecretStr:
    """Checks the URL of a proxy, and returns it unchanged. Raises ValueError, whose text does not contain the URL's password."""
    url = secret.get_secret_value()
    if not url or names_a_proxy(url):
        parse_proxy(url)
    return secret


ProxyUrl = Annotated[SecretStr, AfterValidator(check_proxy)]


class JoinConfig(ProcessConfig):
    """The keys of the daemon's configuration that joining and reading need. All other keys are ignored and may be missing."""

    model_config = ConfigDict(extra="ignore")
    env_prefix: ClassVar[str] = "PLURALLLM_CLIENT_"

    state_dir: Path = Path("pluralllm-client-state")
    identity: Path | None = None
    policy: Path | None = None
    coordinator: Address | None = None
    enrolment: Address | None = None
    proxy: ProxyUrl | None = Field(None, repr=False)

    @property
    def proxies(self) -> Proxies:
        """The way to the coordinator."""
        return proxies_of(None if self.proxy is None else self.proxy.get_secret_value())

    @property
    def identity_folder(self) -> Path:
        """The folder with this member's key and certificate."""
        return self.identity or self.state_dir / "identity"


class ClientConfig(ProcessConfig):
    """The whole configuration of the daemon. Relative paths start at the working directory."""

    env_prefix: ClassVar[str] = "PLURALLLM_CLIENT_"

    data: Path  # the private file: JSONL or Parquet
    state_dir: Path = Path("pluralllm-client-state")
    identity: Path | None = None  # folder with key and certificate; default state_dir/identity, where `join` puts them
    # host:port; default: the address in the invite, or the one that the coordinator has told since
    coordinator: Address | None = None
    # The same for the coordinator's enrolment port, which doctor and the daemon's diagnosis ask.
    enrolment: Address | None = None
    # The address of a second coordinator on the same database, called when the first one does not answer.
    standby: Address | None = None
    # HTTP proxy to the coordinator, http://HOST:PORT, http://USER:PASSWORD@HOST:PORT or none; default: https_proxy or HTTPS_PROXY
    # of the environment. no_proxy or NO_PROXY names hosts that are reached directly; this machine always is.
    proxy: ProxyUrl | None = Field(None, repr=False)
    # In plain text, client_id and group are required. Otherwise the certificate says who this is; these three must agree with it.
    client_id: str | None = None
    group: Annotated[str, AfterValidator(check_group_name)] | None = None
    role: GroupRole | None = None  # held_out: this group is evaluated and never trains, whatever a coordinator asks
    plain_text: bool = False  # no certificates; the coordinator must be on the loopback interface
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    threads: PositiveInt | None = None  # CPU threads of the training process; None leaves the number to torch
    embedding_model_path: Path | None = None  # a local folder with the run spec's embedding model
    cache_dir: Path | None = None  # for embedded texts; default state_dir/cache. Daemons of one machine may share it
    policy: Path | None = None  # the file with what this partner allows; default state_dir/policy.toml if it exists
    # A folder or file on other storage, to which each new model version and audit head is appended; default: none.
    history_copy: Path | None = None
    exit_when_run_over: bool = False  # the daemon ends when the first run ends
    # Only for tests that compare whole runs bit by bit: with the seeds of the coordinator, the coordinator can repeat a training
    # and read answers from the update.
    shared_seeds: bool = False
    # An OpenTelemetry collector (OTLP over HTTP) to send spans to; needs pluralllm-common[tracing]; default: none are sent.
    traces_endpoint: Annotated[str, Field(pattern=r"^https?://[^/]+/?$")] | None = None
    # host:port at which the partner's own Prometheus reads /metrics, without certificates; default: no such port is opened.
    metrics_listen: ListenAddress | None = None
    # A file for the log, opened anew after SIGHUP (logrotate); default: the log goes to standard error.
    log_file: Path | None = None
    log_format: LogFormat = "auto"  # lines for a person on a terminal, JSON otherwise; or json or console, always
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("client_id")
    @classmethod
    def _is_id(cls, client_id: str | None) -> str | None:
        if client_id is not None and not is_id(client_id):
            raise ValueError(f"must be {ID_HELP}")
        return client_id

    @property
    def proxies(self) -> Proxies:
        """The way to the coordinator."""
        return proxies_of(None if self.proxy is None else self.proxy.get_secret_value())

    @property
    def identity_folder(self) -> Path:
        """The folder with this member's key and certificate."""
        return self.identity or self.state_dir / "identity"

    @property
    def policy_file(self) -> Path | None:
        """The file with the partner's policy. None if there is no such file; then the default policy holds."""
        default = self.state_dir / "policy.toml"
        return self.policy or (default if default.is_file() else None)
