"""Fixtures and settings that the tests of several folders share."""

import atexit
import gc
import os
import signal
import unittest.mock
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from drill.pairs import Embedded, Served, StorePair
from support import fork_server, real_stores
from support.installed_package import Site
from support.leftovers import nothing_left_over
from support.plain_logs import is_plain, let_no_logger_keep_its_configuration, log_plainly
from support.session_folder import open_session_folder, session_folder

from pluralllm.common.process.imports import without_collecting

os.environ["HF_HUB_OFFLINE"] = "1"  # set before anything imports huggingface_hub, so that no test waits for a network

# No test fails because it was slow. In CI, hypothesis tries the same examples each time; elsewhere it tries new ones.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if "CI" in os.environ else "here")
# A shell makes its background jobs ignore SIGINT; children inherit that, and a test could not interrupt them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # of nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A process of pytest-xdist has reported everything when it ends. To free its two million objects takes four seconds more.
if "PYTEST_XDIST_WORKER" in os.environ:
    atexit.register(os._exit, 0)

REPOSITORY = Path(__file__).parents[1]
SURVEY = REPOSITORY.parent / "shared" / "data" / "globalopinionqa" / "global_opinions.csv"


def pytest_configure(config: pytest.Config) -> None:
    gc.set_threshold(
        100_000, 50, 50
    )  # by its defaults, Python looks for garbage for a tenth of the time of the quick tests
    let_no_logger_keep_its_configuration()
    log_plainly()
    config.add_cleanup(open_session_folder())


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Reads the tests without collecting garbage: their imports take a third less time."""
    with without_collecting():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the slow modules to the front, so that no long test starts when all others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True, scope="module")
def _no_process_outlives_its_module(request: pytest.FixtureRequest) -> Iterator[None]:
    with nothing_left_over(request.node.nodeid):
        yield


@pytest.fixture(autouse=True)
def _each_test_begins_with_plain_logs() -> None:
    if not is_plain():  # a command that the test before has called in this process configures the logs
        log_plainly()


def forking(names: str) -> Iterator[None]:
    with unittest.mock.patch.dict(os.environ, fork_server.forking(session_folder(), names, os.environ)):
        yield


@pytest.fixture(scope="module")
def forked_starts() -> Iterator[None]:
    """Makes the commands, daemons and workers that a module starts forks of a process that has the libraries loaded."""
    yield from forking(f"{fork_server.COMMANDS} {fork_server.WORKERS}")


@pytest.fixture(scope="module")
def forked_workers() -> Iterator[None]:
    """Makes the workers of a module's daemons and its drilled clients such forks, and no other process."""
    yield from forking(fork_server.WORKERS)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty folder of installed packages, for the example packages of tests/support."""
    site = Site(tmp_path / "site-packages", monkeypatch)
    yield site
    site.uninstall()


@pytest.fixture(scope="session")
def survey() -> Path:
    """The path of the real survey file beside the checkout; the file is never copied into the checkout."""
    if not SURVEY.is_file():
        pytest.skip("the GlobalOpinionQA file is not beside this checkout (../shared/data/globalopinionqa)")
    return SURVEY


@pytest.fixture(scope="session")
def postgres() -> Iterator[real_stores.Postgres]:
    with real_stores.postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[real_stores.S3]:
    with real_stores.s3() as server:
        yield server


@pytest.fixture(scope="session", params=[Embedded.name, Served.name])
def pair(request: pytest.FixtureRequest) -> Iterator[StorePair]:
    """The pair of database and blob store that the parameter names."""
    if request.param == Embedded.name:
        yield Embedded()
        return
    served = Served(request.getfixturevalue("postgres"), request.getfixturevalue("s3"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in served.environment.items():
            patch.setenv(name, value)
        yield served
