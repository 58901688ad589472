"""Ends every command of this project in the same way: one clear line for an error, and a documented exit code."""

import os
import sys
from collections.abc import Callable

from pluralllm.common.errors.tree import Broken, PluralError, Unreachable
from pluralllm.common.text.printable import printable

BROKEN, USAGE, REFUSED, UNREACHABLE, INTERRUPTED = 1, 2, 3, 4, 130

EXIT_CODES = "Exit codes: 0 ok, 1 broken (ours), 2 usage, 3 refused, 4 coordinator unreachable, 130 interrupted."


def exit_code_of(leaf: type[PluralError]) -> int:
    """Returns the exit code of a command that fails with an error of this class."""
    if issubclass(leaf, Unreachable):
        return UNREACHABLE
    return BROKEN if issubclass(leaf, Broken) else REFUSED


def run_command(command: Callable[[], object]) -> None:
    """Runs a whole command line. After an error, ends the process with the exit code that belongs to the error.

    For a PluralError or an OSError about a file, the user sees one line instead of a stack trace. Other errors are raised to the
    caller.
    """
    try:
        command()
    except PluralError as error:
        sys.stderr.write(f"error: {printable(str(error), lines=True)}\n")  # its facts may come from the other side
        sys.exit(exit_code_of(type(error)))
    except KeyboardInterrupt:
        # Ends without finalisers: a gRPC channel that was interrupted while it began a call waits for ever in its own.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of this output has closed the pipe, for example `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # about a path that the user gave, or about a file in a state directory
        if error.filename is None:
            raise
        sys.stderr.write(
            f"error: {printable(str(error))}. Look at that path: what it is, and who may read and write it.\n"
        )
        sys.exit(REFUSED)
