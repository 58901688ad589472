"""The coordinator and client daemons as real processes on loopback, for tests that kill them."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from support.commands import SERVER, typed
from support.open_policy import open_policy_text
from support.session_folder import embeddings, made_once

from pluralllm.client.data.private_data import write_group
from pluralllm.client.data.sample_survey import MOST_QUESTIONS, sample_groups
from pluralllm.client.joining.joining import join
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.words.questions import Question
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import RunSpec, merge
from pluralllm.operator.remote import Remote

START_LIMIT_S = 60.0
LOOK_EVERY_S = 0.02
PORTS_EACH = 1000
WIDTH = 16


def ports_of_this_process() -> Iterator[int]:
    """Yields the ports of this test process's range again and again; each process starts at another port of the range."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    first, offset = 20_000 + PORTS_EACH * worker, os.getpid() % PORTS_EACH
    for turn in range(100 * PORTS_EACH):
        yield first + (offset + turn) % PORTS_EACH


PORTS = ports_of_this_process()


def tiny_embedding_model(folder: Path) -> Path:
    """A real transformer with random weights and a real tokenizer, small enough to load in a moment."""
    return made_once("tiny-model", _write_tiny_model, folder)


def _write_tiny_model(folder: Path) -> None:
    # Imported here, so that tests whose processes need no torch do not wait for it.
    import torch  # noqa: PLC0415
    from tokenizers import Tokenizer  # noqa: PLC0415
    from tokenizers.models import WordLevel  # noqa: PLC0415
    from tokenizers.pre_tokenizers import Whitespace  # noqa: PLC0415
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast  # noqa: PLC0415

    words = {"[UNK]": 0, "[PAD]": 1}
    for questions in sample_groups(8, MOST_QUESTIONS, 0).values():
        for question in questions:
            for word in " ".join([question.text, *question.options]).replace("?", " ?").split():
                words.setdefault(word, len(words))
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )

    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)


def process_spec(**changes: Any) -> RunSpec:
    """Returns the spec of a run with real daemons that ends in a few seconds."""
    values: dict[str, Any] = {
        "rounds": 4,
        "seed": 11,
        "round": {"min_clients": 2, "target_clients": 2, "evaluate_every": 4, "gather_s": 60, "deadline_s": 120},
        "predictor": {"d_model": 128, "layers": 3, "heads": 2, "feedforward": 128, "embedder_layers": 3},
        "training": {"local_steps": 2, "episodes": {"max_context": 20, "max_targets": 20}},
        "evaluation": {"context_questions": 10, "draws": 1},
        "embedding": {"model": "tiny", "dimension": 2 * WIDTH},
    }
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(values.get(key), dict)
        if key == "predictor":
            values = merge(values, {key: value})
        else:
            values[key] = {**values[key], **value} if both else value
    return RunSpec.model_validate(values)


@dataclasses.dataclass
class Process:
    """One child process in a process group of its own."""

    command: list[str]
    log: Path
    environment: Mapping[str, str]
    popen: "subprocess.Popen[bytes] | None" = None
    log_bytes: int = 0  # size of the log when the process started

    def start(self) -> "Process":
        with self.log.open("ab") as file:
            self.log_bytes = file.tell()
            self.popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )
        return self

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    @property
    def has_logged(self) -> bool:
        """Whether the process has logged since its start. Before that it is still loading, and a signal ends it at once."""
        return self.log.stat().st_size > self.log_bytes

    def says(self, text: str) -> bool:
        """Whether the process has written a text since its start."""
        with self.log.open("rb") as file:
            file.seek(self.log_bytes)
            return text.encode() in file.read()

    def kill(self) -> None:
        """Sends SIGKILL; the worker's input closes, so the worker ends, too."""
        assert self.popen is not None
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait(10)

    def stop(self) -> int:
        """Sends SIGTERM, waits, and returns the exit code."""
        assert self.popen is not None
        if self.running:
            self.popen.terminate()
            try:
                self.popen.wait(20)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(10)
        return int(self.popen.returncode)


class Federation:
    """A folder with one coordinator and its clients; the context manager `federation` stops all of them at its end."""

    def __init__(self, folder: Path, embedding_model: Path, port: int, **server_settings: str) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{port}"
        self._embedding_model = embedding_model
        self.processes: list[Process] = []
        self.clients: dict[str, Process] = {}
        state = folder / "coordinator"
        self.state = state
        self.admin = folder / "admin"
        gate = free_port()
        self.enrolment_address = f"127.0.0.1:{gate}"
        server = [sys.executable, "-m", SERVER]
        settings = {
            "PLURALLLM_SERVER_STATE_DIR": str(state),
            "PLURALLLM_SERVER_LISTEN": self.address,
            "PLURALLLM_SERVER_ENROLMENT_LISTEN": self.enrolment_address,
            "PLURALLLM_SERVER_LEASE_S": "5",
        }
        words = ("init", "--host", "127.0.0.1", "--admin-identity", self.admin)
        typed(SERVER, *words, environment={**os.environ, **settings}).check_returncode()
        self.coordinator = Process([*server, "serve"], folder / "coordinator.log", {**settings, **server_settings})
        self.processes.append(self.coordinator)

    def remote(self) -> Remote:
        """Returns a connection to the coordinator as its administrator."""
        return Remote.of_member(load_identity(self.admin, "pluralllm"))

    def start_coordinator(self) -> Remote:
        self.coordinator.start()
        remote = self.remote()
        until(lambda: _answers(remote), "the coordinator answers", self)
        return remote

    def join(self, name: str) -> Path:
        """Invites a client and joins as it over the enrolment port, once for each name. Returns its identity's folder."""
        folder = self.folder / name / "state" / "identity"
        if not (folder / "credentials.pem").exists():
            remote = self.remote()
            invite = remote.invite(name, MemberRole.CLIENT, f"group of {name}", None, 3600, needs_approval=False)
            join(invite, folder, "pluralllm-client", frozenset({MemberRole.CLIENT}))
            remote.close()
        return folder

    def start_client(
        self,
        name: str,
        questions: tuple[Question, ...],
        address: str | None = None,
        policy: Mapping[str, Any] | None = None,
        stays: bool = False,
        more: Mapping[str, str] | None = None,
    ) -> Process:
        """Starts a client daemon.

        policy: keys of its policy.toml that differ from the open policy. stays: whether it goes on when the run is over.
        more: further configuration keys.
        """
        home = self.folder / name
        home.mkdir(exist_ok=True)
        write_group(home / "answers.jsonl", questions)
        self.join(name)
        config = {
            "coordinator": address or self.address,
            "data": str(home / "answers.jsonl"),
            "state_dir": str(home / "state"),
            "cache_dir": str(embeddings(home / "answers.jsonl")),
            "embedding_model_path": str(self._embedding_model),
            "log_level": "DEBUG",
        }
        config |= more or {}
        (home / "policy.toml").write_text(open_policy_text(**(policy or {})))
        config["policy"] = str(home / "policy.toml")
        text = "".join(f'{key} = "{value}"\n' for key, value in config.items())
        text += f"threads = 1\nexit_when_run_over = {str(not stays).lower()}\nshared_seeds = true\n"
        (home / "client.toml").write_text(text)  # with shared seeds, so that two runs have the same bits
        command = [sys.executable, "-m", "pluralllm.client", "run", "--config", str(home / "client.toml")]
        process = Process(command, self.folder / f"{name}.log", {"OMP_NUM_THREADS": "1"}).start()
        self.processes.append(process)
        self.clients[name] = process
        return process

    def verify(self) -> subprocess.CompletedProcess[str]:
        """Runs `pluralllm-server verify`; the coordinator must be stopped."""
        return typed(SERVER, "verify", "--state-dir", self.state)

    def logs(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log")))


def free_port() -> int:
    """Returns a port that was free a moment ago, for a coordinator that must come back on it after it was killed.

    Each test process takes ports from a range of its own, below the system's ephemeral ports, so nobody takes the port meanwhile.
    """
    for port in PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("every port of this test process is in use")


def _answers(remote: Remote) -> bool:
    try:
        remote.runs()
    except PluralError:
        return False
    return True


def until(holds: Callable[[], bool], what: str, federation: Federation, limit_s: float = START_LIMIT_S) -> None:
    """Waits until `holds` returns true, for at most `limit_s` seconds: real processes do not follow a fake clock."""
    end_s = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {limit_s} s: {what}\n{federation.logs()}")
        time.sleep(LOOK_EVERY_S)


@contextlib.contextmanager
def federation(folder: Path, embedding_model: Path, port: int, **server_settings: str) -> Iterator[Federation]:
    """Runs a federation and leaves no process behind. `server_settings` are PLURALLLM_SERVER_ variables."""
    folder.mkdir(parents=True, exist_ok=True)
    started = Federation(folder, embedding_model, port, **server_settings)
    try:
        yield started
    finally:
        for process in started.processes:
            if process.running:
                process.stop()
