"""Stores finished updates and rewards durably until the coordinator gives its receipt."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from pluralllm.client.process.instruments import OUTBOX_UPDATES
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.process.files import make_folder, publish, read_state_as, storage_errors, write_durably
from pluralllm.common.weights.chunks import Manifest, manifest_of
from pluralllm.common.words.ids import Digest, RunId, TaskId
from pluralllm.common.words.noise import NoiseStatement

log = structlog.get_logger()

KEPT_OF_RUN = (
    4  # updates of one run without a receipt: a coordinator gives none for the updates that it does not accept
)


@dataclass(frozen=True, slots=True)
class Entry:
    """The description of one finished update, or of the rewards for one batch of rollouts."""

    task: TaskId
    run: RunId
    spec_sha256: Digest
    base_digest: Digest
    digest: Digest  # digest in the manifest of the delta's file
    examples: int
    metrics: Mapping[str, float]
    noise: NoiseStatement | None = None  # about the answers behind it; an entry of an earlier release has none


class Outbox:
    """A folder with two files for each result of a task: the delta or rewards, and a JSON file with the entry.

    The entry describes the result. The methods call every result an update, and its file a delta. The JSON file is written
    last, so that an update is either complete or absent.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._damaged: set[Path] = set()  # files that the log has reported
        make_folder(folder)
        self._remove_halves()
        self._count()

    def put(self, entry: Entry, delta: Path) -> None:
        """Moves the file `delta` into the outbox. The update is durable when this method returns.

        entry: the description of the update. Raises StorageFull if the disk is full.
        """
        with storage_errors("the outbox"):
            publish(delta, self.delta(entry.task))
        write_durably(self._facts(entry.task), json.dumps(asdict(entry)).encode())
        others = [other.task for other in self.pending() if other.run == entry.run and other.task != entry.task]
        others.sort(key=lambda task: self._facts(task).stat().st_mtime)
        for old in others[: -(KEPT_OF_RUN - 1)]:
            self.drop(old)
        self._count()

    def get(self, task: TaskId) -> tuple[Entry, Manifest] | None:
        """Returns the update of a task: its entry and the manifest of its delta. Returns None if the outbox has no such update.

        If the entry is damaged, or the delta's file is missing or has another digest than the entry, deletes the update and
        returns None.
        """
        facts = self._facts(task)
        if not facts.is_file():
            return None
        entry, delta = self._read(facts), self.delta(task)
        manifest = manifest_of(delta) if entry is not None and delta.is_file() else None
        if entry is None or manifest is None or manifest.digest != entry.digest:
            self.drop(task)
            return None
        return entry, manifest

    def pending(self) -> Iterator[Entry]:
        """Yields the entry of every update that has no receipt yet. A damaged entry is left out."""
        for path in sorted(self._folder.glob("*.json")):
            if (entry := self._read(path)) is not None:
                yield entry

    def delta(self, task: TaskId) -> Path:
        """Returns the path of a task's delta."""
        return self._folder / f"{_name(task)}.safetensors"

    def drop(self, task: TaskId) -> None:
        """Deletes an update that has its receipt, or that the coordinator no longer needs."""
        self._facts(task).unlink(missing_ok=True)
        self.delta(task).unlink(missing_ok=True)
        self._count()

    def drop_run(self, run: RunId) -> None:
        """Deletes all updates of a run."""
        for entry in list(self.pending()):
            if entry.run == run:
                self.drop(entry.task)

    def follow(self, *, noised: bool) -> None:
        """Deletes the updates from true answers if the client uses noised answers now. Their tasks are done again."""
        for entry in list(self.pending()) if noised else []:
            if entry.noise is None or not entry.noise.noised:
                log.info("outbox.without_noise", task=entry.task)
                self.drop(entry.task)

    def _read(self, path: Path) -> Entry | None:
        """Returns the entry in a file; None, with one log line for the file, if it is damaged: its task is done again."""
        try:
            return _entry_in(path)
        except InvalidConfig as error:
            if path not in self._damaged:
                log.error("outbox.damaged", file=str(path), problem=str(error))
            self._damaged.add(path)
            return None

    def _facts(self, task: TaskId) -> Path:
        return self._folder / f"{_name(task)}.json"

    def _count(self) -> None:
        OUTBOX_UPDATES.set(sum(1 for _ in self._folder.glob("*.json")))

    def _remove_halves(self) -> None:
        for path in self._folder.iterdir():
            if path.suffix != ".json" and not path.with_suffix(".json").is_file():
                path.unlink()


def _entry_in(path: Path) -> Entry:
    """Reads an entry from its file. Raises InvalidConfig, which names the file, if it is damaged."""
    return read_state_as(path, Entry, f"move it and {path.with_suffix('.safetensors').name} away")


def _name(task: TaskId) -> str:
    """Returns a file name for a task: a hash, because a task id contains slashes."""
    return hashlib.sha256(task.encode()).hexdigest()[:24]
