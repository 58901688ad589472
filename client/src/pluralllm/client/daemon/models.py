"""The model versions that this client has downloaded. Every version is verified against the run's history.

The folder keeps only the last few versions.
"""

from pathlib import Path

from pluralllm.client.keeping.history import History
from pluralllm.client.link.tasks import Task
from pluralllm.client.link.transport import Transport

KEPT = 2


class Models:
    """A folder with one file for each downloaded model version; the file's name is the version's digest."""

    def __init__(self, folder: Path, history: History, transport: Transport) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder
        self._history = history
        self._transport = transport

    async def fetch(self, task: Task, size_bytes: int) -> Path:
        """Downloads the base version of a task (the model version that the work starts from), and returns its file.

        size_bytes: size of the run's model. Raises HistoryDiverged if the version contradicts the history of versions that this
        client has seen. If the download fails, raises AnswerInvalid, Corrupt, DigestMismatch, StaleSession, StorageFull or
        Unreachable.
        """
        path = self._folder / task.base_digest
        link = await self._transport.fetch_model(task.run, task.base_version, task.base_digest, size_bytes, path)
        self._history.check(task.run, link, task.base_record_sha256)
        self._drop_old_but(path)
        return path

    def _drop_old_but(self, needed: Path) -> None:
        newest_last = sorted(self._folder.iterdir(), key=lambda file: file.stat().st_mtime)
        for old in newest_last[:-KEPT]:
            if old != needed:
                old.unlink()
