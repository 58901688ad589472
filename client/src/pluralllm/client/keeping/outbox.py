"""Updates on their way out, durable until the coordinator's receipt; and the model chain this client has seen."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pluralllm.client.link.tasks import VersionLink
from pluralllm.client.process.instruments import OUTBOX_UPDATES
from pluralllm.common.errors.tree import HistoryDiverged
from pluralllm.common.process.files import publish, storage_errors, write_durably
from pluralllm.common.weights.chunks import Manifest, manifest_of
from pluralllm.common.words.ids import Digest, RunId, TaskId


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished update."""

    task: TaskId
    run: RunId
    spec_sha256: Digest
    base_digest: Digest
    digest: Digest  # of the delta's file
    examples: int
    metrics: Mapping[str, float]


class Outbox:
    """A file pair for each update; the JSON is written last, so a pair is whole or not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_halves()
        self._count()

    def put(self, entry: Entry, delta: Path) -> None:
        """Takes over the delta's file; durable when this returns. Raises StorageFull."""
        with storage_errors("the outbox"):
            publish(delta, self.delta(entry.task))
        write_durably(self._facts(entry.task), json.dumps(asdict(entry)).encode())
        self._count()

    def get(self, task: TaskId) -> tuple[Entry, Manifest] | None:
        """The update of a task, if it is here and its bytes are what they were."""
        facts = self._facts(task)
        if not facts.is_file():
            return None
        entry = Entry(**json.loads(facts.read_bytes()))
        manifest = manifest_of(self.delta(task))
        if manifest.digest != entry.digest:
            self.drop(task)
            return None
        return entry, manifest

    def pending(self) -> Iterator[Entry]:
        for path in sorted(self._folder.glob("*.json")):
            yield Entry(**json.loads(path.read_bytes()))

    def delta(self, task: TaskId) -> Path:
        return self._folder / f"{_name(task)}.safetensors"

    def drop(self, task: TaskId) -> None:
        """After the receipt, or when the update is no longer wanted."""
        self._facts(task).unlink(missing_ok=True)
        self.delta(task).unlink(missing_ok=True)
        self._count()

    def drop_run(self, run: RunId) -> None:
        for entry in list(self.pending()):
            if entry.run == run:
                self.drop(entry.task)

    def _facts(self, task: TaskId) -> Path:
        return self._folder / f"{_name(task)}.json"

    def _count(self) -> None:
        OUTBOX_UPDATES.set(sum(1 for _ in self._folder.glob("*.json")))

    def _remove_halves(self) -> None:
        for path in self._folder.iterdir():
            if path.suffix != ".json" and not path.with_suffix(".json").is_file():
                path.unlink()


def _name(task: TaskId) -> str:
    return hashlib.sha256(task.encode()).hexdigest()[:24]


OVER = "over"  # in a history, beside the numbers of versions


class History:
    """Records of model versions by run: a coordinator that rewrites its past is refused."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def check(self, run: RunId, link: VersionLink, task_record_sha256: str) -> None:
        """Compares a version with what was seen, then keeps it. Raises HistoryDiverged."""
        path = self._folder / f"{run}.json"
        seen: dict[str, str] = json.loads(path.read_bytes()) if path.is_file() else {}
        known, parent = seen.get(str(link.version)), seen.get(str(link.version - 1))
        if (
            link.record_sha256 != task_record_sha256
            or (known is not None and known != link.record_sha256)
            or (parent is not None and parent != link.parent_sha256)
        ):
            raise HistoryDiverged(run=run, version=link.version)
        if known is None:
            write_durably(path, json.dumps({**seen, str(link.version): link.record_sha256}).encode())

    def close(self, run: RunId) -> None:
        """The run is over; its history stays, should it ever be told otherwise."""
        path = self._folder / f"{run}.json"
        if path.is_file():
            write_durably(path, json.dumps({**json.loads(path.read_bytes()), OVER: OVER}).encode())

    def open_runs(self) -> set[RunId]:
        """Runs that were taken part in, and whose end was not heard of: it came while this client was down."""
        return {RunId(path.stem) for path in self._folder.glob("*.json") if OVER not in json.loads(path.read_bytes())}
