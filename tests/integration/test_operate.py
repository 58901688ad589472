"""The commands of docs/operate.md from "Start" to "One partner" and those of docs/partner.md work unchanged."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.process_harness import free_port

from pluralllm.client.data.codebook import keep_codebook
from pluralllm.client.data.private_data import write_group
from pluralllm.client.data.sample_survey import RESPONDENTS, sample_groups, with_counts

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operate.md").read_text()
PARTNER = (ROOT / "docs" / "partner.md").read_text()
BINARIES = Path(sys.executable).parent
LIMIT_S = 60.0
# Commands that need root, systemd as process 1 or a package index; all others are run.
NOT_HERE = (
    *("useradd", "python3 -m venv", "/opt/pluralllm/bin/pip", "build/bin/pip", "systemctl daemon-reload"),
    *("systemctl enable --now pluralllm-client@", "systemctl disable --now pluralllm-client@"),
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.usefixtures("forked_starts")]


def commands(section: str, page: str = PAGE) -> list[str]:
    text = page.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^    (\S.*)$", text, re.MULTILINE)


class Machine:
    """Folders in place of the system's, and the process that systemd would start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {"7443": free_port(), "7444": free_port(), "7446": free_port(), "9464": free_port()}
        self.service: subprocess.Popen[bytes] | None = None
        (folder / "etc" / "systemd" / "system").mkdir(parents=True)

    def here(self, text: str) -> str:
        """Replaces the folders and ports in a text by those of this test."""
        for name in ("/etc/pluralllm", "/etc/systemd/system", "/var/lib/pluralllm"):
            text = text.replace(name, str(self.folder) + name)
        text = text.replace("deploy/", f"{ROOT}/deploy/").replace("-o pluralllm -g pluralllm ", "")
        for usual, mine in self.ports.items():
            text = re.sub(rf":{usual}\b", f":{mine}", text)
        return text

    def type(self, command: str) -> str:
        if command.startswith(NOT_HERE):
            return ""
        if command == "systemctl enable --now pluralllm-server":
            return self.start()
        environment = {**os.environ, "PATH": f"{BINARIES}:{os.environ['PATH']}", "NO_COLOR": "1"}
        done = subprocess.run(
            shlex.split(self.here(command)), cwd=self.folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def configure_partner(self) -> None:
        """Applies the settings of the partner's page, and puts a private file where they say."""
        path = Path(self.here("/etc/pluralllm/north.toml"))
        (block,) = re.findall(r"```toml\n(.+?)```", PARTNER, re.DOTALL)
        keys = re.findall(r"^(\w+) = ", block, re.MULTILINE)
        kept = [line for line in path.read_text().splitlines() if not re.match(rf"({'|'.join(keys)}) = ", line)]
        path.write_text("\n".join([self.here(block), *kept]) + "\n")
        (questions, _) = sample_groups(2, 40, seed=0).values()
        answers = Path(self.here("/var/lib/pluralllm/north/answers.jsonl"))
        counted = [with_counts(one, RESPONDENTS) for one in questions]
        write_group(answers, counted)
        keep_codebook(answers, counted)

    def configure(self) -> None:
        """Applies the page's settings, with ports that are free here."""
        path = Path(self.here("/etc/pluralllm/coordinator.toml"))
        (block,) = re.findall(r"```toml\n(.+?)```", PAGE, re.DOTALL)
        lines = dict(re.findall(r"^(\w+) = (.+)$", self.here(block), re.MULTILINE))
        lines |= {
            "listen": f'"127.0.0.1:{self.ports["7443"]}"',
            "enrolment_listen": f'"127.0.0.1:{self.ports["7444"]}"',
        }
        kept = [line for line in path.read_text().splitlines() if not re.match(rf"({'|'.join(lines)}) = ", line)]
        path.write_text("\n".join([*(f"{key} = {value}" for key, value in lines.items()), *kept]) + "\n")

    def start(self) -> str:
        """Runs the unit's ExecStart until it reports that it is ready, as `systemctl start` does."""
        unit = (self.folder / "etc/systemd/system/pluralllm-server.service").read_text()
        (command,) = re.findall(r"^ExecStart=/opt/pluralllm/bin/(.+)$", unit, re.MULTILINE)
        words = shlex.split(f"{BINARIES}/{self.here(command)}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(self.folder / "notify"))
            notify.settimeout(LIMIT_S)
            environment = {**os.environ, "NOTIFY_SOCKET": str(self.folder / "notify"), "WATCHDOG_USEC": "60000000"}
            self.service = subprocess.Popen(
                words, cwd=self.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while "READY=1" not in notify.recv(4096).decode():
                pass
        return ""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    prepared = Machine(tmp_path)
    yield prepared
    if prepared.service is not None:
        prepared.service.terminate()
        prepared.service.wait(30)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_operators_page_gives_a_coordinator_that_is_measured_looked_at_and_joined(machine: Machine) -> None:
    typed: list[str] = []
    for section in ("Install", "Start", "Look", "One partner"):
        for command in commands(section):
            output = machine.type(command)
            typed.append(command)
            if command.endswith("/etc/pluralllm/coordinator.toml") and command.startswith("install"):
                machine.configure()
            if "metrics" in command:
                assert "pluralllm_runs" in output
            if command.endswith(":7446/"):
                assert "<title>PluralLLM</title>" in output
            if command.startswith("pluralllm-server healthy"):
                assert "alive" in output
    assert any(command.startswith("pluralllm-client join") for command in typed)
    assert "org-a" in machine.type("pluralllm --identity admin members")
    machine.type("pluralllm --identity admin invite north --role client")
    output = ""
    for section in ("Install the client", "Join with the invite", "The supervised daemon", "Leave"):
        for command in commands(section, PARTNER):
            output += machine.type(command)
            if command.endswith("/etc/pluralllm/north.toml") and command.startswith("install"):
                machine.configure_partner()
    assert "Next: pluralllm-client run --config" in output
    assert "policy.toml" in output
    assert Path(machine.here("/var/lib/pluralllm/north/policy.toml")).is_file()
    assert re.search(r"^ ?certificate +ok ", output, re.MULTILINE)
    assert machine.service is not None
    assert machine.service.poll() is None
