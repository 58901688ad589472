"""How every command of this project ends: one clear line for an error, and a documented exit code."""

import os
import sys
from collections.abc import Callable

from pluralllm.common.errors.tree import Broken, PluralError, Unreachable

BROKEN, USAGE, REFUSED, UNREACHABLE, INTERRUPTED = 1, 2, 3, 4, 130

EXIT_CODES = "Exit codes: 0 ok, 1 broken (ours), 2 usage, 3 refused, 4 coordinator unreachable, 130 interrupted."


def exit_code_of(leaf: type[PluralError]) -> int:
    """What a command ends with that meets this error."""
    if issubclass(leaf, Unreachable):
        return UNREACHABLE
    return BROKEN if issubclass(leaf, Broken) else REFUSED


def run_command(command: Callable[[], object]) -> None:
    """Runs a whole command line. No stack trace of an error that is ours to tell reaches a person."""
    try:
        command()
    except PluralError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(exit_code_of(type(error)))
    except KeyboardInterrupt:
        # At once: a gRPC channel that was interrupted while it began a call waits for ever in its finaliser.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(INTERRUPTED)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # of a path that was given, or of what lies in a state directory
        if error.filename is None:
            raise
        sys.stderr.write(f"error: {error}. Look at that path: what it is, and who may read and write it.\n")
        sys.exit(REFUSED)
