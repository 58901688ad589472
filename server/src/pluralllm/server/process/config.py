"""The coordinator's configuration. Its sources, strongest first: flag, environment (PLURALLLM_SERVER_*), TOML file, default."""

import itertools
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, SecretStr, field_validator, model_validator

from pluralllm.common.process.configuration import LogFormat, ProcessConfig
from pluralllm.common.weights.pieces import PIECE_BYTES, SLOWEST_LINK_BYTES_S, transfer_s
from pluralllm.common.words.address_fields import Address, ListenAddress
from pluralllm.common.words.addresses import PLAIN_TEXT_ADDRESS, overlap


def check_database_url(secret: SecretStr) -> SecretStr:
    """Checks that a configured URL is the URL of a PostgreSQL database, and returns it unchanged. Pydantic calls this function.

    Raises ValueError if the URL is of another kind. The error's text does not contain the URL's password.
    """
    import sqlalchemy as sa  # noqa: PLC0415 - takes half a second, which a configuration without a URL need not wait

    try:
        url = sa.make_url(secret.get_secret_value())
    except sa.exc.ArgumentError:
        raise ValueError("must be postgresql://USER:PASSWORD@HOST:PORT/NAME") from None
    if url.drivername not in ("postgresql", "postgresql+psycopg"):
        raise ValueError(f"is of {url.drivername}, must be postgresql://USER:PASSWORD@HOST:PORT/NAME")
    return secret


Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]

DAY_S = 86_400.0
SHORTEST_IDLE_S = 2 * transfer_s(PIECE_BYTES)  # a shorter limit would end uploads over the slowest supported link


class ServerConfig(ProcessConfig):
    """All settings of the coordinator. Relative paths are relative to the working directory."""

    env_prefix: ClassVar[str] = "PLURALLLM_SERVER_"

    state_dir: Path = Path("pluralllm-state")
    # host:port to bind; port 0 takes a free port. The address in use is in the file state_dir/address.
    listen: ListenAddress = "0.0.0.0:7443"
    enrolment_listen: ListenAddress = "0.0.0.0:7444"
    # host:port that invites name; default: the first --host of `init` with the port in use.
    advertise: Address | None = None
    advertise_enrolment: Address | None = None
    plain_text: bool = False  # no certificates, loopback only: for trials on one machine
    certificate_life_days: Annotated[float, Field(gt=0, le=365)] = 30.0  # a member renews after two thirds of this time
    connection_age_s: Seconds = 600.0  # then a client must reconnect, so that an expired certificate is refused
    # Limit of Join calls with a wrong token and of GetMembership calls without a certificate, from one network (an IPv4 address
    # or an IPv6 /64); ten times as many from all networks together. Each token and each certificate has as many of its own.
    joins_per_minute: PositiveInt = 30
    calls_per_member: PositiveInt = 64  # calls of one member at the same time
    calls_per_second: PositiveInt = 50  # rate of each kind of call of one member; ten times as many may come at once
    # Rate of Hello of one member; a sixth of it may come at once. A daemon says Hello once to each process of the coordinator.
    hellos_per_minute: PositiveInt = 60
    lease_s: Seconds = 60.0  # a client that is silent for this time loses its slot in the round
    silence_s: Seconds = 5.0  # a client counts as connected for this time after its last poll
    poll_hold_s: Annotated[float, Field(gt=0, le=55)] = 40.0  # below the 60 s after which proxies drop idle calls
    chunk_idle_s: Seconds = 30.0  # an upload that sends nothing for this time is ended; chunks that arrived are kept
    # Database of the records: postgresql://USER:PASSWORD@HOST/NAME; default: an SQLite file in state_dir.
    database_url: Annotated[SecretStr, AfterValidator(check_database_url)] | None = Field(None, repr=False)
    # Bucket of models and updates: s3://BUCKET/PREFIX (gs, az), credentials as in AWS_*; default: files in state_dir.
    blob_url: Annotated[str, Field(pattern=r"^(s3|gs|az)://[^/]+(/.*)?$")] | None = None
    blob_endpoint: Annotated[str, Field(pattern=r"^https?://[^/]+")] | None = None  # of a store other than Amazon's S3
    keep_updates: PositiveInt = 3  # rounds whose updates stay on disk, for `verify`
    # Limit of connections on the main port. The limit of open files may lower it: half of them are for connections.
    max_connections: Annotated[int, Field(ge=8, le=1_000_000)] = 16_384
    # Limit of polls that are held open; each connected client holds one. A poll above it is answered at once, with its reason.
    max_held_polls: Annotated[int, Field(ge=16, le=1_000_000)] = 16_384
    max_concurrent_rpcs: Annotated[int, Field(ge=16, le=100_000)] = 4096  # limit of all other open calls
    # host:port of the operator's page, read-only and without certificates, so on loopback: 127.0.0.1:7446; default: no page.
    page_listen: ListenAddress | None = None
    # host:port of the page for observers and administrators on other machines, with TLS and their identity: 0.0.0.0:7447;
    # default: none.
    page_remote_listen: ListenAddress | None = None
    # host:port that links to this page name; default: the first --host of `init` with the port in use.
    advertise_page: Address | None = None
    # OpenTelemetry collector (OTLP over HTTP) for spans; needs pluralllm-common[tracing]; default: no spans.
    traces_endpoint: Annotated[str, Field(pattern=r"^https?://[^/]+/?$")] | None = None
    # host:port where Prometheus reads /metrics, without certificates, so on loopback: 127.0.0.1:9464; default: no metrics.
    metrics_listen: ListenAddress | None = None
    # A file for the log, opened anew after SIGHUP (logrotate); default: the log goes to standard error.
    log_file: Path | None = None
    log_format: LogFormat = "auto"  # lines for a person on a terminal, JSON otherwise; or json or console, always
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="before")
    @classmethod
    def _plain_text_stays_here(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("plain_text") and "listen" not in values:
            return {**values, "listen": PLAIN_TEXT_ADDRESS}
        return values

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.advertise is not None and self.advertise == self.advertise_enrolment:
            raise ValueError("advertise and advertise_enrolment are the same, but the two ports need two addresses")
        ports = ["listen", *([] if self.plain_text else ["enrolment_listen"]), "page_listen"]
        ports += ["page_remote_listen", "metrics_listen"]
        opened = [(key, address) for key in ports if (address := getattr(self, key)) is not None]
        for (one, address), (other, same) in itertools.combinations(opened, 2):
            if overlap(address, same):
                raise ValueError(
                    f"{one} and {other} have the same port ({address}, {same}); give each a port of its own"
                )
        return self

    @model_validator(mode="after")
    def _page_has_identities(self) -> Self:
        if self.plain_text and self.page_remote_listen is not None:
            raise ValueError(
                "page_remote_listen needs certificates, which identify its readers, and plain_text has none; take one of them"
                " out, or set page_listen and read that page through ssh -L"
            )
        return self

    @field_validator("chunk_idle_s")
    @classmethod
    def _is_longer_than_a_piece(cls, chunk_idle_s: float) -> float:
        if chunk_idle_s < SHORTEST_IDLE_S:
            link, piece = f"{SLOWEST_LINK_BYTES_S // 1024} KiB/s", f"{PIECE_BYTES // 1024} KiB"
            raise ValueError(
                f"must be at least {SHORTEST_IDLE_S:g}: twice the time of a piece of {piece} on the slowest link ({link})"
            )
        return chunk_idle_s

    @property
    def certificate_life_s(self) -> float:
        return self.certificate_life_days * DAY_S
