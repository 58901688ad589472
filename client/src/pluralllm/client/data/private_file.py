"""The private file as the daemon has announced it to the coordinator. It notices a change before anything is computed from it."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from pluralllm.client.data.answers import read_answers, sha256_of
from pluralllm.common.errors.tree import DataChanged, InvalidConfig, InvalidData, NoisedFileLost, StorageFull
from pluralllm.common.process.files import read_state, write_durably

log = structlog.get_logger()

FILE = "announced-data.json"  # in the state directory

# Size, time of the last change of the content in nanoseconds, number of the inode, time of the last change of any kind: a tool
# that keeps times (rsync, cp -p) sets the first time back, and nobody can set the second.
Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Content:
    """The content of the private file at one time."""

    sha256: str
    questions: int


class PrivateFile:
    """The content that Hello announces. `look` reads the file again when the file has changed.

    A file that has problems after a change is not used: `check` raises InvalidData until the file is mended.
    """

    def __init__(self, path: Path, state_dir: Path, noised_sha256: str | None = None) -> None:
        """Reads the file, and compares it with the content that an earlier process has announced.

        noised_sha256: the content that a file with noised answers must have; None for the partner's own file, which may change.
        Raises InvalidData if the file has problems; NoisedFileLost if noised answers have another content; AnswersProtected for
        true answers that were released with noise.
        """
        self.path, self._note, self._noised_sha256 = path, state_dir / FILE, noised_sha256
        self._problem: InvalidData | NoisedFileLost | None = None
        self._stamp: Stamp | None = stamp_of(path)
        before, self.changed_s = self._noted()
        self._content = content_of(path, noised_sha256)
        if before is not None and before.sha256 != self._content.sha256:
            self._announce(before)
        elif before is None:
            self._keep()

    @property
    def questions(self) -> int:
        """The number of questions in the announced content."""
        return self._content.questions

    @property
    def sha256(self) -> str:
        """The hash of the announced content."""
        return self._content.sha256

    def has_changed(self) -> bool:
        """Returns whether the file may differ from the content that was last read: its size, a time or its inode differ."""
        return stamp_of(self.path) != self._stamp

    def look(self) -> bool:
        """Reads the file again if it has changed. Returns whether Hello must say it, or must take back an earlier refusal."""
        return self.has_changed() and self._read_again()

    def check(self) -> None:
        """Checks that the announced content is the content of the file.

        Raises InvalidData if the file has problems since a change; DataChanged if it has changed since the last look.
        """
        if self._problem is not None:
            raise self._problem
        if self.has_changed():
            raise DataChanged(file=str(self.path))

    def _read_again(self) -> bool:
        self._stamp, had_problem = stamp_of(self.path), self._problem is not None
        try:
            content = content_of(self.path, self._noised_sha256)
        except (InvalidData, NoisedFileLost) as error:
            self._problem = error
            log.error("data.unusable", problem=str(error), fix="mend the file; no task is done until then")
            return False
        self._problem = None
        if content != self._content:
            before, self._content = self._content, content
            self._announce(before)
            return True
        return had_problem

    def _announce(self, before: Content) -> None:
        self.changed_s = time.time()
        log.warning("data.changed", file=str(self.path), questions_before=before.questions, questions=self.questions)
        self._keep()

    def _noted(self) -> tuple[Content | None, float | None]:
        """Returns the content that was last announced and the time of its last change; None where nothing is noted."""
        try:
            facts = read_state(self._note) if self._note.is_file() else {}
            return Content(str(facts["sha256"]), int(facts["questions"])), facts["changed_s"]
        except (InvalidConfig, KeyError, TypeError, ValueError, OSError):  # a note that is lost costs one message
            return None, None

    def _keep(self) -> None:
        facts = {"sha256": self.sha256, "questions": self.questions, "changed_s": self.changed_s}
        try:
            write_durably(self._note, json.dumps(facts).encode())
        except (StorageFull, OSError) as error:
            log.warning("data.not_noted", file=str(self._note), problem=str(error))


def stamp_of(path: Path) -> Stamp | None:
    """Returns the size, the times and the inode of a file; None if there is no such file."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns, facts.st_ino, facts.st_ctime_ns


def content_of(path: Path, noised_sha256: str | None = None) -> Content:
    """Reads a private file. Raises InvalidData if it has problems, or if it changes while it is read.

    noised_sha256: the content that noised answers must have; NoisedFileLost is raised for another one.
    """
    if noised_sha256 is not None:
        return _noised_content(path, noised_sha256)
    sha256 = sha256_of(path)
    questions = len(read_answers(path))
    if sha256_of(path) != sha256:
        raise InvalidData(file=str(path), problems="  it changes while it is read; the client reads it again")
    return Content(sha256, questions)


def _noised_content(path: Path, sha256: str) -> Content:
    try:
        return Content(sha256, len(read_answers(path, sha256)))
    except (InvalidData, DataChanged) as error:
        raise NoisedFileLost(file=str(path), sha256=sha256) from error
