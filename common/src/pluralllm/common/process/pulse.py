"""The pulse of a process: the time since its main loop last went round.

The watchdog of the process, its file of signs, its health service and its metrics all read the pulse, so that none of them
calls a process healthy whose main loop stands still.
"""

import time
from collections.abc import Callable

SILENT_FOR_S = 30.0  # after this long without a beat, a process is not healthy


class Pulse:
    """The beats of one process's main loop. The loop calls `beat` whenever it has gone round, also if there was nothing to do."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        """Makes a pulse that has just beaten. `now_s` returns a time that never jumps."""
        self._now_s = now_s
        self._beat_s = now_s()
        self.beats = 0

    def beat(self) -> None:
        self._beat_s = self._now_s()
        self.beats += 1

    def age_s(self) -> float:
        """Returns the seconds since the last beat."""
        return self._now_s() - self._beat_s

    @property
    def is_alive(self) -> bool:
        """Whether the last beat is at most SILENT_FOR_S seconds ago."""
        return self.age_s() <= SILENT_FOR_S
