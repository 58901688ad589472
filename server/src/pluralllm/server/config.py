"""The coordinator's configuration: flag > environment (PLURALLLM_SERVER_*) > TOML file > default."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator
from pydantic_settings import SettingsConfigDict

from pluralllm.common.configuration import ProcessConfig, check_address

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Address = Annotated[str, AfterValidator(check_address)]

PLAIN_TEXT_LISTEN = "127.0.0.1:7443"
DAY_S = 86_400.0


class ServerConfig(ProcessConfig):
    """Everything that may be set. Paths are relative to the working directory."""

    model_config = SettingsConfigDict(env_prefix="PLURALLLM_SERVER_", extra="forbid", frozen=True)

    state_dir: Path = Path("pluralllm-state")
    # host:port to bind; port 0 takes a free one. The address in use is in state_dir/address.
    listen: Address = "0.0.0.0:7443"
    enrolment_listen: Address = "0.0.0.0:7444"
    # host:port that invites name; default: the first --host of init with the ports in use.
    advertise: Address | None = None
    advertise_enrolment: Address | None = None
    plain_text: bool = False  # no certificates, loopback only: for trials on one machine
    certificate_life_days: Annotated[float, Field(gt=0, le=365)] = 30.0  # of a member; renewed at two thirds of it
    connection_age_s: Seconds = 600.0  # then a client connects anew, and an expired certificate is refused
    connection_grace_s: Seconds = 120.0  # for calls that are under way then; what is cut is resumed
    joins_per_minute: PositiveInt = 30  # tries from one address, and as many questions of standing; together ten times
    calls_per_member: PositiveInt = 64  # at a time
    lease_s: Seconds = 60.0  # a client that is silent for so long loses its place
    silence_s: Seconds = 5.0  # between two polls a client counts as connected for so long
    poll_hold_s: Annotated[float, Field(gt=0, le=55)] = 25.0  # below the 60 s at which proxies drop idle calls
    chunk_idle_s: Seconds = 30.0  # an upload stream that sends nothing for so long is ended; what arrived is kept
    keep_updates: PositiveInt = 3  # rounds whose updates stay on disk, for audit
    max_concurrent_rpcs: Annotated[int, Field(ge=16, le=100_000)] = 4096  # each connected client holds one Poll
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="before")
    @classmethod
    def _plain_text_stays_here(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("plain_text") and "listen" not in values:
            return {**values, "listen": PLAIN_TEXT_LISTEN}
        return values

    @property
    def certificate_life_s(self) -> float:
        return self.certificate_life_days * DAY_S
