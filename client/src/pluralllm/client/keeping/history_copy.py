"""A second copy of what a client has seen, in a place of the partner's choice: one line of JSON for each new fact.

An attacker who changes the client's state directory, or the coordinator's records, does not reach a copy on other storage.
"""

import datetime
import json
import os
from pathlib import Path
from typing import Any

import structlog

from pluralllm.common.process.files import create_file, open_at_once

log = structlog.get_logger()

FILE = "pluralllm-history.jsonl"  # the file's name if the partner names a folder


class HistoryCopy:
    """A file that only grows. A file that cannot be written is reported once, and does not stop the client."""

    def __init__(self, place: Path) -> None:
        """Stores the place: a folder that exists, or a file."""
        self._place = place
        self._has_failed = False

    def append(self, **facts: Any) -> None:
        """Appends a line with the time and the facts. The line is durable when the method returns."""
        now = datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds")
        path = self._place / FILE if self._place.is_dir() else self._place
        try:
            create_file(path, 0o644)
            with open(path, "a", encoding="utf-8", opener=open_at_once) as file:
                file.write(json.dumps({"time": now, **facts}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if not self._has_failed:
                log.error("history.not_copied", file=str(path), problem=error.strerror)
            self._has_failed = True
        else:
            self._has_failed = False
