"""Faults of a disk: a small tmpfs of a federation's own that can be filled, and strace, which makes calls fail."""

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
    """Returns the kinds of faults that this machine cannot inject, with the reasons."""
    reasons = {}
    if os.geteuid() != 0:
        reasons[Kind.DISK_FULL] = "mounting a small file system needs root"
    if reason := why_not():
        reasons[Kind.DISK_ERROR] = reason
    return reasons


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mounts a small file system on the folder until the block ends; all processes in it must have ended by then."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True, timeout=30)


def fill(folder: Path) -> Path:
    """Fills the disk with one file and returns that file's path."""
    filler = folder / FILLER
    # Other processes write meanwhile, so this goes on until no space is left.
    with filler.open("wb") as file, contextlib.suppress(OSError):
        while True:
            os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), PIECE_BYTES)
    return filler


def fail(pid: int, number: int, log: Path) -> Process:
    """Makes one kind of system call fail with EIO from now on, from the n-th call of each thread on."""
    call = FAILING_CALLS[number % len(FAILING_CALLS)]
    first = 1 + number // 8 % 4
    inject = f"inject={call}:error=EIO:when={first}+"
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject, "-p", str(pid)]
    return Process(command, log, {}).start()
