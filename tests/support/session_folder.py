"""A folder that all test processes of one session share, so that what is slow to make is made once.

The first process makes the folder, names it in the environment and removes it; the processes that it starts find its name there.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

VARIABLE = "PLURALLLM_TESTS_FOLDER"


def open_session_folder() -> Callable[[], None]:
    """Makes the folder if no process before this one has made it. Returns the function that removes it."""
    if VARIABLE in os.environ:
        return lambda: None
    folder = os.environ[VARIABLE] = tempfile.mkdtemp(prefix="pluralllm-tests-")
    return lambda: shutil.rmtree(folder, ignore_errors=True)


def session_folder() -> Path:
    return Path(os.environ[VARIABLE])


def embeddings(data: Path | None = None) -> Path:
    """The cache of embedded texts that the daemons of a session share: a worker that finds its texts there loads no transformer.

    data: a private file. All daemons with this content then share a cache of their own, whose vectors are the same bits
    whenever they are made: on some processors a vector's last bits depend on the texts that are embedded beside it.
    """
    shared = session_folder() / "embeddings"
    return shared if data is None else shared / hashlib.sha256(data.read_bytes()).hexdigest()[:16]


def made_once(name: str, make: Callable[[Path], object], folder: Path) -> Path:
    """Copies to `folder`, with its times, what `make` has written for the first caller of this name. Returns `folder`."""
    made = session_folder() / name
    if not made.exists():
        draft = Path(tempfile.mkdtemp(dir=made.parent))
        make(draft)
        try:
            draft.rename(made)
        except OSError:  # another process was faster
            shutil.rmtree(draft)
    return Path(shutil.copytree(made, folder, dirs_exist_ok=True))
