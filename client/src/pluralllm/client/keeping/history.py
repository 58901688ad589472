"""The history of model versions that this client has seen, for each run. The client notices if a coordinator changes it."""

import json
from pathlib import Path

from pluralllm.client.link.tasks import VersionLink
from pluralllm.common.errors.tree import HistoryDiverged
from pluralllm.common.process.files import write_durably
from pluralllm.common.words.ids import RunId

OVER = "over"  # a key beside the version numbers: the run has ended


class History:
    """A folder with one file for each run. The file holds one hash for each model version that this client has seen.

    The hash is the SHA-256 of the version record (the coordinator's record of how the model version was made).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def check(self, run: RunId, link: VersionLink, task_record_sha256: str) -> None:
        """Compares the hashes of a model version with the run's history, then adds the model version to the history.

        link: the hashes of the version's record and of its parent's record, which came with the model version.
        task_record_sha256: the hash of the version's record, as stated in the client's task.
        Raises HistoryDiverged if the task states another hash than `link`, or if the history already holds another hash for the
        version or for its parent.
        """
        path = self._folder / f"{run}.json"
        seen: dict[str, str] = json.loads(path.read_bytes()) if path.is_file() else {}
        seen_record, seen_parent = seen.get(str(link.version)), seen.get(str(link.version - 1))
        if (
            link.record_sha256 != task_record_sha256
            or (seen_record is not None and seen_record != link.record_sha256)
            or (seen_parent is not None and seen_parent != link.parent_sha256)
        ):
            raise HistoryDiverged(run=run, version=link.version)
        if seen_record is None:
            write_durably(path, json.dumps({**seen, str(link.version): link.record_sha256}).encode())

    def close(self, run: RunId) -> None:
        """Marks a run as ended. The run's history stays, in case the coordinator later shows another history."""
        path = self._folder / f"{run}.json"
        if path.is_file():
            write_durably(path, json.dumps({**json.loads(path.read_bytes()), OVER: OVER}).encode())

    def open_runs(self) -> set[RunId]:
        """Returns the runs that this client took part in and whose end it has not seen.

        Such a run may have ended while the client was stopped.
        """
        return {RunId(path.stem) for path in self._folder.glob("*.json") if OVER not in json.loads(path.read_bytes())}
