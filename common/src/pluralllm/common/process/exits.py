"""Ends every command of this project in the same way: one clear line for an error, and a documented exit code."""

import errno
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from pluralllm.common.errors.root import Broken, PluralError
from pluralllm.common.process.environment import silence_libraries
from pluralllm.common.process.lifetime import INTERRUPTED, begin_interruptible, end_with, runs_until_stopped
from pluralllm.common.process.streams import keep_going
from pluralllm.common.text.printable import printable
from pluralllm.common.text.reading import Unreadable

BROKEN, USAGE, REFUSED, UNREACHABLE, REPLACED = 1, 2, 3, 4, 5

SHOWN_FRAMES, MAX_SHOWN_CHARACTERS = 8, 500

# What a person can do about an error of the operating system that names no path.
OF_THE_MACHINE = {
    errno.ENOSPC: "Make room on the disk, and in the folder that TMPDIR names.",
    errno.EDQUOT: "Make room in this user's quota.",
    errno.EFBIG: "Raise this process's limit of a file's size: ulimit -f.",
    errno.EROFS: "Choose a folder on a file system that can be written.",
    errno.EMFILE: "Raise this process's limit of open files: ulimit -n.",
    errno.ENFILE: "Raise this machine's limit of open files.",
    errno.ENOMEM: "Free some memory, or use a machine with more.",
    errno.ENOENT: "Set TMPDIR to a folder that this user may write.",  # from the module tempfile, which tries many folders
}

EXIT_CODES = (
    "Exit codes: 0 ok, 1 broken (ours), 2 usage, 3 refused, 4 coordinator unreachable, 5 replaced,"
    " 130 or 143 interrupted. An error ends with its code: pluralllm explain CODE."
)


def exit_code_of(leaf: type[PluralError]) -> int:
    """Returns the exit code of a command that fails with an error of this class."""
    from pluralllm.common.errors.tree import NoAnswer, SessionReplaced  # noqa: PLC0415 - a command that succeeds needs no tree

    if issubclass(leaf, NoAnswer):
        return UNREACHABLE
    if issubclass(leaf, SessionReplaced):
        return REPLACED  # a supervisor must not start it again: two daemons of one identity would replace each other for ever
    return BROKEN if issubclass(leaf, Broken) else REFUSED


def run_command(command: Callable[[], object]) -> None:
    """Runs a whole command line. After an error, ends the process with the exit code that belongs to the error.

    The user sees one line instead of a stack trace. For an error that nobody expected, the line names the places in the code:
    a stack trace would repeat the other side's raw texts. Output that cannot be written does not end the command: it is
    reported at the end.
    """
    output = keep_going()
    begin_interruptible()
    silence_libraries(is_service=runs_until_stopped())
    code = 0
    try:
        _run(command)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else BROKEN if ended.code else 0
    sys.stdout.flush()
    if output is not None and output.is_broken:
        reason = output.failure and output.failure.strerror
        sys.stderr.write(
            f"error: standard output could not be written ({reason}), so a part of it is missing. What the command did stays"
            " done: see its effect before you repeat it.\n"
        )
        code = code or BROKEN
    end_with(code)
    sys.exit(code)


def _run(command: Callable[[], object]) -> None:
    """Runs a command line. Raises SystemExit after an error, with the error's exit code."""
    try:
        command()
    except PluralError as error:
        # The facts may come from the other side; the code at the end leads to `pluralllm explain`.
        sys.stderr.write(f"error: {printable(str(error), lines=True)} [{error.reason}]\n")
        sys.exit(exit_code_of(type(error)))
    except KeyboardInterrupt:
        # Ends without finalisers: a gRPC channel that was interrupted while it began a call waits for ever in its own.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(INTERRUPTED)
    except Unreadable as error:
        sys.stderr.write(f"error: {printable(str(error))}\n")
        sys.exit(REFUSED)
    except OSError as error:  # about a path that the user gave, or about a file in a state directory
        if error.filename is None:
            if _is_without_folder():
                sys.stderr.write("error: the working directory does not exist any more: change to another folder\n")
                sys.exit(REFUSED)
            if error.errno in OF_THE_MACHINE:
                sys.stderr.write(f"error: {printable(f'{error.strerror}. {OF_THE_MACHINE[error.errno]}')}\n")
                sys.exit(REFUSED)
            _end_unexpected(error)
        from pluralllm.common.process.files import owner_hint  # noqa: PLC0415 - brings all errors

        hint = owner_hint(Path(os.fsdecode(error.filename))) if isinstance(error, PermissionError) else ""
        fix = hint or "Look at that path: what it is, and who may read and write it."
        sys.stderr.write(f"error: {printable(f'{error}. {fix}')}\n")
        sys.exit(REFUSED)
    except MemoryError:
        sys.stderr.write(f"error: Not enough memory. {OF_THE_MACHINE[errno.ENOMEM]}\n")
        sys.exit(REFUSED)
    except Exception as error:  # noqa: BLE001 - the last handler of the process
        _end_unexpected(error)


def _is_without_folder() -> bool:
    """Returns whether the working directory has been deleted, so that no relative path can be used."""
    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd does the same
    except OSError:
        return True
    return False


def _end_unexpected(error: Exception) -> NoReturn:
    """Ends the process after an error that nobody expected. The user sees what it is and where, in one line."""
    frames = traceback.extract_tb(error.__traceback__)[-SHOWN_FRAMES:]
    places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
    what = f"{type(error).__name__}: {error}"[:MAX_SHOWN_CHARACTERS]
    sys.stderr.write(
        f"error: unexpected {printable(f'{what} (at {places})')}. Please report this line to the maintainers.\n"
    )
    sys.exit(BROKEN)
