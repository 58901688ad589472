"""Configuration of a process from four sources: flags, environment, TOML file, defaults. An earlier source wins.

Only a process's `__main__` reads the configuration, once.
"""

import os
import pwd
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.process.proxies import DIRECT, Proxies
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


def proxies_of(configured: str | None) -> Proxies:
    """Returns the proxy for connections to coordinators.

    configured: the URL in the process's configuration, or None. Then the environment says it: https_proxy, else HTTPS_PROXY.
    no_proxy, else NO_PROXY, names the hosts that are reached directly in both cases.
    """
    exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    entries = tuple(exempt.replace(",", " ").split())
    if configured is not None:
        return Proxies(configured, entries, "proxy in the configuration")
    for name in ("https_proxy", "HTTPS_PROXY"):
        if url := os.environ.get(name, ""):
            return Proxies(url.strip(), entries, f"{name} in the environment")
    return DIRECT


def silence_libraries(*, is_service: bool) -> None:
    """Keeps the lines and bars that libraries write off standard error, unless the environment says otherwise.

    The libraries read the settings when they are imported. gRPC's errors reach our callers by the call that fails, in our words;
    a service leads gRPC's lines into its log. The Hub's and transformers' bars are for a terminal only.
    """
    if not is_service:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if is_service or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _values_of_file(file: Path | None) -> dict[str, Any]:
    """Returns the keys and values of a TOML file; none if there is no file. Raises InvalidConfig if it cannot be read."""
    if file is None:
        return {}
    try:
        return read_toml(file)
    except Unreadable as error:
        raise InvalidConfig(file=str(file), problems=f"  {error.problem}") from error


def home() -> Path | None:
    """Returns this user's home folder: of HOME, else of the user database; None if neither names one."""
    folder = Path(os.environ.get("HOME") or "")
    if folder.is_absolute():
        return folder
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # a container may run as a user that has no name
        return None


def with_home(path: Path) -> Path:
    """Returns a path with the user's home folder in place of a leading ~, so that no folder of the name ~ is ever made.

    Raises ValueError if the path begins with ~ and no home folder is known, or if it names the home of another user.
    """
    first, *rest = path.parts or ("",)
    if "\0" in str(path):
        raise ValueError("has a NUL character, which no path has")
    if not first.startswith("~"):
        return path
    folder = home()
    if first != "~" or folder is None:
        raise ValueError(f"begins with {first}, but no such home folder is known; write the whole path")
    return folder.joinpath(*rest)


def identity_of_person(option: str, chosen: Path | None) -> Path:
    """Returns the folder with a person's identity: the chosen one, else the usual one (XDG Base Directory Specification).

    option: the command's option for the folder, for the error. Raises InvalidConfig if no home folder is known.
    """
    try:
        if chosen is not None:
            return with_home(chosen)
        settings = Path(os.environ.get("XDG_CONFIG_HOME") or "")
        if sys.platform == "darwin":
            return with_home(Path("~/Library/Application Support/pluralllm"))
        return (settings if settings.is_absolute() else with_home(Path("~/.config"))) / "pluralllm"
    except ValueError as error:
        problem = f"  {option}: {error}" if chosen else f"  HOME is not set: give {option}, or set PLURALLLM_IDENTITY"
        raise InvalidConfig(file="(flags and environment)", problems=problem) from error


def _values_of_environment(kind: type[ProcessConfig]) -> dict[str, str]:
    """Returns the values of the fields for which an environment variable is set, by field name.

    The function does not distinguish upper and lower case in the variables' names. kind: the process's configuration class.
    """
    variables = {name.lower(): value for name, value in os.environ.items()}
    names = {key: f"{kind.env_prefix}{key}".lower() for key in kind.model_fields}
    return {key: variables[name] for key, name in names.items() if name in variables}
