"""The limit of this process's open files: raised at start, and divided between connections and files.

Every connection is an open file. Without a ceiling, strangers who connect and send nothing take the last one, and then the
coordinator can write no update and admit no member.
"""

import contextlib
import resource
from dataclasses import dataclass
from pathlib import Path

TARGET = 65_536  # soft limit that the coordinator sets for itself, as far as the hard limit allows
COMFORTABLE = 4_096  # below this limit doctor and the log warn
RESERVE = 64  # files that are open whatever members do: database, log, ports, sockets of the page and of Prometheus
MOST_JOINING = 256  # connections on the enrolment port; each lasts some seconds
FEWEST = 8  # connections on a port, however low the limit


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The largest numbers of connections at a time, on the main port and on the enrolment port."""

    main: int
    enrolment: int


def raise_limit() -> int:
    """Raises the soft limit to the hard limit, but to no more than TARGET, and returns the soft limit.

    A service usually starts with a soft limit of 1,024 and a much higher hard limit, because programs that use select() need
    the low one. The coordinator does not use select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reachable = TARGET if hard == resource.RLIM_INFINITY else min(TARGET, hard)
    if soft != resource.RLIM_INFINITY and soft < reachable:
        with contextlib.suppress(ValueError, OSError):  # some kernels allow less than the hard limit that they report
            resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
    return limit()


def limit() -> int:
    """Returns the soft limit of this process; TARGET if there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return TARGET if soft == resource.RLIM_INFINITY else soft


def reachable_limit() -> int:
    """Returns the limit that `raise_limit` would reach in a process with the limits of this process. Changes nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard):
        return TARGET
    return max(soft, min(TARGET, hard))


def limit_of(process: int) -> int | None:
    """Returns the soft limit of another process on this machine, or None if the kernel does not tell it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{process}/limits").read_text(encoding="ascii").splitlines():
            if line.startswith("Max open files"):
                return int(line.split()[3])
    return None


def ceilings(limit: int, max_connections: int) -> Ceilings:
    """Divides a limit of open files. Half of what is left after RESERVE is for connections.

    The other half is for files: averaging opens one file for each update of a round, and an upload or a download opens one.
    limit: the process's limit of open files. max_connections: the configured ceiling of the main port.
    """
    connections = max(0, limit - RESERVE) // 2
    enrolment = max(FEWEST, min(MOST_JOINING, connections // 6))
    return Ceilings(max(FEWEST, min(max_connections, connections - enrolment)), enrolment)
