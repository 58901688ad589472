"""What a process tells whoever supervises it: that it is ready, alive, stopping.

Two ways: systemd's protocol (sd_notify(3)), and a file in the state directory whose time is renewed, for a command that asks
(`pluralllm-server healthy`, `pluralllm-client healthy`). Signs of life come from the event loop: one that hangs gives none.
"""

import asyncio
import contextlib
import socket
import time
from pathlib import Path
from typing import Annotated

import structlog
import typer

log = structlog.get_logger()

NotifySocket = Annotated[str | None, typer.Option("--notify-socket", envvar="NOTIFY_SOCKET", hidden=True)]
WatchdogUsec = Annotated[int | None, typer.Option("--watchdog-usec", envvar="WATCHDOG_USEC", hidden=True)]
SIGNS_A_LIFETIME = 3  # signs of life within the time after which systemd would act
SIGN_EVERY_S = 5.0
SILENT_FOR_S = 30.0  # then a process is not healthy
SIGN = "alive"  # the file


class Supervisor:
    """Without systemd (no socket in the environment) only the file's time is renewed."""

    def __init__(self, state_dir: Path, notify_socket: str | None, watchdog_usec: int | None) -> None:
        self._sign = state_dir / SIGN
        self._address = None if notify_socket is None else notify_socket.replace("@", "\0", 1)
        self._watchdog_s = None if watchdog_usec is None else watchdog_usec / 1e6

    def tell(self, *facts: str) -> None:
        """For example READY=1. A supervisor that does not listen is no reason to stop."""
        if self._address is None:
            return
        try:
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as line:
                line.connect(self._address)
                line.sendall("\n".join(facts).encode())
        except OSError as error:
            log.warning("supervisor.not_told", problem=str(error))

    async def reassure(self) -> None:
        """Signs of life, again and again. Runs until cancelled."""
        pause_s = SIGN_EVERY_S if self._watchdog_s is None else min(SIGN_EVERY_S, self._watchdog_s / SIGNS_A_LIFETIME)
        while True:
            with contextlib.suppress(OSError):  # the state directory may not be there yet, or its disk be full
                self._sign.touch(mode=0o600)
            if self._watchdog_s is not None:
                self.tell("WATCHDOG=1")
            await asyncio.sleep(pause_s)


def check_alive(state_dir: Path) -> None:
    """Says when the last sign of life was. Exit code 3 if it is too long ago, or was never."""
    try:
        ago_s = time.time() - (state_dir / SIGN).stat().st_mtime
    except FileNotFoundError:
        typer.echo(f"no sign of life in {state_dir}: the process has not started there", err=True)
        raise typer.Exit(3) from None
    if ago_s > SILENT_FOR_S:
        typer.echo(f"the last sign of life was {ago_s:.0f} s ago", err=True)
        raise typer.Exit(3)
    typer.echo(f"alive {max(0.0, ago_s):.0f} s ago")
