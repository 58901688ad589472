"""The commands inside a command, for tests that walk through a whole command line."""

from typing import Any

from pluralllm.common.process.later_commands import LaterCommand


def inner_commands(command: Any) -> dict[str, Any]:
    """The commands of a group by their names; those of a table are loaded. No commands if it is no group."""
    commands: dict[str, Any] = getattr(command, "commands", {})
    return {word: inner.load() if isinstance(inner, LaterCommand) else inner for word, inner in commands.items()}
