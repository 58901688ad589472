"""The private file as the daemon has announced it to the coordinator. It notices a change before anything is computed from it."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from pluralllm.client.data.answers import read_answers, sha256_of
from pluralllm.common.errors.tree import (
    AnswersProtected,
    DataChanged,
    InvalidConfig,
    InvalidData,
    LedgerBroken,
    LedgerDiverged,
    NoisedFileLost,
    NotReleased,
    PluralError,
    StorageFull,
)
from pluralllm.common.process.files import read_state, write_durably
from pluralllm.common.words.questions import Question

log = structlog.get_logger()

FILE = "announced-data.json"  # in the state directory
# Errors that end with the mending of a file or with a release; until then no task is done.
UNUSABLE = (InvalidData, NoisedFileLost, NotReleased, AnswersProtected, LedgerBroken, LedgerDiverged)

# Size, time of the last change of the content in nanoseconds, number of the inode, time of the last change of any kind: a tool
# that keeps times (rsync, cp -p) sets the first time back, and nobody can set the second.
Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Content:
    """The content of the private file at one time."""

    sha256: str
    questions: int


@dataclass(frozen=True, slots=True)
class Answers:
    """The file whose answers the client uses: the partner's own, or one with noised answers."""

    path: Path
    noised_sha256: str | None = (
        None  # the content that noised answers must have; None for the own file, which may change
    )
    ledgers: tuple[Path, ...] = ()  # files that change with each release of noised answers


Choose = Callable[
    [], Answers
]  # finds the file whose answers are used now; raises an error of the tree if there is none


class PrivateFile:
    """The content that Hello announces. `look` reads the file again when the file has changed, or when answers were released.

    A file that has problems after a change is not used: `check` raises the reason until the problem is gone.
    """

    def __init__(self, path: Path, state_dir: Path, choose: Choose | None = None) -> None:
        """Reads the file, and compares it with the content that an earlier process has announced.

        choose: finds the file in place of `path`, now and after each change of a ledger.
        Raises InvalidData if the file has problems; NoisedFileLost if noised answers have another content; AnswersProtected for
        true answers that were released with noise; and what `choose` raises.
        """
        self._note = state_dir / FILE
        self._choose = choose or (lambda: Answers(path))
        self._answers = self._choose()
        self._problem: PluralError | None = None
        self._stamps = self._present_stamps()
        before, self.changed_s = self._noted()
        self._content = content_of(self.path, self._answers.noised_sha256)
        if before is not None and before.sha256 != self._content.sha256:
            self._announce(before)
        elif before is None:
            self._keep()

    @property
    def path(self) -> Path:
        """The file whose answers are used."""
        return self._answers.path

    @property
    def is_noised(self) -> bool:
        """Whether the answers are noised ones, so that nothing may be sent any more that follows from true ones."""
        return self._answers.noised_sha256 is not None

    @property
    def questions(self) -> int:
        """The number of questions in the announced content."""
        return self._content.questions

    @property
    def sha256(self) -> str:
        """The hash of the announced content."""
        return self._content.sha256

    def read(self) -> tuple[Question, ...]:
        """Returns the questions of the file. Raises InvalidData, DataChanged or AnswersProtected as `read_answers` does."""
        return read_answers(self.path, self._answers.noised_sha256)

    def has_changed(self) -> bool:
        """Returns whether the file may differ from the content that was last read, or whether a ledger has changed.

        It compares sizes, times and inodes.
        """
        return self._present_stamps() != self._stamps

    def _present_stamps(self) -> tuple[Stamp | None, ...]:
        return tuple(stamp_of(path) for path in (self._answers.path, *self._answers.ledgers))

    def look(self) -> bool:
        """Reads the file again if it has changed. Returns whether Hello must say it, or must take back an earlier refusal."""
        return self.has_changed() and self._read_again()

    def check(self) -> None:
        """Checks that the announced content is the content of the file.

        Raises the problem that the file has since a change; DataChanged if it has changed since the last look.
        """
        if self._problem is not None:
            raise self._problem
        if self.has_changed():
            raise DataChanged(file=str(self.path))

    def _read_again(self) -> bool:
        self._stamps, had_problem = self._present_stamps(), self._problem is not None
        try:
            answers = self._choose()
            if answers != self._answers:
                self._answers = answers
                self._stamps = self._present_stamps()
            content = content_of(self.path, answers.noised_sha256)
        except UNUSABLE as error:
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
        if self._answers.noised_sha256 is not None:
            log.info("answers.released", file=str(self.path), questions=self.questions)
        else:
            log.warning(
                "data.changed", file=str(self.path), questions_before=before.questions, questions=self.questions
            )
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
            write_durably(self._note, json.dumps(facts).encode(), mode=0o600)
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
