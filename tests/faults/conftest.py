"""The stores that faults strike, and the results of undisturbed runs on them."""

import pytest
from drill.pairs import StorePair
from drill.trial import Undisturbed


@pytest.fixture(scope="session")
def played() -> dict[str, Undisturbed]:
    """The undisturbed runs by pair of stores: the tests use the pairs in any order, and no run is played twice."""
    return {}


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, pair: StorePair, played: dict[str, Undisturbed]
) -> Undisturbed:
    if pair.name not in played:
        played[pair.name] = Undisturbed(tmp_path_factory.mktemp("undisturbed"), pair)
    return played[pair.name]
