"""The commands inside a command, for tests that walk through a whole command line."""

from typing import Any

from pluralllm.cli.package_commands import PackageCommand


def inner_commands(command: Any) -> dict[str, Any]:
    """The commands of a group by their names; those of other packages are loaded. No commands if it is no group."""
    commands: dict[str, Any] = getattr(command, "commands", {})
    return {word: inner.load() if isinstance(inner, PackageCommand) else inner for word, inner in commands.items()}
