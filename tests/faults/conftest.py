"""The stores that faults strike at."""

from collections.abc import Iterator

import pytest
from drill.pairs import Embedded, Served, StorePair
from drill.trial import Undisturbed


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


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, pair: StorePair) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"), pair)
