"""How a process is configured: flag > environment > TOML file > default. Read once, in `__main__`."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.words.spec import explain


class ProcessConfig(BaseSettings):
    """Frozen, and a misspelt key is an error. Subclasses give the fields and the prefix of the environment variables;
    what no message may repeat has Field(repr=False)."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)
    toml: ClassVar[Path | None] = None  # the file, while `load_config` reads

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic calls by these names
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=cls.toml)


Config = TypeVar("Config", bound=ProcessConfig)


def load_config(kind: type[Config], file: Path | None, flags: Mapping[str, Any]) -> Config:
    """Reads every source; flags that are None were not given. Raises InvalidConfig: file, key, what is allowed."""
    name = str(file) if file is not None else "(flags and environment)"
    if file is not None and not file.is_file():
        raise InvalidConfig(file=name, problems="  there is no such file")
    kind.toml = file
    try:
        return kind(**{key: value for key, value in flags.items() if value is not None})
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(file=name, problems=f"  not TOML: {error}") from error
    except ValidationError as error:
        secret = {key for key, field in kind.model_fields.items() if not field.repr}
        raise InvalidConfig(file=name, problems=explain(error, secret)) from error
    finally:
        kind.toml = None


def origins_of(kind: type[Config], file: Path | None) -> dict[str, str]:
    """Where each key's value comes from, flags aside: the environment variable, the file, or the default."""
    prefix = kind.model_config.get("env_prefix", "")
    sources = (
        (EnvSettingsSource(kind)(), lambda key: f"environment {prefix}{key.upper()}"),
        (TomlConfigSettingsSource(kind, toml_file=file)() if file is not None else {}, lambda _: f"file {file}"),
    )
    found = dict.fromkeys(kind.model_fields, "default")
    for values, name in reversed(sources):
        found |= {key: name(key) for key in values if key in found}
    return found
