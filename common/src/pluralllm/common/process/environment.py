"""Everything that a process takes from its environment variables. No other module reads them, and a test enforces it.

The module is light to import, because every command reads its environment when it starts.
"""

import os
import pwd
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pluralllm.common.process.proxies import Proxies


def environment_variables() -> Mapping[str, str]:
    """Returns the values of all environment variables by name."""
    return os.environ


def proxies_of(configured: str | None) -> "Proxies":
    """Returns the proxy for connections to coordinators.

    configured: the URL in the process's configuration, or None. Then the environment says it: https_proxy, else HTTPS_PROXY.
    no_proxy, else NO_PROXY, names the hosts that are reached directly in both cases.
    """
    from pluralllm.common.process.proxies import DIRECT, Proxies  # noqa: PLC0415 - most commands need none

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
        from pluralllm.common.errors.tree import InvalidConfig  # noqa: PLC0415 - the tree takes a moment

        problem = f"  {option}: {error}" if chosen else f"  HOME is not set: give {option}, or set PLURALLLM_IDENTITY"
        raise InvalidConfig(file="(flags and environment)", problems=problem) from error
