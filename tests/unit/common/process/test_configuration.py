import dataclasses
import pwd
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pluralllm.client.process.config import ClientConfig, JoinConfig
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.process.configuration import load_config, origins_of
from pluralllm.common.process.environment import identity_of_person
from pluralllm.server.process.config import ServerConfig

LIMIT_S = 30.0


def write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def test_each_value_has_the_origin_that_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "coordinator.toml", 'listen = "127.0.0.1:1"\nlease_s = 9\n')
    monkeypatch.setenv("PLURALLLM_SERVER_LEASE_S", "7")
    origins = origins_of(ServerConfig, file)
    assert origins["lease_s"] == "environment PLURALLLM_SERVER_LEASE_S"
    assert origins["listen"] == f"file {file}"
    assert origins["silence_s"] == "default"
    assert origins.keys() == ServerConfig.model_fields.keys()


def test_without_a_file_there_are_environment_and_defaults_only() -> None:
    assert set(origins_of(ServerConfig, None).values()) == {"default"}


def test_a_misspelt_key_has_no_origin(tmp_path: Path) -> None:
    assert "leese_s" not in origins_of(ServerConfig, write(tmp_path / "a.toml", "leese_s = 9\n"))


@dataclasses.dataclass(frozen=True)
class Sources:
    """A value of `lease_s` in each source; None stands for no value."""

    flag: float | None
    variable: str | None
    in_file: float | None


@pytest.mark.parametrize(
    ("sources", "lease_s"),
    [
        (Sources(5, "6", 7), 5),
        (Sources(None, "6", 7), 6),
        (Sources(None, None, 7), 7),
        (Sources(None, None, None), 60),
        (Sources(5, None, None), 5),
        (Sources(5, "no number", 7), 5),
    ],
)
def test_flag_comes_before_environment_before_file_before_default(
    sources: Sources, lease_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sources.variable is not None:
        monkeypatch.setenv("PLURALLLM_SERVER_LEASE_S", sources.variable)
    file = write(tmp_path / "a.toml", "" if sources.in_file is None else f"lease_s = {sources.in_file}\n")
    assert load_config(ServerConfig, file, {"lease_s": sources.flag}).lease_s == lease_s


def test_the_case_of_a_variable_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("plurallLM_Server_lease_s", "7")
    assert load_config(ServerConfig, None, {}).lease_s == 7


def test_an_empty_variable_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLURALLLM_SERVER_LISTEN", "")
    with pytest.raises(InvalidConfig, match="listen"):
        load_config(ServerConfig, None, {})


def test_a_configuration_made_in_python_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLURALLLM_SERVER_LEASE_S", "7")
    assert ServerConfig().lease_s == 60


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"lease_s = ", "  not TOML: Invalid value"),
        (b'listen = "\xff"', "  line 1 has the byte 0xff, which is no UTF-8"),
        ('listen = "x"'.encode("utf-16"), "  it is in UTF-16; save the file as UTF-8"),
        (b'listen = "*:7443"', "  listen: must be host:port, but has no host"),
        (b'listen = "::1:7443"', "  listen: must have brackets around its IPv6 address; write [::1]:7443"),
        (b'page_listen = "::1"', "  page_listen: must be host:port, but has no port; for example [::1]:7443"),
        (b'advertise = "0.0.0.0:7443"', "  advertise: must not be 0.0.0.0, which stands for all addresses"),
        (b'advertise_enrolment = "a:0"', "  advertise_enrolment: must not have port 0"),
        (b"leese_s = 9", "  leese_s: unknown key; check its spelling (given: 9)"),
        (b"lease_s = 0", "  lease_s: Input should be greater than 0 (given: 0)"),
        (
            b"chunk_idle_s = 1.9",
            "  chunk_idle_s: must be at least 2: twice the time of a piece of 16 KiB on",
        ),
        (
            b'advertise = "a.org:1"\nadvertise_enrolment = "a.org:1"',
            "  (whole file): advertise and advertise_enrolment are",
        ),
        (b'state_dir = "a\\u0000b"', "  state_dir: has a NUL character"),
        (
            b'page_listen = "127.0.0.1:7443"',
            "  (whole file): listen and page_listen have the same port (0.0.0.0:7443, ",
        ),
        (
            b'listen = "[::1]:7"\nenrolment_listen = "[::1]:7"',
            "  (whole file): listen and enrolment_listen have the same port",
        ),
        (b'database_url = "mysql://ann:hidden@there/db"', "  database_url: is of mysql, must be postgresql://"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_name_and_key(
    content: bytes, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "coordinator.toml"
    file.write_bytes(content)
    with pytest.raises(InvalidConfig) as refusal:
        load_config(ServerConfig, file, {})
    assert refusal.value.file == str(file)
    assert refusal.value.problems.startswith(problem)
    assert "hidden" not in str(refusal.value)


def test_the_shortest_wait_for_a_silent_upload_is_allowed() -> None:
    assert load_config(ServerConfig, None, {"chunk_idle_s": 2.0}).chunk_idle_s == 2


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="there is no such file"):
        load_config(ServerConfig, tmp_path / "absent.toml", {})


def test_without_a_file_a_refusal_names_flags_and_environment() -> None:
    with pytest.raises(InvalidConfig) as refusal:
        load_config(ServerConfig, None, {"lease_s": -1})
    assert refusal.value.file == "(flags and environment)"


def test_joining_reads_its_own_keys_of_an_unfinished_file(tmp_path: Path) -> None:
    file = write(tmp_path / "client.toml", 'state_dir = "there"\nnot_known_yet = 1\n')
    assert load_config(JoinConfig, file, {}).state_dir == Path("there")
    with pytest.raises(InvalidConfig, match="data: Field required"):
        load_config(ClientConfig, file, {})


class PausingFlags(dict[str, Any]):
    """Flags that run another load in full while this load is in progress."""

    def __init__(self, reached: threading.Event, other_is_done: threading.Event) -> None:
        super().__init__()
        self._reached, self._other_is_done = reached, other_is_done

    def items(self) -> Any:
        self._reached.set()
        assert self._other_is_done.wait(LIMIT_S)
        return super().items()


def test_two_loads_at_the_same_time_read_a_file_each(tmp_path: Path) -> None:
    first = write(tmp_path / "first.toml", "lease_s = 1\n")
    second = write(tmp_path / "second.toml", "lease_s = 2\n")
    reached, other_is_done = threading.Event(), threading.Event()

    def load(file: Path, flags: Mapping[str, Any]) -> float:
        return load_config(ServerConfig, file, flags).lease_s

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(load, first, PausingFlags(reached, other_is_done))
        assert reached.wait(LIMIT_S)
        try:
            assert load(second, {}) == 2
        finally:
            other_is_done.set()
        assert slow.result(LIMIT_S) == 1
    assert load_config(ServerConfig, None, {}).lease_s == 60


def test_many_loads_in_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{number}.toml", f"lease_s = {number}\n") for number in range(1, 9)]
    with ThreadPoolExecutor(len(files)) as pool:
        loads = [pool.submit(load_config, ServerConfig, file, {}) for _ in range(25) for file in files]
        assert [load.result(LIMIT_S).lease_s for load in loads] == [*range(1, 9)] * 25


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HOME": "/home/ann"}, "/home/ann/.config/pluralllm"),
        ({"HOME": "/home/ann", "XDG_CONFIG_HOME": "/elsewhere"}, "/elsewhere/pluralllm"),
        ({"HOME": "/home/ann", "XDG_CONFIG_HOME": ""}, "/home/ann/.config/pluralllm"),
        ({"HOME": "/home/ann", "XDG_CONFIG_HOME": "relative"}, "/home/ann/.config/pluralllm"),
        ({}, "/of/the/database/.config/pluralllm"),
        ({"HOME": ""}, "/of/the/database/.config/pluralllm"),
        ({"HOME": "relative"}, "/of/the/database/.config/pluralllm"),
    ],
)
def test_a_persons_identity_is_in_the_home_folder(
    variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = pwd.struct_passwd(("ann", "x", 1, 1, "", "/of/the/database", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: entry)
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert identity_of_person("--identity", None) == Path(folder)
    assert identity_of_person("--identity", Path("mine")) == Path("mine")


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home folder, as in a container that runs with any number."""

    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)


@pytest.mark.usefixtures("nameless")
def test_without_a_home_folder_each_path_is_asked_for() -> None:
    with pytest.raises(InvalidConfig, match="HOME is not set: give --identity, or set PLURALLLM_IDENTITY"):
        identity_of_person("--identity", None)
    with pytest.raises(InvalidConfig, match="--identity: begins with ~, but no such home folder is known"):
        identity_of_person("--identity", Path("~/mine"))
    assert identity_of_person("--identity", Path("/mine")) == Path("/mine")
    with pytest.raises(InvalidConfig, match="state_dir: begins with ~, but no such home folder is known"):
        load_config(ServerConfig, None, {"state_dir": Path("~/state")})


def test_a_tilde_in_a_file_is_the_home_folder_and_in_a_name_a_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    (tmp_path / "coordinator.toml").write_text('state_dir = "~/state"')
    assert load_config(ServerConfig, tmp_path / "coordinator.toml", {}).state_dir == Path("/home/ann/state")
    assert load_config(ServerConfig, None, {"state_dir": Path("a/~/b~")}).state_dir == Path("a/~/b~")
    with pytest.raises(InvalidConfig, match="begins with ~ben"):
        load_config(ServerConfig, None, {"state_dir": Path("~ben/state")})
