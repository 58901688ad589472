"""The stores that faults strike at, and what an undisturbed run gives over them."""

import pytest
from drill.pairs import StorePair
from drill.trial import Undisturbed


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, pair: StorePair) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"), pair)
