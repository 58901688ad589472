"""The notebooks of all private rounds that this client is in: state/private/RUN.ROUND, for the length of the round.

Before a folder is removed, however its round ended, the round is entered in the history as closed: a closed round never gets keys
again. The folders must not be in a backup, because an older notebook does not know what was sent after it was made; a notebook
from a backup is recognised, and its round is closed.
"""

import shutil
from pathlib import Path

import structlog

from pluralllm.client.keeping.history import History
from pluralllm.client.private_rounds.notebook import Notebook
from pluralllm.common.errors.private_rounds import RoundSecretsLost
from pluralllm.common.errors.tree import InvalidConfig, RoundClosed
from pluralllm.common.process.files import make_folder, sync_directory, write_durably
from pluralllm.common.words.ids import RoundNumber, RunId, is_id

log = structlog.get_logger()

# By this file programs for backups leave a folder out: tar --exclude-caches, restic and borg (bford.info/cachedir).
NO_BACKUP_FILE = "CACHEDIR.TAG"
NO_BACKUP = b"""Signature: 8a477f597d28d172789f06886806bc55
# The secrets of private rounds that are under way. Leave this folder out of backups; a copy of it is never used.
"""


class Notebooks:
    """The folder of the notebooks. Whoever uses it holds the lock of the state directory."""

    def __init__(self, folder: Path, history: History) -> None:
        """Opens the folder, and closes the rounds whose notebooks cannot be used any more.

        history: remembers the newest closed round of each run.
        """
        self._folder, self._history = folder, history
        make_folder(folder)
        write_durably(folder / NO_BACKUP_FILE, NO_BACKUP, mode=0o600)
        self._sweep()

    def open(self, run: RunId, number: RoundNumber) -> Notebook:
        """Returns the notebook of a round; a new round's is empty.

        Raises RoundClosed for a round that is not newer than the newest closed one of its run; RoundSecretsLost if the notebook
        is damaged or was restored.
        """
        closed = self._history.closed_private_round(run)
        if number <= closed:
            raise RoundClosed(run=run, asked=number, current=closed + 1)
        return Notebook(self._folder / f"{run}.{number}", run, number)

    def close(self, run: RunId, number: RoundNumber) -> None:
        """Ends a round for this client: enters it in the history as closed, then removes its notebook and all older ones."""
        self._history.close_private_round(run, number)
        for folder, one, older in self._rounds():
            if one == run and older <= number:
                self._remove(folder)

    def close_run(self, run: RunId) -> None:
        """Ends all rounds of a run that is over."""
        for _, one, number in self._rounds():
            if one == run:
                self.close(run, number)

    def open_rounds(self) -> list[tuple[RunId, RoundNumber]]:
        """Returns run and number of each round that has a notebook, sorted."""
        return [(run, number) for _, run, number in self._rounds()]

    def _sweep(self) -> None:
        for folder, run, number in self._rounds():
            try:
                self.open(run, number)
            except RoundClosed:  # the process ended between the entry and the removal
                self._remove(folder)
            except RoundSecretsLost as error:
                log.error("private.notebook_lost", run=run, round=number, problem=str(error))
                self.close(run, number)
            except InvalidConfig as error:  # the run's tasks are refused until its owner has mended the history
                log.error("history.damaged", run=run, problem=str(error))

    def _rounds(self) -> list[tuple[Path, RunId, RoundNumber]]:
        rounds = []
        for folder in sorted(self._folder.iterdir()):
            run, _, number = folder.name.partition(".")
            if folder.is_dir() and is_id(run) and number.isascii() and number.isdecimal():
                rounds.append((folder, RunId(run), RoundNumber(int(number))))
        return rounds

    def _remove(self, folder: Path) -> None:
        shutil.rmtree(folder)
        sync_directory(self._folder)
