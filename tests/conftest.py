"""What tests of several folders share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from drill.pairs import Embedded, Served, StorePair
from support import real_stores
from support.leftovers import nothing_left_over

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub: no test waits for a network

# A test never fails for the time that it took; on CI the examples are the same each time, elsewhere new ones are tried.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if "CI" in os.environ else "here")
# A shell lets what runs in its background ignore Ctrl-C, and children inherit that: then none of them could be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parents[1]
SURVEY = REPOSITORY.parent / "shared" / "data" / "globalopinionqa" / "global_opinions.csv"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the slow modules first: what takes long must not begin when all else is done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True, scope="module")
def _no_process_outlives_its_module(request: pytest.FixtureRequest) -> Iterator[None]:
    with nothing_left_over(request.node.nodeid):
        yield


@pytest.fixture(scope="session")
def survey() -> Path:
    """The real survey file beside the checkout; never copied into it."""
    if not SURVEY.is_file():
        pytest.skip("the GlobalOpinionQA file is not beside this checkout (../shared/data/globalopinionqa)")
    return SURVEY


@pytest.fixture(scope="session")
def postgres() -> Iterator[real_stores.Postgres]:
    with real_stores.postgres() as found:
        yield found


@pytest.fixture(scope="session")
def s3() -> Iterator[real_stores.S3]:
    with real_stores.s3() as found:
        yield found


@pytest.fixture(scope="session", params=[Embedded.name, Served.name])
def pair(request: pytest.FixtureRequest) -> Iterator[StorePair]:
    """Database and blob store, by name."""
    if request.param == Embedded.name:
        yield Embedded()
        return
    served = Served(request.getfixturevalue("postgres"), request.getfixturevalue("s3"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in served.environment.items():
            patch.setenv(name, value)
        yield served
