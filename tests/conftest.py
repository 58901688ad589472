"""What tests of several folders share."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SURVEY = REPOSITORY.parent / "shared" / "data" / "globalopinionqa" / "global_opinions.csv"


@pytest.fixture(scope="session")
def survey() -> Path:
    """The real survey file beside the checkout; never copied into it."""
    if not SURVEY.is_file():
        pytest.skip("the GlobalOpinionQA file is not beside this checkout (../shared/data/globalopinionqa)")
    return SURVEY


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that was free a moment ago, for a coordinator that must come back on the same one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield int(port)
