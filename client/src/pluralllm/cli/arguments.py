"""The argument RUN and the screen of a run, which several commands of `pluralllm` share."""

from typing import Annotated, Any

import typer

from pluralllm.cli.output import now

RunArgument = Annotated[
    str, typer.Argument(help="The run's name; - is the newest one that is neither archived nor cancelled.")
]


def status_view(value: Any) -> Any:
    """Returns the screen for the state of a run."""
    from pluralllm.cli.status_screen import status_screen  # noqa: PLC0415 - not for --json

    return status_screen(value, now())
