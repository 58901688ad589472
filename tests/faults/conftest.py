"""The stores that faults strike at, and what an undisturbed run gives over them."""

import pytest
from drill.pairs import StorePair
from drill.trial import Undisturbed


@pytest.fixture(scope="session")
def played() -> dict[str, Undisturbed]:
    """By pair of stores: tests come in any order of them, and what was played once is not played again."""
    return {}


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, pair: StorePair, played: dict[str, Undisturbed]
) -> Undisturbed:
    if pair.name not in played:
        played[pair.name] = Undisturbed(tmp_path_factory.mktemp("undisturbed"), pair)
    return played[pair.name]
