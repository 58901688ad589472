"""The `pluralllm` command as a process, against a real coordinator over gRPC."""

import asyncio
import contextlib
import dataclasses
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from rich.console import Console
from support.commands import CLI, typed
from support.coordinator_harness import Served, serving, small_spec

from pluralllm.cli.audit_trail import verified_entries
from pluralllm.cli.output import now
from pluralllm.cli.status_screen import audit_table
from pluralllm.common.private_rounds.peer_keys import PeerKeyClaim, endorsed, public_der
from pluralllm.common.process.clock import FakeClock
from pluralllm.common.trust.certificates import key_from_pem, new_key
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.weights.chunks import CHUNK_BYTES, manifest_of
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.operator.remote import Remote
from pluralllm.server.composition import running
from pluralllm.server.members.access import Principal
from pluralllm.server.process.config import ServerConfig
from pluralllm.v1 import operations_pb2 as pb
from pluralllm.v1 import operations_pb2_grpc, resources_pb2

LIMIT_S = 60.0
SPEC = """
preset = "attention"
rounds = 2
seed = 5
round = {min_clients = 2, target_clients = 2}
predictor = {d_model = 8, layers = 1, heads = 2, feedforward = 8, embedder_layers = 2}
embedding = {model = "tiny", dimension = 8}
"""


@dataclasses.dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment_of(coordinator: Served | str) -> dict[str, str]:
    """Returns the environment of an administrator with a key, or of plain text if there is no coordinator to reach."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PLURALLLM_")}
    if isinstance(coordinator, Served):
        environment["PLURALLLM_IDENTITY"] = str(coordinator.identities / "admin")
        environment["PLURALLLM_COORDINATOR"] = coordinator.address
    else:
        environment["PLURALLLM_PLAIN_TEXT"] = "1"
    if isinstance(coordinator, str) and coordinator:
        environment["PLURALLLM_COORDINATOR"] = coordinator
    return environment


def start(*arguments: str, coordinator: Served | str) -> "subprocess.Popen[str]":
    """Starts a command that runs until it is interrupted."""
    return subprocess.Popen(
        [sys.executable, "-m", CLI, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_of(coordinator),
    )


async def finish(child: "subprocess.Popen[str]") -> Done:
    try:
        out, err = await asyncio.to_thread(child.communicate, timeout=LIMIT_S)
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()
    return Done(child.returncode, out, err)


async def pluralllm(*arguments: str, coordinator: Served | str = "") -> Done:
    """Runs a command to its end, without blocking the coordinator in this process."""
    done = await asyncio.to_thread(typed, CLI, *arguments, environment=environment_of(coordinator), limit_s=LIMIT_S)
    return Done(done.returncode, done.stdout, done.stderr)


def assert_one_clear_line(done: Done, code: int, *words: str) -> None:
    """Checks the exit code, one error line on stderr, nothing on stdout, and no stack trace."""
    assert done.code == code, done
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


def write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def closed_port() -> int:
    """Returns a port of loopback without a listener."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# Errors


async def test_coordinator_that_is_down_is_one_line_with_its_address_and_exit_code_4(closed_port: int) -> None:
    address = f"127.0.0.1:{closed_port}"
    done = await pluralllm("status", "--coordinator", address)
    assert_one_clear_line(done, 4, address, "does not answer", "pluralllm-server serve")


async def test_flag_wins_over_the_environment(closed_port: int) -> None:
    done = await pluralllm("runs", "--coordinator", f"127.0.0.1:{closed_port}", coordinator="127.0.0.1:1")
    assert_one_clear_line(done, 4, f"127.0.0.1:{closed_port}")


async def test_environment_names_the_coordinator(closed_port: int) -> None:
    assert_one_clear_line(await pluralllm("runs", coordinator=f"127.0.0.1:{closed_port}"), 4, str(closed_port))


async def test_address_off_this_machine_is_refused_without_a_call() -> None:
    done = await pluralllm("status", "--coordinator", "192.0.2.1:7443")
    assert_one_clear_line(done, 3, "192.0.2.1:7443", "certificates", "127.0.0.1")


async def test_address_without_a_port_is_refused() -> None:
    assert_one_clear_line(await pluralllm("status", "--coordinator", "localhost"), 3, "host:port")


async def test_a_code_is_explained_and_an_unknown_one_refused_with_those_near() -> None:
    explanation = (await pluralllm("explain", "wrong-base", "--json")).json
    assert explanation["code"] == "WRONG_BASE"
    assert "<current>" in explanation["why"]
    assert (explanation["grpc_status"], explanation["exit_code"]) == ("FAILED_PRECONDITION", 3)
    assert_one_clear_line(await pluralllm("explain", "wrong-bas"), 3, "near: WRONG_BASE")
    assert_one_clear_line(await pluralllm("explain", "qqqq"), 3, "there are: AGGREGATE_DIFFERS")


async def test_unknown_command_is_a_usage_error() -> None:
    done = await pluralllm("run", "begin")
    assert (done.code, done.out) == (2, "")


async def test_unknown_run_round_and_version_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", small_spec(), start=False)
        for arguments, words in (
            (["status", "nobody"], "There is no run nobody"),
            (["run", "start", "nobody"], "There is no run nobody"),
            (["model", "pull", "r@7", str(tmp_path / "model")], "7"),
        ):
            assert_one_clear_line(await pluralllm(*arguments, coordinator=served), 3, words)
        assert not (tmp_path / "model" / "model.safetensors").exists()


async def test_version_that_is_no_number_is_refused(tmp_path: Path) -> None:
    done = await pluralllm("model", "pull", "r@latest", str(tmp_path / "model"))
    assert_one_clear_line(done, 3, "'latest'", "number")


async def test_bad_spec_names_file_key_and_what_is_allowed(spec_file: Path) -> None:
    write(spec_file, "rounds = 0\nroundz = 3\n" + SPEC.replace("rounds = 2\n", ""))
    for command in (["spec", "check", str(spec_file)], ["run", "create", "r", str(spec_file)]):
        done = await pluralllm(*command)
        assert_one_clear_line(done, 3, str(spec_file), "rounds: ", "greater than or equal to 1", "roundz: unknown key")


async def test_missing_spec_file_is_named(tmp_path: Path) -> None:
    assert_one_clear_line(
        await pluralllm("spec", "check", str(tmp_path / "none.toml")), 3, "none.toml", "there is no such file"
    )


async def test_embedding_model_folder_that_is_missing_is_named(tmp_path: Path, spec_file: Path) -> None:
    folder = tmp_path / "no-model"
    done = await pluralllm("run", "create", "r", str(spec_file), "--embedding-model-path", str(folder))
    assert_one_clear_line(done, 3, "tiny", str(folder))


async def test_another_spec_under_the_same_name_is_refused(tmp_path: Path, spec_file: Path) -> None:
    async with serving(tmp_path / "state") as served:
        for _ in range(2):  # a repeated command is no error
            assert (await pluralllm("run", "create", "r", str(spec_file), coordinator=served)).code == 0
        write(spec_file, SPEC.replace("seed = 5", "seed = 6"))
        done = await pluralllm("run", "create", "r", str(spec_file), coordinator=served)
        assert_one_clear_line(done, 3, "another name")


# Running


async def test_run_is_created_started_paused_resumed_and_cancelled(tmp_path: Path, spec_file: Path) -> None:
    async with serving(tmp_path / "state") as served:

        async def phase(*arguments: str) -> tuple[str, bool]:
            done = await pluralllm("run", *arguments, "--json", coordinator=served)
            assert done.code == 0, done.err
            return done.json["phase"], done.json["paused"]

        assert await phase("create", "r", str(spec_file)) == ("created", False)
        assert await phase("start", "r") == ("waiting", False)
        assert await phase("pause", "-") == ("waiting", True)
        assert await phase("resume", "r") == ("waiting", False)
        assert await phase("cancel", "r", "--reason", "the survey was wrong") == ("ended", False)
        done = await pluralllm("status", "r", coordinator=served)
        assert "cancelled: the survey was wrong" in done.out
        done = await pluralllm("run", "start", "r", coordinator=served)
        assert_one_clear_line(done, 3, "Run r is ended")


async def test_a_cancelled_run_is_archived_and_one_that_goes_on_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("first", small_spec())
        await served.create("slip", small_spec(), start=False)
        done = await pluralllm("run", "archive", "slip", coordinator=served)
        assert_one_clear_line(done, 3, "Run slip is created", "has ended", "pluralllm run cancel slip")
        assert (await pluralllm("run", "cancel", "slip", coordinator=served)).code == 0
        done = await pluralllm("run", "archive", "slip", coordinator=served)
        assert "cancelled (archived)" in done.out, done.err
        assert "runs/first" in (await pluralllm("status", coordinator=served)).out
        for options, listed in ((), "first"), (("--archived",), "slip first"):
            runs = (await pluralllm("runs", *options, "--json", coordinator=served)).json["runs"]
            assert [run["name"] for run in runs] == [f"runs/{name}" for name in listed.split()]


async def test_every_read_has_stable_json(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("first", small_spec(), start=False)
        await served.create("second", small_spec(), start=False)
        await served.client("ann")

        async def read(*arguments: str) -> Any:
            done = await pluralllm(*arguments, "--json", coordinator=served)
            assert (done.code, done.err) == (0, "")
            return done.json

        status = await read("status")
        assert next(iter(status.items())) == ("schema", "pluralllm.run/2")
        assert (status["name"], status["phase"], status["spec_sha256"]) == (
            "runs/second",
            "created",
            small_spec().sha256(),
        )
        assert [person["client"] for person in status["participants"]] == ["ann"]
        assert [run["name"] for run in (await read("runs"))["runs"]] == ["runs/second", "runs/first"]
        assert (await read("rounds", "first")) == {"schema": "pluralllm.rounds/1", "rounds": []}
        [admin, ann] = (await read("members"))["members"]
        assert (admin["role"], admin["state"]) == ("admin", "active")
        assert (ann["name"], ann["group"], ann["role"]) == ("members/ann", "group of ann", "client")
        assert (ann["group_role"], ann["state"], ann["live"]) == ("train", "active", True)


async def test_an_audit_log_too_long_to_be_read_is_not_called_unbroken_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pluralllm.operator.remote.AUDIT_PAGE_SIZE", 2)
    async with serving(tmp_path / "state") as served:
        await served.create("first", small_spec())
        remote = Remote.of_member(load_identity(served.identities / "admin", "").at(served.address))
        entries, head, whole = await asyncio.to_thread(verified_entries, remote, tmp_path / "nowhere")
        assert (len(entries), whole) == (5, True)  # one of the administrator, and two of each action
        monkeypatch.setattr("pluralllm.operator.remote.MAX_PAGES", 1)
        entries, head, whole = await asyncio.to_thread(verified_entries, remote, tmp_path / "nowhere")
        assert (len(entries), whole) == (2, False)
        await asyncio.to_thread(remote.close)
        screen = io.StringIO()
        Console(file=screen, width=200).print(audit_table(entries, len(entries), head, now(), whole=whole))
        assert "the first 2 entries only: the log was not read to its end" in screen.getvalue()


async def test_an_audit_in_plain_text_neither_uses_nor_changes_what_an_identity_remembers(tmp_path: Path) -> None:
    """The folder belongs to a member of another federation with a longer log."""
    memory = tmp_path / "identity" / "audit-head.json"
    memory.parent.mkdir()
    memory.write_text(remembered := json.dumps({"sequence": 7, "sha256": "0" * 64, "seen": "2026-01-01"}))
    config = ServerConfig(state_dir=tmp_path / "state", listen="127.0.0.1:0", plain_text=True)
    async with running(config, FakeClock()) as found:
        done = await pluralllm("--identity", str(memory.parent), "audit", "--json", coordinator=found.address)
    assert (done.code, done.err) == (0, "")
    assert memory.read_text() == remembered


async def test_watch_ends_with_the_run(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", small_spec())
        child = start("status", "r", "--watch", coordinator=served)
        await pluralllm("run", "cancel", "r", "--reason", "enough", coordinator=served)
        done = await finish(child)
        assert done.code == 0, done.err
        assert "cancelled: enough" in done.out


# Models


async def test_model_is_pulled_with_its_spec_and_provenance(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", small_spec())
        done = await pluralllm("model", "pull", "r@0", str(tmp_path / "model"), "--json", coordinator=served)
    assert done.code == 0, done.err
    folder = tmp_path / "model"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "run_spec.json", "provenance.json"}
    record = json.loads((folder / "provenance.json").read_text())
    assert record["digest"] == manifest_of(folder / "model.safetensors").digest == done.json["digest"]
    assert (record["version"], record["round"], record["spec_sha256"]) == (0, 0, small_spec().sha256())
    assert (folder / "run_spec.json").read_bytes() == small_spec().canonical_json()


async def test_broken_pull_is_resumed_from_the_first_chunk_that_is_missing(tmp_path: Path) -> None:
    large = small_spec(predictor={"d_model": 256, "layers": 2, "heads": 2, "feedforward": 256, "embedder_layers": 2})
    folder = tmp_path / "model"
    async with serving(tmp_path / "state") as served:
        await served.create("r", large)
        whole = await pluralllm("model", "pull", "r", str(folder), coordinator=served)
        assert whole.code == 0, whole.err
        content = (folder / "model.safetensors").read_bytes()
        manifest = manifest_of(folder / "model.safetensors")
        assert manifest.chunks >= 3
        sent = (await served.run("r")).sent_bytes
        (folder / "model.safetensors").unlink()
        partial_file = folder / f".{manifest.digest[:16]}.part"
        partial_file.write_bytes(content[: 2 * CHUNK_BYTES + 100])  # two chunks and the start of the third
        again = await pluralllm("model", "pull", "r", str(folder), coordinator=served)
        assert again.code == 0, again.err
        assert (folder / "model.safetensors").read_bytes() == content
        assert (await served.run("r")).sent_bytes - sent == len(content) - 2 * CHUNK_BYTES
        assert not partial_file.exists()


async def test_damaged_part_of_a_broken_pull_is_found_and_fetched_again(tmp_path: Path) -> None:
    large = small_spec(predictor={"d_model": 256, "layers": 2, "heads": 2, "feedforward": 256, "embedder_layers": 2})
    folder = tmp_path / "model"
    async with serving(tmp_path / "state") as served:
        await served.create("r", large)
        digest = (await served.run("r")).version_digest
        folder.mkdir()
        (folder / f".{digest[:16]}.part").write_bytes(bytes(CHUNK_BYTES))
        assert (await pluralllm("model", "pull", "r", str(folder), coordinator=served)).code == 0
        assert manifest_of(folder / "model.safetensors").digest == digest


# Commands without a coordinator


@pytest.mark.parametrize("preset", ["default", "paper"])
async def test_new_spec_passes_the_check(tmp_path: Path, preset: str) -> None:
    made = await pluralllm("spec", "new", "--preset", preset)
    (tmp_path / "run.toml").write_text(made.out)
    checked = await pluralllm("spec", "check", str(tmp_path / "run.toml"), "--json")
    assert checked.code == 0, checked.err
    assert len(checked.json["sha256"]) == 64


async def test_a_new_spec_names_the_groups_and_counts_those_that_train(tmp_path: Path) -> None:
    trains = [word for name in "abcde" for word in ("--train", name)]
    made = await pluralllm("spec", "new", *trains, "--held-out", "f", "--clients", "8")
    (tmp_path / "run.toml").write_text(made.out)
    spec = (await pluralllm("spec", "check", str(tmp_path / "run.toml"), "--json")).json["spec"]
    assert spec["groups"] == {"train": list("abcde"), "held_out": ["f"]}
    assert (spec["round"]["min_clients"], spec["round"]["target_clients"]) == (4, 5)


async def test_too_few_clients_are_refused() -> None:
    assert "3" in (await pluralllm("spec", "new", "--clients", "2")).err


async def test_unknown_preset_is_refused_with_those_there_are() -> None:
    assert_one_clear_line(await pluralllm("spec", "new", "--preset", "nature"), 3, "default, attention, paper")


async def test_help_documents_the_exit_codes() -> None:
    done = await pluralllm("--help")
    assert done.code == 0
    assert "4 coordinator unreachable" in " ".join(done.out.split())


@pytest.mark.parametrize(
    "module", ["pluralllm.cli.__main__", "pluralllm.operator.remote", "pluralllm.cli.status_screen"]
)
def test_command_is_loaded_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(len({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=LIMIT_S, check=False).returncode == 0


class _Waiting:
    """A coordinator with one idle run; it answers no other calls."""

    def __init__(self) -> None:
        self.watched = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        if not name[0].isupper():
            raise AttributeError(name)
        return None

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:  # noqa: N802
        return pb.GetRunResponse(run=resources_pb2.Run(name="runs/r", phase=resources_pb2.RUN_PHASE_WAITING))

    async def WatchRun(self, request: pb.WatchRunRequest, context: Any) -> AsyncIterator[pb.WatchRunResponse]:  # noqa: N802
        self.watched.set()
        await asyncio.Event().wait()
        yield pb.WatchRunResponse()


@contextlib.asynccontextmanager
async def waiting_coordinator(port: int = 0) -> AsyncIterator[tuple[_Waiting, str]]:
    service: Any = _Waiting()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    operations_pb2_grpc.add_OperationsServiceServicer_to_server(service, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield service, f"127.0.0.1:{bound}"
    finally:
        await server.stop(None)


async def test_interrupted_watch_exits_with_130_and_no_stack_trace() -> None:
    async with waiting_coordinator() as (service, address):
        child = start("status", "r", "--watch", coordinator=address)
        await asyncio.wait_for(service.watched.wait(), LIMIT_S)
        child.send_signal(signal.SIGINT)
        done = await finish(child)
    assert done.code == 130
    assert "Traceback" not in done.err


async def test_watch_outlives_a_restart_of_the_coordinator() -> None:
    async with waiting_coordinator() as (service, address):
        child = start("status", "r", "--watch", coordinator=address)
        await asyncio.wait_for(service.watched.wait(), LIMIT_S)
    async with waiting_coordinator(int(address.rpartition(":")[2])) as (service, _):
        await asyncio.wait_for(service.watched.wait(), LIMIT_S)  # the command has reconnected by itself
        child.send_signal(signal.SIGINT)
        assert (await finish(child)).code == 130


async def test_an_administrator_resets_a_peer_key_once_and_again(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.client("ann")
        refused = await pluralllm("members", "reset-peer-key", "ann", coordinator=served)
        assert refused.code == 3
        assert "There is no peer key of ann." in refused.err
        key, name = new_key(), ClientId("ann")
        said = (served.registry.authority.federation, name, public_der(key))
        certificate = key_from_pem(load_identity(served.identities / "ann", "").key_pem)
        claim = PeerKeyClaim(public_der(key), endorsed(certificate, *said), endorsed(key, *said))
        await served.registry.roster.register(Principal(name, MemberRole.CLIENT), "G", claim)
        for _ in range(2):
            done = await pluralllm("members", "reset-peer-key", "ann", "--json", coordinator=served)
            assert (done.code, done.json["name"], done.json["reset"]) == (0, "ann", True)
        assert served.registry.roster.peer_key(name) is None
        listed = await pluralllm("members", coordinator=served)
        assert "admin" in listed.out
