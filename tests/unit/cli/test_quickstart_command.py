"""The folder of `pluralllm quickstart`: what is in it, and how the commands of its page are typed."""

import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from pluralllm.cli import quickstart_command
from pluralllm.cli.__main__ import app
from pluralllm.cli.quickstart_command import PARTNERS, commands_of, folder_texts, type_commands
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.client.process.config import ClientConfig
from pluralllm.common.errors.tree import CommandMissing, InvalidArgument
from pluralllm.common.process.configuration import load_config
from pluralllm.common.words.usual_embedding import load_spec
from pluralllm.server.process.config import ServerConfig

pytestmark = pytest.mark.seconds

PROGRAMS = ("pluralllm", "pluralllm-client", "pluralllm-server")


def made(folder: Path, *options: str) -> Path:
    done = CliRunner().invoke(app, ["quickstart", str(folder / "trial"), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder / "trial"


def test_the_folder_has_a_coordinator_five_partners_a_spec_with_a_quorum_of_four_and_a_page(tmp_path: Path) -> None:
    folder = made(tmp_path, "--port", "9000", "--rounds", "7")
    coordinator = load_config(ServerConfig, folder / "coordinator.toml", {})
    ports = [str(address).rpartition(":")[2] for address in (coordinator.listen, coordinator.enrolment_listen)]
    assert (ports, str(coordinator.page_listen)) == (["9000", "9001"], "127.0.0.1:9003")
    spec = load_spec(folder / "run.toml")
    assert (spec.round.min_clients, spec.round.target_clients, spec.rounds) == (4, 5, 7)
    assert spec.private_rounds is not None
    assert spec.groups.train == PARTNERS
    for name in PARTNERS:
        client = load_config(ClientConfig, folder / name / "client.toml", {})
        assert (client.data, client.state_dir) == (Path(f"survey/{name}.jsonl"), Path(f"{name}/state"))
        assert client.exit_when_run_over
        assert client.embedding_model_path is None
    page = (folder / "README.md").read_text()
    assert "http://127.0.0.1:9003/" in page
    assert "@" not in page


def test_the_partners_are_those_of_the_invented_survey() -> None:
    names = [name.lower().replace(" ", "-") for name in sample_groups(len(PARTNERS), 2, seed=0)]
    assert sorted(names) == sorted(PARTNERS)


def test_a_folder_of_the_embedding_model_is_used_by_all_daemons_and_for_the_run(tmp_path: Path) -> None:
    model = tmp_path / "my model"
    model.mkdir()
    (model / "config.json").touch()
    folder = made(tmp_path, "--embedding-model-path", str(model))
    assert load_config(ClientConfig, folder / "foundry" / "client.toml", {}).embedding_model_path == model
    assert f"run create first run.toml --embedding-model-path '{model}'" in (folder / "README.md").read_text()


def test_the_containers_are_the_coordinator_and_the_daemons_with_the_files_of_the_folder() -> None:
    services = yaml.safe_load(folder_texts(None, 1, 7443)["compose.yaml"])["services"]
    assert sorted(services) == sorted(["coordinator", *PARTNERS])
    for name in PARTNERS:
        assert services[name]["command"] == ["run", "--config", f"{name}/client.toml"]
        assert services[name]["environment"]["PLURALLLM_CLIENT_COORDINATOR"] == "coordinator:7443"
    for service in services.values():
        assert (service["cap_drop"], service["read_only"], service["volumes"]) == (["ALL"], True, [".:/quickstart"])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["."], "exists and is not empty"),
        (["new", "--embedding-model-path", "."], "is not a folder with a config.json"),
    ],
)
def test_nothing_is_written_into_a_folder_of_somebody_or_for_a_model_that_is_none(
    arguments: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgument, match=problem):
        CliRunner().invoke(app, ["quickstart", *arguments], catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_run_without_the_coordinators_package_says_what_to_install_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart_command, "find_spec", lambda _name: None)
    with pytest.raises(CommandMissing, match="pip install 'pluralllm-server'"):
        CliRunner().invoke(app, ["quickstart", str(tmp_path / "trial"), "--run"], catch_exceptions=False)
    assert not (tmp_path / "trial").exists()


@pytest.mark.parametrize("is_installed", [True, False])
def test_a_run_takes_the_embedding_model_of_the_installed_package_or_says_that_it_is_downloaded(
    is_installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "the_package"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    if is_installed:
        (package / "model" / "config.json").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(quickstart_command, "MODEL_PACKAGE", "the_package")
    monkeypatch.setattr(quickstart_command, "type_commands", lambda *_: 0)
    done = CliRunner().invoke(app, ["quickstart", str(tmp_path / "trial"), "--run"], catch_exceptions=False)
    client = load_config(ClientConfig, tmp_path / "trial" / "foundry" / "client.toml", {})
    assert client.embedding_model_path == (package / "model" if is_installed else None)
    assert ("MODEL_UNAVAILABLE" in done.output) is not is_installed
    own_model = tmp_path / "own_model"
    own_model.mkdir()
    (own_model / "config.json").touch()
    options = ["--run", "--embedding-model-path", str(own_model)]
    CliRunner().invoke(app, ["quickstart", str(tmp_path / "second"), *options], catch_exceptions=False)
    assert load_config(ClientConfig, tmp_path / "second/foundry/client.toml", {}).embedding_model_path == own_model


def test_the_page_says_that_daemons_end_with_the_run_and_how_to_start_them_for_another_one(tmp_path: Path) -> None:
    page = (made(tmp_path) / "README.md").read_text()
    assert "exit_when_run_over" in page.partition("## Afterwards")[2]


def programs(folder: Path, body: str) -> Path:
    """Makes programs of the names of ours that note how they are called, and then do `body`."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    for name in PROGRAMS:
        program = bin_folder / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >> "{folder}/calls"\n{body}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return bin_folder


def test_the_commands_of_the_page_are_typed_in_order_and_those_for_afterwards_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLURALLLM_COORDINATOR", "elsewhere:1")
    folder = made(tmp_path)
    for name in PARTNERS:
        (folder / name / "state").mkdir()
        (folder / name / "state" / "roster.json").touch()
    body = 'case "$0 $*" in *" serve "*|*"client run"*) sleep 60;; *--digest) echo 12ab;; esac\n'
    body += 'test -z "${PLURALLLM_COORDINATOR:-}"'
    assert type_commands((folder / "README.md").read_text(), folder, programs(tmp_path, body)) == 0
    shown = capfd.readouterr().err
    assert "\npluralllm run start first\npluralllm status --watch\n" in shown
    assert "trap" not in shown  # which is not of the page
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0].startswith("pluralllm-server init --config coordinator.toml --host localhost")
    assert sum(call.startswith("pluralllm-client join") for call in calls) == 5
    pins = [call for call in calls if " pin " in call]
    assert (
        pins[-1]
        == f"pluralllm-client peers pin --config goldcrest/client.toml --roster 12ab --names {','.join(PARTNERS)}"
    )
    assert calls[-3:] == ["pluralllm run start first", "pluralllm status --watch", "pluralllm model pull first model"]


def test_a_command_that_fails_ends_all_others_and_gives_its_exit_code(tmp_path: Path) -> None:
    bin_folder = programs(
        tmp_path, f'echo $$ >> {tmp_path}/pids\ncase "$*" in *serve*) exec sleep 60;; *invite*) exit 4;; esac'
    )
    assert type_commands(folder_texts(None, 1, 7443)["README.md"], tmp_path, bin_folder) == 4
    assert "run start" not in (tmp_path / "calls").read_text()
    assert [pid for pid in (tmp_path / "pids").read_text().split() if psutil.pid_exists(int(pid))] == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 2)])
def test_a_signal_ends_all_processes(number: signal.Signals, code: int, tmp_path: Path) -> None:
    page = f"\n    (trap '' INT TERM; echo $BASHPID > {tmp_path}/pid; sleep 60) &\n    sleep 60\n\n## The run\n"
    program = (
        "import sys; from pathlib import Path; from pluralllm.cli import quickstart_command as q\n"
        f"q.STOP_LIMIT_S = 0.2; q.type_commands({page!r}, Path({str(tmp_path)!r}), Path('/nowhere'))"
    )
    running = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    until_s = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < until_s
        time.sleep(0.02)
    running.send_signal(number)
    assert abs(running.wait(20)) == code
    stubborn = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(stubborn) or psutil.Process(stubborn).status() == psutil.STATUS_ZOMBIE


def test_only_the_sections_up_to_the_run_are_typed() -> None:
    assert commands_of(
        "# T\n\n    one\n\ntext\n\n## The run\n\n    two\n        three\n\n## Afterwards\n\n    four\n"
    ) == ("one\ntwo\n    three")
