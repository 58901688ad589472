"""Starts a real coordinator as a process on loopback, with an administrator and members, for this folder's benchmarks."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from pluralllm.client.joining.joining import join
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.trust.identity import Identity, load_identity
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.operator.remote import Remote

START_LIMIT_S = 600.0  # on a machine with other work, too
SERVER = [sys.executable, "-m", "pluralllm.server"]


@contextlib.contextmanager
def coordinator(
    folder: Path, *, plain_text: bool = False, with_authority: bool = True, files: int | None = None, **settings: str
) -> Iterator[psutil.Process]:
    """Initialises a coordinator in `folder` and serves it as a process; terminates it at the end of the `with` block.

    settings: keys of the coordinator's configuration; they are passed as environment variables PLURALLLM_SERVER_*.
    with_authority: False for a folder that was served before and has its certificate authority already.
    files: limit of the process's open files; None for the limit of this process.
    """
    state = ["--state-dir", str(folder / "state")]
    environment = {
        **os.environ,
        "PLURALLLM_SERVER_LISTEN": "127.0.0.1:0",
        "PLURALLLM_SERVER_ENROLMENT_LISTEN": "127.0.0.1:0",
        **{f"PLURALLLM_SERVER_{name.upper()}": value for name, value in settings.items()},
    }
    if plain_text:
        environment["PLURALLLM_SERVER_PLAIN_TEXT"] = "true"
    elif with_authority:
        init = [*SERVER, "init", "--host", "127.0.0.1", "--admin-identity", str(folder / "admin"), *state]
        subprocess.run(init, check=True, capture_output=True, timeout=START_LIMIT_S, env=environment)
    (folder / "state" / "address").unlink(missing_ok=True)  # of an earlier process, which answers no more
    with (folder / "coordinator.log").open("wb") as log:
        limited = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh"] if files else []
        running = subprocess.Popen([*limited, *SERVER, "serve", *state], stdout=log, stderr=log, env=environment)
    try:
        yield psutil.Process(running.pid)
    finally:
        running.terminate()
        running.wait(20)


def administrator(folder: Path, *, plain_text: bool = False) -> Remote:
    """Returns the administrator's connection when the coordinator answers; waits for a limited time.

    folder: the folder that the coordinator was initialised in.
    """
    until_s = time.monotonic() + START_LIMIT_S
    while True:
        with contextlib.suppress(OSError, PluralError):
            address = (folder / "state" / "address").read_text().strip()
            remote = (
                Remote.in_plain_text(address)
                if plain_text
                else Remote.of_member(load_identity(folder / "admin", "").at(address))
            )
            remote.runs(summary=True)
            return remote
        if time.monotonic() > until_s:
            raise SystemExit((folder / "coordinator.log").read_text())
        time.sleep(0.02)


def member(remote: Remote, folder: Path, name: str, role: MemberRole, group_role: GroupRole | None = None) -> Identity:
    """Invites a member, lets it join over the enrolment port, and returns its identity; a client gets its own group.

    remote: the administrator's connection. folder: for the member's files. group_role: of a client's group; None means train.
    """
    group = f"group of {name}" if role is MemberRole.CLIENT else ""
    runs = ("*",) if role is MemberRole.OBSERVER else ()
    invite = remote.invite(name, role, group, group_role, 3600, needs_approval=False, runs=runs)
    identity, _ = join(invite, folder / name, "", frozenset(MemberRole))
    return identity


def free_port() -> int:
    """Returns a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
