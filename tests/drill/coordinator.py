"""A coordinator that sends itself a signal at a point: the production composition root with its durable steps wrapped.

`python -m drill.coordinator serve --config FILE` reads the variables below; without them it is the ordinary coordinator.
"""

import asyncio
import functools
import inspect
import os
import pathlib
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from drill import points
from drill.points import AFTER, APPLY, BEFORE

from pluralllm.common.process.lifetime import begin
from pluralllm.common.process.streams import keep_going
from pluralllm.server import __main__ as server
from pluralllm.server.aggregation import update_files as updates
from pluralllm.server.commands import authority_commands
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.rounds.events import event_kind
from pluralllm.server.runs import uploads
from pluralllm.server.runs.assembly import Assembly
from pluralllm.server.runs.coordinator import Coordinator

# point:n or point:n:SIGTERM; at its n-th pass of that point the process sends itself the signal, by default SIGKILL.
KILL_AT = "PLURALLLM_DRILL_KILL_AT"
TRACE = "PLURALLLM_DRILL_TRACE"  # a file that gets a line for each pass of a point
# The folder for the administrator's identity; a state directory without an authority gets one first.
ADMIN = "PLURALLLM_DRILL_ADMIN"
# One thread does all work on files, because strace counts system calls thread by thread.
ONE_THREAD = "PLURALLLM_DRILL_ONE_THREAD"
Call = Callable[..., Any]


class Passes:
    """Counts the passes of each point, writes them down and kills the process at the chosen one."""

    def __init__(self, kill_at: str, trace: str) -> None:
        point, number, name = (*kill_at.split(":"), "", "")[:3]
        self._deadly, self._signal = (point, int(number or 1)), signal.Signals[name or "SIGKILL"]
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if trace else None
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, point: str) -> None:
        with self._lock:
            self._counts[point] += 1
            if self._trace is not None:
                os.write(self._trace, f"{os.getpid()} {point}\n".encode())
            if (point, self._counts[point]) == self._deadly:
                os.kill(os.getpid(), self._signal)

    def around(self, step: str, call: Call) -> Call:
        """Returns the same call with a point before and one after it; store.apply has points for each kind of event."""

        def names(positional: tuple[Any, ...]) -> list[str]:
            return [f"{APPLY}.{event_kind(change.event)}" for change in positional[0]] if step == APPLY else [step]

        @functools.wraps(call)
        async def wait(*positional: Any, **named: Any) -> Any:
            for name in names(positional):
                self.note(f"{name}.{BEFORE}")
            result = await call(*positional, **named)
            for name in names(positional):
                self.note(f"{name}.{AFTER}")
            return result

        @functools.wraps(call)
        def run(*positional: Any, **named: Any) -> Any:
            self.note(f"{step}.{BEFORE}")
            result = call(*positional, **named)
            self.note(f"{step}.{AFTER}")
            return result

        return wait if inspect.iscoroutinefunction(call) else run

    def watch(self, owner: type, parameter: str, contract: str) -> None:
        """Puts points around the methods of whatever object `owner` receives as `parameter`; that object fulfils the contract."""
        construct: Any = owner.__init__  # type: ignore[misc]
        signature = inspect.signature(construct)

        @functools.wraps(construct)
        def constructed(*positional: Any, **named: Any) -> None:
            dependency = signature.bind(*positional, **named).arguments[parameter]
            for method in points.methods(contract):
                setattr(dependency, method, self.around(f"{contract}.{method}", getattr(dependency, method)))
            construct(*positional, **named)

        owner.__init__ = constructed  # type: ignore[misc]


def install(passes: Passes) -> None:
    """Puts a point before and after every step that points.py lists."""
    for owner, parameter, contract in (
        (Assembly, "store", "store"),
        (Coordinator, "inbox", "inbox"),
        (Assembly, "blobs", "blobs"),
        (AuditLog, "store", "membership"),
        (Assembly, "uploads", "uploads"),
    ):
        passes.watch(owner, parameter, contract)
    for step, function in points.FUNCTIONS.items():
        points.replace_everywhere("pluralllm", function, passes.around(step, function), sys.modules)
    pathlib.Path.rename = passes.around(points.RENAME, pathlib.Path.rename)  # type: ignore[method-assign]
    # The files of a drill are small, so the steps that are due every 16 MiB are done every time.
    uploads.FLUSH_BYTES = updates.SLICES_TO_FLUSH = 1


def use_one_thread() -> None:
    construct = Assembly.__init__

    @functools.wraps(construct)
    def constructed(*positional: Any, **named: Any) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        construct(*positional, **named)

    Assembly.__init__ = constructed  # type: ignore[method-assign]


def initialise(config: Path, admin: Path) -> None:
    """Runs `pluralllm-server init` unless the administrator's folder exists already."""
    if not (admin / "credentials.pem").exists():
        authority_commands.init(host=["127.0.0.1"], admin_identity=admin, config=config)


def main() -> None:
    """Runs the server's command line with the points in it."""
    begin("__main__", "pluralllm-server", "serve")  # as the command line does, before anything is written
    keep_going()
    if admin := os.environ.get(ADMIN):
        initialise(Path(sys.argv[sys.argv.index("--config") + 1]), Path(admin))
    install(Passes(os.environ.get(KILL_AT, ""), os.environ.get(TRACE, "")))
    if os.environ.get(ONE_THREAD):
        use_one_thread()
    server.main()


if __name__ == "__main__":
    main()
