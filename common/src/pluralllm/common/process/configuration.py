"""Configuration of a process: flag > environment > TOML file > default. `__main__` reads it once."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.words.spec import explain


class ProcessConfig(BaseModel):
    """The configuration of one process: frozen, and a misspelt key is an error.

    A subclass gives the fields and the prefix of the environment variables. A value that no message may repeat has
    Field(repr=False). The constructor reads nothing: `load_config` brings the sources together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    env_prefix: ClassVar[str]


Config = TypeVar("Config", bound=ProcessConfig)


def load_config(kind: type[Config], file: Path | None, flags: Mapping[str, Any]) -> Config:
    """Reads every source; a flag that is None was not given. Raises InvalidConfig: file, key, what is allowed."""
    name = str(file) if file is not None else "(flags and environment)"
    if file is not None and not file.is_file():
        raise InvalidConfig(file=name, problems="  there is no such file")
    try:
        of_file = {} if file is None else _values_of_file(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(file=name, problems=f"  not TOML: {error}") from error
    of_flags = {key: value for key, value in flags.items() if value is not None}
    try:
        return kind.model_validate(of_file | _values_of_environment(kind) | of_flags)
    except ValidationError as error:
        secret = {key for key, field in kind.model_fields.items() if not field.repr}
        raise InvalidConfig(file=name, problems=explain(error, secret)) from error


def origins_of(kind: type[Config], file: Path | None) -> dict[str, str]:
    """Returns the source of each key's value, flags aside: the environment variable, the file or the default."""
    of_file = {} if file is None else _values_of_file(file)
    return (
        dict.fromkeys(kind.model_fields, "default")
        | {key: f"file {file}" for key in of_file if key in kind.model_fields}
        | {key: f"environment {kind.env_prefix}{key.upper()}" for key in _values_of_environment(kind)}
    )


def _values_of_file(file: Path) -> dict[str, Any]:
    """Reads a TOML file. Raises TOMLDecodeError, UnicodeDecodeError."""
    with file.open("rb") as opened:
        return tomllib.load(opened)


def _values_of_environment(kind: type[ProcessConfig]) -> dict[str, str]:
    """Returns the fields that have a variable. The case of a variable's name does not matter."""
    variables = {name.lower(): value for name, value in os.environ.items()}
    names = {key: f"{kind.env_prefix}{key}".lower() for key in kind.model_fields}
    return {key: variables[name] for key, name in names.items() if name in variables}
