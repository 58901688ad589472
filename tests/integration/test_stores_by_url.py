"""Databases and buckets by URL: they are shown without secrets, checked by doctor, and clearly refused when they are wrong."""

import json
import subprocess
from pathlib import Path

import pytest
from support.commands import SERVER, typed
from support.process_harness import free_port
from support.real_stores import S3, Postgres

PASSWORD = "hunter2"  # nobody's password


@pytest.fixture
def settings(tmp_path: Path, postgres: Postgres, s3: S3, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a coordinator's configuration file for an empty database and an empty bucket."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    keys = {"database_url": postgres.new_database(), "blob_url": s3.new_bucket(), "blob_endpoint": s3.endpoint}
    return written(tmp_path, **keys)


def written(folder: Path, **keys: str) -> Path:
    path = folder / "coordinator.toml"
    text = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    path.write_text(f'{text}state_dir = "{folder / "state"}"\nlisten = "127.0.0.1:{free_port()}"\nplain_text = true\n')
    return path


def server(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return typed(SERVER, *arguments)


def test_the_configuration_is_shown_without_the_password(tmp_path: Path) -> None:
    path = written(tmp_path, database_url=f"postgresql://someone:{PASSWORD}@db.example.org/federation")
    shown = server("config", "--config", path)
    assert shown.returncode == 0
    assert "database_url" in shown.stdout
    assert PASSWORD not in shown.stdout + shown.stderr


def test_doctor_finds_database_and_bucket(settings: Path) -> None:
    done = server("doctor", "--config", settings)
    assert "postgresql" in done.stdout
    assert "s3://" in done.stdout
    assert "answers" in done.stdout


def test_doctor_says_what_is_wrong_with_database_and_bucket(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    url = f"postgresql://someone:{PASSWORD}@127.0.0.1:{free_port()}/federation"
    path = written(tmp_path, database_url=url, blob_url="s3://there-is-none/x", blob_endpoint=s3.endpoint)
    done = server("doctor", "--json", "--config", path)
    assert done.returncode == 3
    wrong = {check["name"]: check["fix"] for check in json.loads(done.stdout)["checks"] if not check["ok"]}
    assert "password in database_url" in wrong["database"]
    assert "is the bucket there" in wrong["bucket"]
    assert PASSWORD not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("key", "value", "refusal"),
    [
        ("database_url", f"mysql://someone:{PASSWORD}@db.example.org/federation", "must be postgresql://"),
        ("database_url", f"://{PASSWORD}", "must be postgresql://"),
        ("blob_url", "ftp://somewhere", "blob_url"),
    ],
)
def test_a_url_that_is_none_is_refused_without_telling_its_secret(
    tmp_path: Path, key: str, value: str, refusal: str
) -> None:
    done = server("serve", "--config", written(tmp_path, **{key: value}))
    assert done.returncode == 3
    assert refusal in done.stderr
    assert "Traceback" not in done.stderr
    assert PASSWORD not in done.stderr


def test_a_coordinator_without_its_database_says_so_and_ends(tmp_path: Path) -> None:
    url = f"postgresql://someone:{PASSWORD}@127.0.0.1:{free_port()}/federation"
    done = server("serve", "--config", written(tmp_path, database_url=url))
    assert done.returncode not in (0, None)
    assert "error: The coordinator's storage failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert PASSWORD not in done.stderr
