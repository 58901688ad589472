"""The folders in the state directory that a running daemon writes into. Another program may remove one, for example to make room.

Without its folder, each task would fail until somebody starts the daemon anew.
"""

from pathlib import Path

import structlog

from pluralllm.common.process.files import make_folder

log = structlog.get_logger()

WORKING_FOLDERS = ("outbox", "models", "drafts", "history", "disclosure/runs", "private")


def mend_folders(state: Path) -> None:
    """Makes each working folder that is missing, and reports it: the files that were in it are lost.

    state: the daemon's state directory.
    """
    for name in WORKING_FOLDERS:
        folder = state / name
        if folder.is_dir():
            continue
        make_folder(folder)
        log.error(
            "state.folder_lost", folder=str(folder), fix="find out which program removes files of the state directory"
        )
