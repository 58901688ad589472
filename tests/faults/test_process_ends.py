"""Commands that use native threads, many at once: each prints its answer and ends with its own exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from drill.trial import ALL
from support.real_stores import S3

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]
RUNS = 200 if ALL else 5
AT_ONCE = 5  # on two cores each of them waits for the others, at any moment


def test_no_doctor_dies_after_its_answer(tmp_path: Path, s3: S3) -> None:
    config = tmp_path / "coordinator.toml"
    config.write_text(
        f'state_dir = "{tmp_path / "state"}"\nplain_text = true\n'
        f'blob_url = "{s3.new_bucket()}"\nblob_endpoint = "{s3.endpoint}"\n'
    )
    command = [sys.executable, "-m", "pluralllm.server", "doctor", "--json", "--config", str(config)]
    codes = []
    for _ in range(RUNS // AT_ONCE):
        started = [
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **s3.environment}
            )
            for _ in range(AT_ONCE)
        ]
        for process in started:
            output, errors = process.communicate(timeout=60)
            checks = {check["name"]: check["ok"] for check in json.loads(output)["checks"]}
            assert checks["bucket"], output
            assert errors == b""
            codes.append(process.returncode)
    assert codes == [3] * RUNS, "there is no state directory here"
