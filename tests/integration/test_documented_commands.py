"""Every command of the documentation is run: here, in one shell, or in the test that a table below names."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.documented import PAGES, ROOT, blocks, of_section
from support.process_harness import free_port
from support.session_folder import embeddings
from support.synthetic_results import SMALL, write_results

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("forked_starts")]
LIMIT_S = 540.0
PARTNERS = ("northmark", "harbourland", "old-valley", "foundry", "goldcrest")  # of the README
VENV = Path(sys.executable).parents[1]
# Commands that another test runs, or that no test runs, with the reason.
ELSEWHERE = {
    "make demo": "tests/faults/test_demo.py",
    "pluralllm quickstart": "tests/faults/test_quickstart.py",
    "pluralllm spec new --aggregator": "tests/unit/cli/test_new_spec.py",
    "pluralllm-client data import plugin": "tests/unit/client/test_plugin_command.py",
    "pluralllm-client data embed north.jsonl": "GPUs; tests/unit/client/work/test_embedding_pool.py has the workers",
    "make test": "it runs this",
    "make check": "the quick part of make test, and make lint",
    "make lint": ".ci/run",
    "bash .ci/run": "it runs this",
    "make protos": "tests/architecture/test_generated_code.py",
    "make ray": "240 MB; tests/clusters say so where Ray is missing",
    "ray ": "clusters are started by hand; tests/clusters starts a Ray of this machine",
    "export RAY_": "as above",
    "make faults": "tests/faults: hours; a sample of each is in every run",
    "make site": "tests/unit/test_site.py checks what it is made of; the builder has an environment of its own",
    "make manifests": ".ci/run, where there is a kubectl; tests/unit/test_images.py checks what it calls",
    "make containers": "tests/containers/test_images.py: it builds two images",
    "make release": "tests/unit/test_release.py checks the checks; the SBOM takes minutes",
    "make packages": "tests/packages/test_fresh_install.py: it installs from a registry",
    "make compatibility": "tests/packages/test_older_release.py: it builds two releases",
    "make mutants": "an hour; tests/unit/mutation tests the tool",
    "make experiment": "tests/integration/test_experiment.py",
    "PYTHONPATH=tests python -m nemesis": "tests/nemesis/test_nemesis.py: the same trial, called",
    "PYTHONPATH=tests python -m simulation": "tests/simulation/test_simulation.py",
    ".venv/bin/python deploy/examples/grpo": "tests/integration/test_trl.py",
    ".venv/bin/python benchmarks/": "benchmarks are run by hand",
    ".venv/bin/python -m pytest": "it runs this",
    ".venv/bin/pluralllm experiment run": "tests/integration/test_experiment.py",
    "pluralllm experiment run paper.toml": "as above, on processes and in shards; on Ray: tests/clusters",
    "pluralllm experiment table results": "tests/integration/test_report_commands.py",
    "pluralllm-client data import responses wide.csv": "tests/unit/client/data/test_responses.py",
    "pluralllm-client data import responses answers.csv": "tests/integration/test_noised_answers.py, as are the next three",
    "pluralllm-client data check town.jsonl --epsilon 2": "as above",
    "pluralllm-client data release --data town.jsonl": "as above",
    "pluralllm-client join org-a.invite --data town.jsonl": "tests/integration/test_joining.py",
    "pluralllm-client privacy": "as above",
    "pluralllm-client status": "tests/unit/client/test_status_command.py",
    "pluralllm-client peers": "tests/private/test_roster_attacks.py",
    "pluralllm-client verify": "tests/private/test_daemons.py",
    "pluralllm page": "tests/integration/test_page_for_members.py",
    "pluralllm members reset-peer-key": "tests/integration/test_cli.py",
    "docker compose": "images take minutes: make containers; compose.yaml is checked by tests/unit/test_deployment.py",
    "cp deploy/compose.env.example": "for docker compose",
    "docker build": "as above",
    "python3 deploy/image_digests.py": "it asks registries; tests/unit/test_supply.py gives it answers",
    "kubectl": "no cluster here; tests/unit/test_deployment.py checks the manifests",
}
# Pages whose commands another test runs, by section or by number.
TYPED_FROM_THE_PAGE = {
    "quickstart.md": (
        "The coordinator",
        "The five partners",
        "The run",
        "Afterwards",
    ),  # tests/faults/test_quickstart.py
    "operate.md": ("Install", "Start", "Look", "One partner"),  # test_operate.py
    "partner.md": ("Install the client", "Join with the invite", "The supervised daemon", "Leave"),  # test_operate.py
    "joining.md": (
        "The operator, on the coordinator's machine",
        "The partner, beside its data",
        "The partners together, once",
        "The operator again",
        "When a run asks for more than the policy allows",
    ),
    "tasks.md": ("", "Surveys", "Replies", "Summaries", "Translations"),  # test_tasks.py
}  # joining.md: test_joining.py


class Shell:
    """A script that grows by the commands of the pages; one shell then runs it in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.typed: set[str] = set()

    def copy(self, lines: tuple[str, ...], *changes: tuple[str, str]) -> None:
        """Copies lines of a page and replaces the paths of the page by those of this machine."""
        self.typed.update(lines)
        for usual, _ in changes:
            assert any(usual in line for line in lines), f"{usual} is not in {lines}"
        for line in lines:
            changed = line
            for usual, mine in changes:
                changed = changed.replace(usual, mine)
            self.lines.append(changed)
            if re.match(r"pluralllm-server serve .*&", changed):
                self.lines.append(WAIT)

    def add(self, line: str) -> None:
        """Adds a line that a reader types without an instruction on the page."""
        self.lines.append(line)

    def run(self) -> str:
        """Runs the script in a process group of its own, which ends with it, and returns the output."""
        main, gate = free_port(), free_port()
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PLURALLLM_")}
        environment = {
            **kept,
            "HOME": str(self.folder),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "NO_COLOR": "1",
            "COLUMNS": "200",
            "OMP_NUM_THREADS": "1",
            "PLURALLLM_CLIENT_CACHE_DIR": str(embeddings()),
            "PLURALLLM_SERVER_LISTEN": f"127.0.0.1:{main}",
            "PLURALLLM_SERVER_ENROLMENT_LISTEN": f"127.0.0.1:{gate}",
        }
        script = self.folder / "typed.sh"
        script.write_text("set -euo pipefail\nset -x\n" + "\n".join(self.lines) + "\n")
        with (self.folder / "told.log").open("w") as output:
            shell = subprocess.Popen(
                ["bash", str(script)],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            code = shell.wait(LIMIT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):  # all processes have ended by themselves
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait(10)
        logs = "\n".join(log.read_text()[-3000:] for log in sorted(self.folder.glob("*.log")))
        assert code == 0, logs
        return (self.folder / "told.log").read_text()


SERVES = "pluralllm-server healthy > /dev/null 2>&1 && [ -f pluralllm-state/address ]"
WAIT = f"for _ in $(seq 100); do {SERVES} && break; sleep 0.2; done"


def lines_of(page: str, section: str) -> tuple[str, ...]:
    return tuple(line for block in of_section(page, section) for line in block.commands)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("reader")
    (folder / ".venv").symlink_to(VENV)
    found = Shell(folder)
    write_script(found)
    yield found
    shutil.rmtree(folder, ignore_errors=True)


def write_script(shell: Shell) -> None:
    # Four rounds are enough for the commands that follow.
    new = "pluralllm spec new --clients 5"
    lines = lines_of("README.md", "By hand")
    peers = next(number for number, line in enumerate(lines) if line.startswith("pluralllm-client peers "))
    shell.copy(lines[:peers], (new, f"{new} | sed 's/^rounds = 30$/rounds = 4/'"))
    logs = " ".join(f"{name}.log" for name in PARTNERS)
    shell.add(f"until [ $(grep -l client.connected {logs} | wc -l) = 5 ]; do sleep 0.2; done 2> /dev/null")
    shell.copy(lines[peers:])
    shell.copy(lines_of("joining.md", "Observers and further administrators"), ("join eve", "--identity eve join eve"))
    shell.copy(lines_of("joining.md", "When somebody leaves, or a key is lost"), ("org-a", "northmark"))
    shell.copy(
        lines_of("joining.md", "Who did what"),
        ("pluralllm-client audit", "pluralllm-client audit --state-dir harbourland"),
        ("pluralllm-client history", "pluralllm-client history --state-dir harbourland"),
    )

    # The commands of rewards.md, with the model that the README has trained.
    shell.copy(lines_of("rewards.md", "A published version as a model"), ("first@30", "first@4"))
    # After four rounds a model may predict the same for every group.
    reward = lines_of("rewards.md", "Groups whose answers stay where they are")
    shell.copy(reward, ("--start", "--start --accept-no-context-gain"))
    shell.add("head -60 survey/northmark.jsonl > answers.jsonl; tail -20 survey/northmark.jsonl > in.jsonl")
    score, pairs, serve, *call = lines_of("rewards.md", "Files and other programs")
    accepting = '--embedding-model-path "$MODEL" --accept-no-context-gain'
    embedding = ("answers.jsonl", f"answers.jsonl {accepting}")
    shell.copy((score, pairs), embedding)
    shell.add("echo sesame-sesame-sesame > token")
    places = "--listen 127.0.0.1:0 --http 127.0.0.1:0 --token-file token > scores.log &"
    shell.copy((serve,), ('answers.jsonl"', f'answers.jsonl" {accepting} {places}'))
    shell.add("scoring=$!; for _ in $(seq 300); do grep -q 'serving scores' scores.log && break; sleep 0.2; done")
    address = "$(sed -n 's/^serving rewards on //p' scores.log)"
    shell.copy(tuple(call), ("http://127.0.0.1:7448/get_reward", f'--fail --silent "{address}"'))
    shell.add("kill -TERM $scoring; wait $scoring || true; grep 'serving scores' scores.log")
    shell.add("""printf '{"prompt": "p", "candidates": ["a", "b"], "votes": {"My group": [9, 1]}}\\n' > votes.jsonl""")
    shell.copy(lines_of("rewards.md", "Preferences instead of surveys"))

    write_results(shell.folder / "RESULTS", SMALL, seeds=(0,), draws=1, questions=60)
    shell.copy(lines_of("reports.md", ""), ("[--out DIR]", "--out page"), ("[RUN]", "first"))

    shell.add("printf 'state_dir = \"pluralllm-state\"\\n' > coordinator.toml")
    backup, restore = lines_of("reliability.md", "Backup and restore")
    shell.copy((backup,), ("/backups", "backups"))
    shell.add("printf 'state_dir = \"restored\"\\n' > coordinator.toml")
    shell.copy((restore,), ("/backups", "backups"))
    shell.add("pluralllm-server verify --state-dir restored")
    shell.add("kill -TERM %1; wait %1")


def test_the_commands_of_the_pages_work_one_after_the_other(shell: Shell) -> None:
    output = shell.run()
    assert "of 4  completed" in output
    assert re.search(r"northmark +client +northmark +active", output)
    assert "private rounds: the coordinator reads sums of updates, no single one" in output
    assert output.count("5 members are pinned in ") == 5
    assert "northmark is revoked" in output
    assert (shell.folder / "model" / "model.safetensors").exists()
    assert (shell.folder / "model" / "README.md").exists()
    assert re.search(r'"rewards":\[0\.\d+\]', output)
    assert "2 runs" in output.split("audit --state-dir restored")[-1]
    for name in PARTNERS:
        log = f"{name}.log"
        text = (shell.folder / log).read_text()
        assert '"client.stopped"' in text
        assert '"questions.shared"' in text


def test_every_command_of_the_documentation_is_typed_somewhere(shell: Shell) -> None:
    untyped = [
        f"{block.page}: {line}"
        for page in PAGES
        for block in blocks(page)
        if block.section not in TYPED_FROM_THE_PAGE.get(block.page, ())
        for line in block.commands
        if line not in shell.typed and not line.startswith(tuple(ELSEWHERE))
    ]
    assert untyped == []
    for where in ELSEWHERE.values():
        if where.startswith(("tests/", ".ci/")):
            assert (ROOT / shlex.split(where)[0].rstrip(":,")).exists(), where
