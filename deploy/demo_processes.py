"""Runs the demo's federation as processes: the coordinator, the administrator's commands and each partner's daemon.

A signal only sets a flag here. Whatever waits looks at the flag, so no process outlives an interrupted demo.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pluralllm.client.data.codebook import keep_codebook
from pluralllm.client.data.private_data import write_group
from pluralllm.client.disclosure.policy import new_policy
from pluralllm.client.private_rounds import roster_watch
from pluralllm.common.errors.tree import Unreachable
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.words.questions import Question
from pluralllm.operator.remote import Remote

START_LIMIT_S = 120.0
STOP_LIMIT_S = 15.0
LOOK_EVERY_S = 0.5
LOG_LINES_SHOWN = 15
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoFailed(Exception):
    """Failure of the demo; the error's text describes what went wrong."""


class Interrupted(Exception):
    """The end of a demo that got a signal.

    The handler of the signal only sets a flag, and the demo looks at the flag where it waits. An exception out of the handler
    could fall between the start of a process and the note of it, and the process would run on.
    """


_has_signal = threading.Event()


def note_signal(*_: object) -> None:
    """Notes that the demo has got a signal: the handler of STOP_SIGNALS."""
    _has_signal.set()


def pause(limit_s: float) -> None:
    """Waits for `limit_s` seconds. Raises Interrupted at once if the demo has got a signal, or gets one meanwhile."""
    if _has_signal.wait(limit_s):
        raise Interrupted


@dataclass(frozen=True)
class Child:
    popen: "subprocess.Popen[bytes]"
    log: Path

    def tail(self) -> str:
        """Returns the last lines of the process's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])


class Children:
    """The processes of the demo. At the end of a `with` block all that still run are stopped, whatever happens."""

    def __init__(self) -> None:
        self._started: list[Child] = []

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        running = [child.popen for child in self._started if child.popen.poll() is None]
        for popen in running:
            popen.terminate()
        until_s = time.monotonic() + STOP_LIMIT_S
        for popen in running:
            try:
                popen.wait(max(0.0, until_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()

    def start(self, command: list[str], log: Path) -> Child:
        """Starts a process in a process group of its own, so that a Ctrl-C reaches only the demo. log: the file of its output."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment.pop("GRPC_VERBOSITY", None)  # it silences the demo itself; services keep gRPC's lines
        with log.open("wb") as file:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        child = Child(popen, log)
        self._started.append(child)
        return child


def need_alive(processes: list[Child]) -> None:
    """Raises DemoFailed, with the end of its log, if a process has ended."""
    for child in processes:
        if child.popen.poll() is not None:
            raise DemoFailed(f"a process ended too early (exit code {child.popen.returncode})\n{child.tail()}")


@dataclass(frozen=True)
class Person:
    """Administrator of the demo's federation, who runs `pluralllm` commands."""

    identity: Path
    address: str

    def does(self, *arguments: str) -> None:
        """Runs one `pluralllm` command with these arguments, as a person would type the command."""
        run_command("pluralllm.cli", "--identity", str(self.identity), *arguments, "--coordinator", self.address)


@dataclass(frozen=True)
class Partner:
    """Partner organisation with a private data file and a client daemon."""

    group: str
    questions: tuple[Question, ...]
    role: str

    @property
    def name(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.group.lower().split(" (")[0])

    def join(self, person: Person, folder: Path) -> None:
        """Gets an invite from the administrator `person` and joins the federation with it.

        The partner's own command creates the private key, so the key never leaves the partner.
        """
        home = folder / self.name
        home.mkdir(exist_ok=True)
        _write_private_file(home, self.questions)
        invite = folder / f"{self.name}.invite"
        held_out = ["--held-out"] if self.role == "held_out" else []
        person.does("invite", self.name, "--role", "client", "--group", self.group, *held_out, "--out", str(invite))
        data = ("--data", str(home / "answers.jsonl"))
        run_command("pluralllm.client", "join", str(invite), "--state-dir", str(home / "state"), *data)

    def start(self, children: Children, folder: Path, model_path: Path, *, stays: bool = False) -> Child:
        """Starts the partner's daemon. stays: whether it goes on when the run has ended."""
        home = folder / self.name
        config = {
            "data": str(home / "answers.jsonl"),
            "state_dir": str(home / "state"),
            "cache_dir": str(folder / "embedding-cache"),
            "embedding_model_path": str(model_path),
            "exit_when_run_over": not stays,
            "threads": 1,
        }
        lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in config.items()]
        (home / "client.toml").write_text("".join(lines))
        command = [sys.executable, "-m", "pluralllm.client", "run", "--config", str(home / "client.toml")]
        return children.start(command, folder / f"{self.name}.log")

    def does(self, folder: Path, *arguments: str) -> str:
        """Runs one `pluralllm-client` command with the daemon's configuration. Returns what the command has printed."""
        return run_command("pluralllm.client", *arguments, "--config", str(folder / self.name / "client.toml"))


def _write_private_file(home: Path, questions: tuple[Question, ...]) -> None:
    """Writes what a partner has before it joins: its answers, the list of what was asked, and its policy.

    The policy is the usual one. It states that all people weigh the same, because a file of shares does not show it.
    """
    write_group(home / "answers.jsonl", questions)
    keep_codebook(home / "answers.jsonl", questions)
    (home / "state").mkdir(exist_ok=True)
    (home / "state" / "policy.toml").write_text(new_policy(noise=True) + "max_weight = 1.0\n")


def run_command(module: str, *arguments: str) -> str:
    """Runs a command to its end and returns what it has printed. Raises DemoFailed if it fails."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as popen:
        try:
            output, errors = _answer(popen)
        finally:
            popen.kill()  # without an effect if the command has ended
    if popen.returncode != 0:
        raise DemoFailed(f"{module} {' '.join(arguments[:2])}: {errors.strip()}")
    return output


def _answer(popen: "subprocess.Popen[str]") -> tuple[str, str]:
    """Returns the output and the errors of a command that has ended.

    Raises DemoFailed after START_LIMIT_S, Interrupted after a signal.
    """
    until_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until_s:
        pause(0.0)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return popen.communicate(timeout=LOOK_EVERY_S)
    raise DemoFailed(f"{' '.join(map(str, popen.args))} has not ended after {START_LIMIT_S:.0f} s")  # type: ignore[arg-type]


def connect(path: Path, admin: Path, server: Child) -> Remote:
    """Returns the administrator's connection to the coordinator, once the coordinator answers. Raises DemoFailed if it does not.

    path: the file into which the coordinator writes its address. admin: the folder of the administrator's identity.
    """
    until_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until_s:
        if server.popen.poll() is not None:
            raise DemoFailed(f"the coordinator did not start\n{server.tail()}")
        if path.is_file():
            remote = Remote.of_member(load_identity(admin, "pluralllm").at(path.read_text()))
            try:
                remote.runs()
            except Unreachable:
                remote.close()
            else:
                return remote
        pause(0.1)
    raise DemoFailed(f"the coordinator does not answer after {START_LIMIT_S:.0f} s\n{server.tail()}")


def wait_for_peer_keys(partners: list[Partner], clients: list[Child], folder: Path) -> None:
    """Waits until the coordinator has the peer key of every client: then the roster does not change any more."""
    until_s = time.monotonic() + START_LIMIT_S
    for partner, client in zip(partners, clients, strict=True):
        while not (folder / partner.name / "state" / roster_watch.FILE).is_file():
            if client.popen.poll() is not None or time.monotonic() > until_s:
                raise DemoFailed(f"a client has not connected\n{client.tail()}")
            pause(0.1)


def wait_for_end(client: Child) -> None:
    """Waits until a daemon has ended by itself. Raises DemoFailed if it does not, or ends with an error."""
    until_s = time.monotonic() + START_LIMIT_S
    while (code := client.popen.poll()) is None:
        if time.monotonic() > until_s:
            raise DemoFailed(f"a client did not end with the run\n{client.tail()}")
        pause(0.1)
    if code != 0:
        raise DemoFailed(f"a client ended with exit code {code}\n{client.tail()}")


def pin(partners: list[Partner], folder: Path) -> str:
    """Lets each partner pin the peer keys of all. Returns the digest of the roster, which the first partner reads out.

    The command of each other partner compares the digest with that of the roster which this partner sees, and refuses another.
    """
    digest = partners[0].does(folder, "peers", "--digest").strip()
    names = ",".join(partner.name for partner in partners)
    arguments = ("peers", "pin", "--roster", digest, "--names", names)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(lambda partner: partner.does(folder, *arguments), partners))
    return digest
