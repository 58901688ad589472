"""Starts commands and workers as forks of one process that has loaded Python's libraries: `python -m support.fork_server PATH`.

Most of a short test's time would go into imports: torch alone takes one or two seconds of a core in each worker. A test module
that names the fixture `forked_starts` has its commands, daemons and workers forked, one that names `forked_workers` its
workers and drilled clients. The interpreter that starts one passes its arguments, environment, working directory and standard
streams here (tests/forked), passes its signals on, and ends as the fork ends. If it is killed, the fork is killed a moment
later. Our own modules are loaded afresh in each fork. Tests of signals, of memory, of the start itself, and of the very moment
at which a process is killed do without.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

# None of these starts a thread or opens a channel when it is imported, so a fork of the process is as good as a new one.
LOADED = (
    *("pluralllm.server.__main__", "pluralllm.client.__main__", "pluralllm.cli.__main__"),
    *("pluralllm.server.serve_commands", "pluralllm.client.daemon_commands", "pluralllm.cli.run_commands", "rich.live"),
    "pluralllm.server.composition",
    *("grpc", "sqlalchemy.ext.asyncio", "cryptography.x509", "pyarrow.parquet", "torch", "transformers"),
    *(
        "transformers.modeling_utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.bert.modeling_bert",
    ),
)
WORKERS = "pluralllm.client.work.worker drill.client"
COMMANDS = "pluralllm pluralllm-client pluralllm-server pluralllm.cli pluralllm.client pluralllm.server"
KNOWN_THREAD = "jemalloc_bg_thd"  # of pyarrow's allocator, which knows forks
TESTS = Path(__file__).parents[1]
READY_S = 120.0
LOOK_EVERY_S = 1.0  # after the session its folder is gone


def forking(folder: Path, names: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns an environment in which processes of these names, too, are forks of the session's server. folder: the session's."""
    folders = [str(TESTS / "forked"), environment.get("PYTHONPATH", "")]
    return {
        **environment,
        "FORK_SERVER": str(started_in(folder)),
        "FORKED": f"{environment.get('FORKED', '')} {names}",
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
    }


def started_in(folder: Path) -> Path:
    """Returns the path of the socket of the session's server; the first caller starts the server."""
    path = folder / "forks"
    with (folder / "forks.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            words = [sys.executable, "-m", "support.fork_server", str(path)]
            environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
            server = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
            end_s = time.monotonic() + READY_S
            while not path.exists():
                assert server.poll() is None, "the fork server has ended"
                assert time.monotonic() < end_s, "the fork server does not start"
                time.sleep(0.05)
    return path


def serve(path: Path) -> None:
    """Answers until the socket's folder is removed; then kills the forks that are left."""
    for name in LOADED:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.startswith("pluralllm.") and not name.startswith("pluralllm.v1")]:
        del sys.modules[name]  # some of our constants are read from the environment when the module is imported
    names = {Path(task, "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()} - {KNOWN_THREAD}
    assert len(names) == 1, f"a fork of a process with several threads may hang: {names}"
    gc.collect()
    gc.freeze()
    wake, ended = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    listener = socket.socket(socket.AF_UNIX)
    draft = path.with_suffix(".draft")
    listener.bind(str(draft))
    listener.listen(64)
    draft.rename(path)
    forks: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while path.exists():
            for key, _ in selector.select(LOOK_EVERY_S):
                if key.fileobj is listener:
                    asking = listener.accept()[0]
                    pid = _forked(asking)
                    forks[pid] = asking
                    selector.register(asking, selectors.EVENT_READ, pid)
                elif key.fileobj is ended:
                    ended.recv(4096)
                else:
                    _pass_on(key.data, forks[key.data], selector)
            while forks and (waited := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                pid, status = waited
                asking = forks.pop(pid)
                with contextlib.suppress(KeyError):  # who asked is gone
                    selector.unregister(asking)
                with contextlib.suppress(OSError):
                    asking.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
                asking.close()
    for pid in forks:
        os.kill(pid, signal.SIGKILL)


def _pass_on(pid: int, asking: socket.socket, selector: selectors.BaseSelector) -> None:
    """Sends a fork the signals of the process that asked for it, or kills the fork when that process is gone."""
    try:
        numbers = asking.recv(64)
    except OSError:
        numbers = b""
    if not numbers:
        selector.unregister(asking)
    for number in numbers or [signal.SIGKILL]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _forked(asking: socket.socket) -> int:
    head, streams, _, _ = socket.recv_fds(asking, 4, 3)
    body = b""
    while len(body) < int.from_bytes(head, "big"):
        body += asking.recv(1 << 16)
    pid = os.fork()
    if pid == 0:
        _act(json.loads(body), streams)
    for stream in streams:
        os.close(stream)
    return pid


def _act(facts: Any, streams: list[int]) -> NoReturn:
    """Runs in the fork: connects its streams, sets its environment, runs the module or the script, and ends."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, 1024)
        arguments, environment, folder = facts
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
        os.chdir(folder)
        gc.unfreeze()
        _run(arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as an interpreter does
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
        os._exit(code)


def _run(arguments: list[str]) -> None:
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, 1, "utf-8", errors, closefd=False)  # noqa: SIM115 - open to the process's end; 1: by lines
        for number, mode, errors in ((0, "r", "strict"), (1, "w", "strict"), (2, "w", "backslashreplace"))
    )
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
