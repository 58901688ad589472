"""The file of the privacy ledger, and its copies: one beside each private file. They only grow, and each line is durable.

A copy makes sure that a restored or lost state directory does not give spent privacy back: where one of the files continues the
other, the longer one counts. Whoever restores all of them to an earlier state gets the loss back; nothing here can notice that.
"""

import os
from pathlib import Path

from pluralllm.client.data.answers import ledger_beside
from pluralllm.client.privacy.entries import Entry, entries_of, head_of, line_of, whole_lines
from pluralllm.common.errors.tree import LedgerDiverged
from pluralllm.common.process.files import create_file, storage_errors, sync_directory
from pluralllm.common.text.reading import opened

FILE = "ledger.jsonl"


class Ledger:
    """The ledger in a folder. Whoever appends holds the folder's lock."""

    def __init__(self, folder: Path, data: Path) -> None:
        """Reads the ledger, and the copies beside `data` and beside every private file that the ledger names.

        Raises LedgerBroken if a file is damaged; LedgerDiverged if one file does not continue the other.
        """
        self._file = folder / FILE
        self._content = whole_lines(_content(self._file))
        waiting, compared = [data], set[Path]()
        while waiting:
            path = waiting.pop()
            copy = ledger_beside(path)
            if copy in compared:
                continue
            compared.add(copy)
            self._content = self._longer(copy)
            waiting += [Path(entry.data) for entry in self.entries]
        self._copies = tuple(sorted(copy for copy in compared if copy.parent.is_dir()))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, the oldest first."""
        return entries_of(self._content, str(self._file))

    @property
    def head(self) -> str:
        """The hash of the last line, which the next entry holds; "" for an empty ledger."""
        return head_of(self._content.splitlines(keepends=True)[-1]) if self._content else ""

    def append(self, entry: Entry) -> None:
        """Adds an entry to the ledger, then to its copies. It is durable in all of them when the method returns.

        A file that lacks earlier lines gets them first. Raises StorageFull if the disk is full.
        """
        self._content += line_of(entry)
        self.bring_up()

    def bring_up(self) -> None:
        """Adds to the ledger and to its copies what they lack. All of it is durable when the method returns.

        Raises LedgerDiverged, before anything is written, if another process has written something else meanwhile; StorageFull.
        """
        files = (self._file, *self._copies)
        for path in files:
            if not self._content.startswith(whole_lines(_content(path))):
                raise LedgerDiverged(file=str(self._file), copy=str(path))
        for path in files:
            _bring_up(path, self._content)

    def _longer(self, copy: Path) -> bytes:
        """Returns the longer of the ledger and a copy. Raises LedgerDiverged if one does not continue the other."""
        content = whole_lines(_content(copy))
        entries_of(content, str(copy))
        if not (content.startswith(self._content) or self._content.startswith(content)):
            raise LedgerDiverged(file=str(self._file), copy=str(copy))
        return max(self._content, content, key=len)


def _content(path: Path) -> bytes:
    """Returns the bytes of a file; none if there is no such file."""
    if not path.exists():
        return b""
    with opened(path) as file:
        return file.read()


def _bring_up(path: Path, content: bytes) -> None:
    """Appends to a file what it lacks of the content. The file is durable afterwards.

    A rest of an interrupted line is cut off first. The file is never replaced, so that a power loss cannot lose a line.
    """
    present = whole_lines(_content(path))
    with storage_errors(path.name):
        create_file(path)
        with path.open("r+b") as file:
            file.truncate(len(present))
            file.seek(len(present))
            file.write(content[len(present) :])
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)
