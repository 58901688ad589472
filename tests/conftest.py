"""What tests of several folders share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from drill.pairs import Embedded, Served, StorePair
from support import real_stores

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub: no test waits for a network

REPOSITORY = Path(__file__).parents[1]
SURVEY = REPOSITORY.parent / "shared" / "data" / "globalopinionqa" / "global_opinions.csv"


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever is killed in mid-run wants the machine to itself."""
    for item in items:
        if item.path.parent.name in {"faults", "nemesis"}:
            item.add_marker(pytest.mark.alone)


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
