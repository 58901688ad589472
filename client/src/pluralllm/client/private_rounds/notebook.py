"""The notebook of a private round: each step is written here, durably, before its message leaves this machine.

The folder of a round has the file `notebook`, one JSON line for each step, and beside it the messages, each named by its step. A
step that is in the notebook is never written with other content, so that this client never says two different things in a round.
"""

import contextlib
import hashlib
import os
import secrets
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from pluralllm.client.private_rounds.lines import (
    BoxesLine,
    ComplaintLine,
    ConfirmLine,
    KeysLine,
    Line,
    RevealLine,
    SharesLine,
    UpdateLine,
    encoded,
    parsed,
    why_not,
)
from pluralllm.common.errors.private_rounds import RoundSecretsLost, WrongStep
from pluralllm.common.private_rounds.messages import Body
from pluralllm.common.process.files import create_file, make_folder, storage_errors, sync_directory, write_durably
from pluralllm.common.words.ids import RoundNumber, RunId

FILE = "notebook"
WHAT = "the notebook of a private round"
SECRET_BYTES = 32
LineT = TypeVar("LineT", bound=Line)
BodyT = TypeVar("BodyT", bound=Body)
LaterLine = SharesLine | BoxesLine | ComplaintLine | UpdateLine | ConfirmLine | RevealLine
LineWithMessage = KeysLine | SharesLine | BoxesLine | ComplaintLine | ConfirmLine | RevealLine


class Notebook:
    """The notebook of one round. Whoever writes holds the lock of the state directory."""

    def __init__(self, folder: Path, run: RunId, number: RoundNumber) -> None:
        """Reads the notebook, if there is one. Raises RoundSecretsLost if it is damaged, or if it comes from a backup."""
        self._folder, self._path = folder, folder / FILE
        self.run, self.round = run, number
        self._lines = self._read()
        self._parsed: dict[str, Body] = {}  # messages that this process has read, by step

    def __repr__(self) -> str:
        return f"Notebook({self.run!r}, {self.round}, steps={list(self._lines)})"

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that are done, in their order."""
        return tuple(self._lines)

    def line(self, kind: type[LineT]) -> LineT | None:
        """Returns the line of a kind; None if this step is not done."""
        return next((line for line in self._lines.values() if isinstance(line, kind)), None)

    def needed(self, kind: type[LineT]) -> LineT:
        """Returns the line of a kind. Raises RoundSecretsLost if this step is not done: the round goes on without this client."""
        line = self.line(kind)
        if line is None:
            raise self.lost()
        return line

    def begin(self, terms_sha256: bytes) -> bytes:
        """Returns the secret of the round, 32 bytes. The first call draws it and writes nothing: the line of the keys holds it.

        Raises WrongStep if the notebook is about other terms: one secret serves one round only.
        """
        line = self.line(KeysLine)
        if line is None:
            return secrets.token_bytes(SECRET_BYTES)
        if line.terms != terms_sha256.hex():
            raise WrongStep(problem=f"round {self.round} of run {self.run} has other terms than before")
        return bytes.fromhex(line.secret)

    def write_keys(self, terms_sha256: bytes, secret: bytes, message: bytes) -> None:
        """Writes the first line, with the round's secret. It is durable when the method returns. A repetition writes nothing.

        Raises WrongStep if other keys are in the notebook already; StorageFull.
        """
        old, sha256 = self.line(KeysLine), hashlib.sha256(message).hexdigest()
        file = old.file if old is not None else ""
        if old is None:
            with storage_errors(WHAT):
                self._make()
            write_durably(self._folder / "keys", message, mode=0o600)
            file = _identity(self._folder / "keys")
        self._add(KeysLine(terms=terms_sha256.hex(), secret=secret.hex(), file=file, message=sha256))

    def write(self, line: LaterLine, message: bytes | None = None) -> None:
        """Adds a line, and keeps the message beside it. Both are durable when the method returns. A repetition writes nothing.

        message: for the kinds of lines that have one, the bytes that the line's hash is of.
        Raises WrongStep, before anything is written, if the line must not follow those in the notebook; StorageFull.
        """
        self._check(line)
        if line.step not in self._lines and not isinstance(line, UpdateLine):
            assert message is not None
            assert hashlib.sha256(message).hexdigest() == line.message
            write_durably(self._folder / line.step, message, mode=0o600)
        self._add(line)

    def message(self, line: LineWithMessage) -> bytes:
        """Returns the message of a line, as it was sent. Raises RoundSecretsLost if its file is missing or has other content."""
        try:
            content = (self._folder / line.step).read_bytes()
        except FileNotFoundError:
            raise self.lost() from None
        if hashlib.sha256(content).hexdigest() != line.message:
            raise self.lost()
        return content

    def parsed(self, line: LineWithMessage, kind: type[BodyT]) -> BodyT:
        """Returns the message of a line, which this process reads once: its file never changes. Raises as `message`."""
        message = self._parsed.get(line.step)
        if not isinstance(message, kind):
            message = self._parsed[line.step] = kind.from_json(self.message(line))
        return message

    def lost(self) -> RoundSecretsLost:
        """Returns the error of a client that must leave the round."""
        return RoundSecretsLost(run=self.run, round=self.round)

    # Parts

    def _read(self) -> dict[str, Line]:
        """Reads the whole lines. The rest of a line that has no end is ignored: nothing was sent after it."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        lines: dict[str, Line] = {}
        for text in content[: content.rfind(b"\n") + 1].splitlines():
            line = None
            with contextlib.suppress(ValidationError):  # its text would quote the line
                line = parsed(text)
            if line is None or line.step in lines or why_not(lines, line):
                raise self.lost()
            lines[line.step] = line
        keys = lines.get("keys")
        if isinstance(keys, KeysLine) and keys.file != _identity(self._folder / "keys"):
            raise self.lost()  # a copy from a backup, which does not know what was sent after it was made
        return lines

    def _make(self) -> None:
        """Makes the folder and the empty file, durably."""
        for folder in (self._folder.parent, self._folder):
            if not folder.is_dir():
                make_folder(folder)
                sync_directory(folder.parent)
        create_file(self._path)
        sync_directory(self._folder)

    def _check(self, line: Line) -> None:
        if problem := why_not(self._lines, line):
            raise WrongStep(problem=f"round {self.round} of run {self.run}: {problem}")

    def _add(self, line: Line) -> None:
        self._check(line)
        if line.step not in self._lines:
            with storage_errors(WHAT):
                self._append(encoded(line))
            self._lines[line.step] = line

    def _append(self, text: bytes) -> None:
        with self._path.open("r+b") as file:
            file.seek(0)
            end = file.read().rfind(b"\n") + 1
            file.truncate(end)  # the rest of a line whose writing was interrupted
            file.seek(end)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def _identity(path: Path) -> str:
    """Returns a text that changes when a file is copied or restored: no program can set a file's change time.

    "" for a file that is not there.
    """
    try:
        facts = path.stat()
    except FileNotFoundError:
        return ""
    return f"{facts.st_ino} {facts.st_ctime_ns}"
