"""A federation of two partners in the built images, from `init` to a model: `make containers`."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import IMAGES
from support.open_policy import open_policy_text
from support.process_harness import WIDTH, tiny_embedding_model

from pluralllm.client.data.private_data import write_group
from pluralllm.client.data.sample_survey import sample_groups

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("PLURALLLM_CONTAINERS") != "1", reason="two images are built for it: make containers"
    ),
    pytest.mark.timeout(900),
]
# As in deploy/compose.yaml, but without a network: a partner reaches the coordinator's loopback and nothing else.
HARDENED = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp"]
STATE = "/var/lib/pluralllm"
PARTNERS = ("ann", "ben")
SPEC = f"""
rounds = 1
[round]
min_clients = 2
target_clients = 2
deadline_s = 300
[training]
local_steps = 2
[evaluation]
context_questions = 10
[embedding]
model = "tiny"
dimension = {2 * WIDTH}
"""
CLIENT = """
coordinator = "localhost:7443"
data = "/etc/pluralllm/answers.jsonl"
policy = "/etc/pluralllm/policy.toml"
embedding_model_path = "/model"
threads = 1
exit_when_run_over = true
"""
START_LIMIT_S = 120.0
RUN_LIMIT_S = 420.0
LOOK_EVERY_S = 1.0


def podman(*words: str | Path, limit_s: float = 120) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["podman", *map(str, words)], capture_output=True, text=True, timeout=limit_s, check=False)


def answer(*words: str | Path) -> str:
    """Runs podman; returns what it prints. A failure fails the test with what podman has written."""
    done = podman(*words)
    assert done.returncode == 0, f"podman {' '.join(map(str, words))}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


class Containers:
    """The containers and volumes of one test, all of them removed at its end."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._volumes: list[str] = []

    def volume(self) -> str:
        name = answer("volume", "create")
        self._volumes.append(name)
        return name

    def start(self, side: str, *options: str, command: tuple[str, ...] = ()) -> str:
        """Starts a container of an image and returns its id."""
        # The health command of the image, asked by hand: a timer for it would need systemd on this machine.
        container = answer(
            "run", "--detach", "--health-interval", "disable", *HARDENED, *options, IMAGES[side], *command
        )
        self._ids.append(container)
        return container

    def finish(self, side: str, *options: str, command: tuple[str, ...]) -> str:
        """Runs a command in a container of its own to its end, and returns what it prints."""
        return answer("run", "--rm", "--no-healthcheck", *HARDENED, *options, IMAGES[side], *command)

    def logs(self) -> str:
        texts = (podman("logs", "--tail", "30", container) for container in self._ids)
        return "\n---\n".join(done.stdout + done.stderr for done in texts)

    def remove(self) -> None:
        for container in reversed(self._ids):
            podman("rm", "--force", "--volumes", "--time", "5", container)
        for volume in self._volumes:
            podman("volume", "rm", "--force", volume)


@pytest.fixture
def containers() -> Iterator[Containers]:
    started = Containers()
    try:
        yield started
    finally:
        started.remove()


def until_healthy(containers: Containers, container: str) -> None:
    end_s = time.monotonic() + START_LIMIT_S
    while podman("healthcheck", "run", container).returncode != 0:
        assert time.monotonic() < end_s, f"not healthy after {START_LIMIT_S:.0f} s:\n{containers.logs()}"
        time.sleep(LOOK_EVERY_S)


def write_files(folder: Path) -> None:
    """Writes the files that the containers only read: a folder for each partner, the run spec and the embedding model."""
    tiny_embedding_model(folder / "model")
    folder.chmod(0o755)
    for name, questions in zip(PARTNERS, sample_groups(2, 60, 0).values(), strict=True):
        home = folder / name
        home.mkdir()
        write_group(home / "answers.jsonl", questions)
        (home / "policy.toml").write_text(open_policy_text())
        (home / "client.toml").write_text(CLIENT)
    (folder / "run.toml").write_text(SPEC)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_two_partners_train_one_round_in_the_images(containers: Containers, tmp_path: Path) -> None:
    write_files(tmp_path)
    state, admins = containers.volume(), containers.volume()
    init = ("init", "--host", "localhost", "--admin-identity", "/admin/identity")
    of_server = ["--network", "none", "--volume", f"{state}:{STATE}"]
    # A volume gets owner and content of the folder of the image on which it is mounted first.
    answer("run", "--rm", "--no-healthcheck", "--volume", f"{admins}:{STATE}", "--entrypoint", "true", IMAGES["client"])
    containers.finish("server", *of_server, "--volume", f"{admins}:/admin", command=init)
    server = containers.start("server", *of_server)
    until_healthy(containers, server)

    beside = ["--network", f"container:{server}"]
    as_admin = [
        *beside,
        "--volume",
        f"{admins}:/admin",
        "--workdir",
        "/admin",
        "--env",
        "PLURALLLM_IDENTITY=/admin/identity",
    ]
    files = ["--volume", f"{tmp_path / 'model'}:/model:ro", "--volume", f"{tmp_path / 'run.toml'}:/run.toml:ro"]

    def operator(*words: str) -> str:
        return containers.finish("client", *as_admin, *files, "--entrypoint", "pluralllm", command=words)

    clients = []
    operator("run", "create", "first", "/run.toml", "--embedding-model-path", "/model")
    for name in PARTNERS:
        operator("invite", name, "--role", "client")
        own = [
            *beside,
            *("--volume", f"{containers.volume()}:{STATE}"),
            *("--volume", f"{tmp_path / name}:/etc/pluralllm:ro"),
            *("--volume", f"{tmp_path / 'model'}:/model:ro"),
        ]
        join = ("join", f"/admin/{name}.invite", "--config", "/etc/pluralllm/client.toml")
        containers.finish("client", *own, "--volume", f"{admins}:/admin:ro", command=join)
        clients.append(containers.start("client", *own, command=("run", "--config", "/etc/pluralllm/client.toml")))
    for container in (server, *clients):
        until_healthy(containers, container)
        assert answer("exec", container, "id", "-u") == "10001"
        assert "Read-only file system" in podman("exec", container, "touch", "/opt/pluralllm/file").stderr
    operator("run", "start", "first")

    try:
        done = podman("wait", *clients, limit_s=RUN_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the run has not ended after {RUN_LIMIT_S:.0f} s:\n{containers.logs()}") from None
    assert done.stdout.split() == ["0", "0"], containers.logs()
    run = json.loads(operator("status", "first", "--json"))
    assert (run["phase"], run["outcome"], run["version"]) == ("ended", "completed", 1)
    operator("model", "pull", "first", "model")

    answer("stop", "--time", "20", server)
    assert answer("inspect", "--format", "{{.State.ExitCode}}", server) == "0"
    containers.finish("server", "--network", "none", "--volume", f"{state}:{STATE}", command=("verify",))
