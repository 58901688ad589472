"""Standard output and standard error of a command, in a form in which no output ends the command.

A terminal may lack a character, the reader of a pipe may go away (`| head`), and a device may be full. Such an output must not
end a command that has spent an invite or is about to store a result. So the first failure is kept, all later output of the
stream is dropped, and the failure is reported when the command has ended.
"""

import codecs
import contextlib
import errno
import io
import select
import sys
from typing import Any, TextIO


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""Returns the escapes of the characters that an encoding lacks, as TOML writes them: backslash u, or backslash U.

    So a run spec that a command prints stays valid. Python's own form for é, a backslash and xe9, is no TOML.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = map(ord, error.object[error.start : error.end])
    return "".join(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}" for code in lacking), error.end


ESCAPES = "pluralllm.escapes"
codecs.register_error(ESCAPES, _escaped)


class Output(io.RawIOBase):
    """A file descriptor to write to. A write never raises an OSError."""

    def __init__(self, file: io.FileIO) -> None:
        self.file = file
        self.failure: OSError | None = None

    def write(self, content: Any, /) -> int:
        """Writes bytes, or drops them if an earlier write has failed. Returns how many it took."""
        while self.failure is None:
            try:
                taken = self.file.write(content)
            except OSError as error:
                self.failure = error
            else:
                if taken is not None:
                    return taken
                select.select([], [self.file], [])  # another process has made the descriptor non-blocking
        return memoryview(content).nbytes

    @property
    def is_broken(self) -> bool:
        """Whether output was lost that somebody wanted; the reader of a pipe that has closed it wants no more."""
        return self.failure is not None and self.failure.errno != errno.EPIPE

    def fileno(self) -> int:
        return self.file.fileno()

    def isatty(self) -> bool:
        return self.file.isatty()

    def writable(self) -> bool:
        return True


def keep_going() -> Output | None:
    """Replaces standard output and standard error by streams that never raise. Returns standard output's.

    A character that the stream's encoding lacks is written as an escape. A stream that is no file, as in tests, stays; None is
    returned if this is standard output.
    """
    sys.stderr = _replaced(sys.stderr)
    sys.stdout = _replaced(sys.stdout)
    return output_below(sys.stdout)


def output_below(stream: TextIO | None) -> Output | None:
    """Returns the object that writes a stream's bytes; None if `keep_going` has not made the stream."""
    below = getattr(getattr(stream, "buffer", None), "raw", None)
    return below if isinstance(below, Output) else None


def reader_is_gone(stream: TextIO) -> bool:
    """Returns whether nobody will ever read what is written to a stream, for example to a pipe whose reader has ended."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)  # errors are always reported
    except (OSError, ValueError):  # a stream of a test
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _replaced(stream: TextIO) -> TextIO:
    try:
        number = stream.fileno()
    except (OSError, ValueError):
        return stream
    if output_below(stream) is not None:
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    raw = Output(io.FileIO(number, "wb", closefd=False))
    buffered = io.BufferedWriter(raw)
    # A program that reads a pipe, for example the address of `model serve`, gets each line at once.
    return io.TextIOWrapper(buffered, stream.encoding, errors=ESCAPES, line_buffering=True)
