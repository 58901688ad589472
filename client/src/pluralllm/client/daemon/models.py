"""The model versions that this client has downloaded. Every version is verified against the run's history.

The folder keeps only the last few versions.
"""

import asyncio
from pathlib import Path

import structlog

from pluralllm.client.joining.partner import Partner
from pluralllm.client.keeping.audit_watch import AuditWatch
from pluralllm.client.keeping.history import History
from pluralllm.client.keeping.history_copy import HistoryCopy
from pluralllm.client.link.tasks import Task
from pluralllm.client.link.transport import Transport
from pluralllm.client.process.config import ClientConfig
from pluralllm.common.process.files import make_folder
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.ids import Digest
from pluralllm.common.words.spec import RunSpec

log = structlog.get_logger()

KEPT = 2


def history_of(config: ClientConfig, partner: Partner, transport: Transport) -> tuple[History, AuditWatch]:
    """Returns the history that this daemon keeps, and its watch over the coordinator's audit log.

    Logs a warning if the invite had no key to check signatures.
    """
    verifier = None
    if partner.identity is not None:
        verifier = partner.identity.membership.record_verifier
        if verifier is None:
            fix = "ask an administrator to revoke this membership and to invite you anew"
            log.warning("history.signatures_not_checked", fix=fix)
    copy = None if config.history_copy is None else HistoryCopy(config.history_copy)
    folder = config.state_dir.absolute() / "history"
    history = History(folder, partner.name, verifier, copy)
    return history, AuditWatch(folder, transport.audit_entries, verifier, copy)


class Models:
    """A folder with one file for each downloaded model version; the file's name is the version's digest."""

    def __init__(self, folder: Path, history: History, transport: Transport) -> None:
        make_folder(folder)
        self._folder = folder
        self._history = history
        self._transport = transport
        self._drop_old()

    async def fetch(self, task: Task, size_bytes: int, spec: RunSpec) -> Path:
        """Downloads the base version of a task (the model version that the work starts from), and returns its file.

        size_bytes: size of the run's model. spec: of the task's run. Raises RecordInvalid or HistoryDiverged,
        before anything is downloaded, if the version's record is false or contradicts the versions that this client has seen. If
        the download fails, raises AnswerInvalid, Corrupt, DigestMismatch, StaleSession, StorageFull or Unreachable.
        """
        await self._history.follow(task, spec, self._transport.version_records)
        path = self._folder / task.base_digest
        await asyncio.to_thread(_drop_if_damaged, path, task.base_digest)
        self._drop_old(path, path.with_suffix(".part"))
        await self._transport.fetch_model(task.run, task.base_version, task.base_digest, size_bytes, path)
        self._drop_old(path)
        return path

    def _drop_old(self, *needed: Path) -> None:
        """Deletes all files but the newest and those that are needed; downloads that broke off count as well."""
        newest_last = sorted(self._folder.iterdir(), key=lambda file: file.stat().st_mtime)
        for old in newest_last[:-KEPT]:
            if old not in needed:
                old.unlink()


def _drop_if_damaged(path: Path, digest: Digest) -> None:
    """Deletes a downloaded model whose bytes have changed on this machine's disk, so that it is downloaded again."""
    if path.is_file() and manifest_of(path).digest != digest:
        log.error("model.damaged", file=str(path), fix="the client downloads it again; look at this machine's disk")
        path.unlink()
