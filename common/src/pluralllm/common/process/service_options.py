"""Options of the commands that run until they are stopped. The module is light, because the help of other commands brings it."""

from typing import Annotated

import typer

LogFormatOption = Annotated[
    str | None,
    typer.Option(help="The format of the log: json, console, or auto (console on a terminal, json elsewhere)."),
]
NotifySocket = Annotated[str | None, typer.Option("--notify-socket", envvar="NOTIFY_SOCKET", hidden=True)]
WatchdogUsec = Annotated[int | None, typer.Option("--watchdog-usec", envvar="WATCHDOG_USEC", hidden=True)]
