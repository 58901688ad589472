"""Configuration of a process from four sources: flags, environment, TOML file, defaults. An earlier source wins.

Only a process's `__main__` reads the configuration, once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.process.environment import environment_variables, with_home
from pluralllm.common.text.reading import Unreadable, read_toml
from pluralllm.common.words.problems import explain


class ProcessConfig(BaseModel):
    """Base class for the configuration of one process. An object cannot be changed, and an unknown key is an error.

    A subclass defines the fields and `env_prefix`, the prefix of the environment variables' names. A field whose value must not
    appear in messages has Field(repr=False). The constructor reads no source: `load_config` reads the sources and merges them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    env_prefix: ClassVar[str]

    @field_validator("*")
    @classmethod
    def _without_tilde(cls, value: Any) -> Any:
        return with_home(value) if isinstance(value, Path) else value


LogFormat = Literal["auto", "json", "console"]  # auto: lines for a person on a terminal, JSON elsewhere
Config = TypeVar("Config", bound=ProcessConfig)


def load_config(kind: type[Config], file: Path | None, flags: Mapping[str, Any]) -> Config:
    """Reads and merges the configuration of a process. kind: the process's configuration class.

    flags: values of the command line by key; None means that the flag was not set. file: the TOML file; None if there is no file.
    Raises InvalidConfig if the file cannot be read or a value is not valid; the error names file, keys and allowed values.
    """
    name = str(file) if file is not None else "(flags and environment)"
    of_file = _values_of_file(file)
    of_flags = {key: value for key, value in flags.items() if value is not None}
    try:
        return kind.model_validate(of_file | _values_of_environment(kind) | of_flags)
    except ValidationError as error:
        secret = {key for key, field in kind.model_fields.items() if not field.repr}
        raise InvalidConfig(file=name, problems=explain(error, secret)) from error


def origins_of(kind: type[Config], file: Path | None) -> dict[str, str]:
    """Returns where the value of each key comes from: the environment variable, the file or the default. Flags are ignored.

    kind: the process's configuration class.
    """
    of_file = _values_of_file(file)
    return (
        dict.fromkeys(kind.model_fields, "default")
        | {key: f"file {file}" for key in of_file if key in kind.model_fields}
        | {key: f"environment {kind.env_prefix}{key.upper()}" for key in _values_of_environment(kind)}
    )


def _values_of_file(file: Path | None) -> dict[str, Any]:
    """Returns the keys and values of a TOML file; none if there is no file. Raises InvalidConfig if it cannot be read."""
    if file is None:
        return {}
    try:
        return read_toml(file)
    except Unreadable as error:
        raise InvalidConfig(file=str(file), problems=f"  {error.problem}") from error


def _values_of_environment(kind: type[ProcessConfig]) -> dict[str, str]:
    """Returns the values of the fields for which an environment variable is set, by field name.

    The function does not distinguish upper and lower case in the variables' names. kind: the process's configuration class.
    """
    variables = {name.lower(): value for name, value in environment_variables().items()}
    names = {key: f"{kind.env_prefix}{key}".lower() for key in kind.model_fields}
    return {key: variables[name] for key, name in names.items() if name in variables}
