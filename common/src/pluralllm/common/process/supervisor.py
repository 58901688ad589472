"""Notifies the supervisor of a process that the process is ready, alive or stopping.

systemd receives messages of its protocol (sd_notify(3)). For every other supervisor, the process renews the modification time
of a file in its state directory. The commands `pluralllm-server healthy` and `pluralllm-client healthy` check this file. What is
sent follows from the process's pulse (pulse.py), so no sign of life comes from a process whose main loop stands still.
"""

import asyncio
import contextlib
import os
import socket
import time
from pathlib import Path

import typer

from pluralllm.common.process.console import say
from pluralllm.common.process.files import create_file
from pluralllm.common.process.light_log import LightLog
from pluralllm.common.process.pulse import SILENT_FOR_S, Pulse

log = LightLog()

SIGNS_A_LIFETIME = 3  # signs of life within systemd's watchdog time, after which systemd would act
SIGN_EVERY_S = 5.0
SIGN = "alive"  # name of the file


class Supervisor:
    """The connection of a process to its supervisor.

    The object notifies systemd if the process has a notify socket. It also writes the time of the last beat of the process's
    pulse as the modification time of a file in the state directory.
    """

    def __init__(self, state_dir: Path, notify_socket: str | None, watchdog_usec: int | None) -> None:
        self._sign = state_dir / SIGN
        self._address = None if notify_socket is None else notify_socket.replace("@", "\0", 1)
        self._watchdog_s = None if watchdog_usec is None else watchdog_usec / 1e6

    def tell(self, *facts: str) -> None:
        """Sends lines of the form NAME=VALUE to systemd, for example READY=1. Does nothing if the process has no notify socket.

        A failure is logged and does not stop the process. Nothing waits for a supervisor that has stopped to read.
        """
        if self._address is None:
            return
        try:
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as connection:
                connection.settimeout(0)  # a supervisor that reads no messages must not hold the process
                connection.connect(self._address)
                connection.sendall("\n".join(facts).encode())
        except OSError as error:
            log.warning("supervisor.not_told", problem=str(error))

    async def reassure(self, pulse: Pulse) -> None:
        """Renews the file's modification time and notifies systemd's watchdog at regular intervals, until cancellation.

        Without a beat of the pulse since the last interval, neither gets a sign. At the end the file is removed: a process that
        has stopped, and is started again, is not alive before it serves.
        """
        try:
            await self._reassure(pulse)
        finally:
            with contextlib.suppress(OSError):
                self._sign.unlink()

    async def _reassure(self, pulse: Pulse) -> None:
        pause_s = SIGN_EVERY_S if self._watchdog_s is None else min(SIGN_EVERY_S, self._watchdog_s / SIGNS_A_LIFETIME)
        reported_beats: int | None = None
        while True:
            if pulse.beats != reported_beats:
                reported_beats = pulse.beats
                beat_s = time.time() - pulse.age_s()
                with contextlib.suppress(OSError):  # the state directory may not be there yet, or its disk be full
                    create_file(self._sign)
                    os.utime(self._sign, (beat_s, beat_s))
                if self._watchdog_s is not None:
                    self.tell("WATCHDOG=1")
            await asyncio.sleep(pause_s)


def check_alive(state_dir: Path) -> None:
    """Prints how long ago the main loop of a process last went round, according to the file in its state directory.

    Exits with code 3 if that was more than SILENT_FOR_S seconds ago, or if the file does not exist. A sign from the future was
    made before the clock was set back, so that nobody knows its age; a process that lives makes the next one within seconds.
    """
    try:
        ago_s = time.time() - (state_dir / SIGN).stat().st_mtime
    except FileNotFoundError:
        say(f"no sign of life in {state_dir}: the process has not started there, or it has stopped", err=True)
        raise typer.Exit(3) from None
    if ago_s < -SILENT_FOR_S:
        say(
            f"the last sign of life is {-ago_s:.0f} s in the future: it is older than the clock's present time",
            err=True,
        )
        raise typer.Exit(3)
    if ago_s > SILENT_FOR_S:
        say(f"the last sign of life was {ago_s:.0f} s ago", err=True)
        raise typer.Exit(3)
    say(f"alive {max(0.0, ago_s):.0f} s ago")
