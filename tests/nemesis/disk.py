"""A disk of a federation's own that can be filled, and one that fails: a small tmpfs, and strace."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from faults.test_system_calls import why_not
from nemesis.schedule import Kind
from support.process_harness import Process

DISK_BYTES = 128 * 1024**2
PIECE_BYTES = 4096
FILLER = "filler"
FAILING_CALLS = ("fsync", "fdatasync", "pwrite64")


def unavailable() -> dict[Kind, str]:
    """What this machine cannot do, and why."""
    found = {}
    if os.geteuid() != 0:
        found[Kind.DISK_FULL] = "mounting a small file system needs root"
    if reason := why_not():
        found[Kind.DISK_ERROR] = reason
    return found


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """The folder is a file system of its own. Whatever works in it has ended when the block does."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True, timeout=30)


def fill(folder: Path) -> Path:
    """The file that takes all the space."""
    filler = folder / FILLER
    with filler.open("wb") as file, contextlib.suppress(OSError):  # others write meanwhile: until there is no more
        while True:
            os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), PIECE_BYTES)
    return filler


def fail(pid: int, number: int, log: Path) -> Process:
    """From now on one sort of system call fails with EIO, from the n-th of each thread on."""
    call = FAILING_CALLS[number % len(FAILING_CALLS)]
    first = 1 + number // 8 % 4
    inject = f"inject={call}:error=EIO:when={first}+"
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject, "-p", str(pid)]
    return Process(command, log, {}).start()
