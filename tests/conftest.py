"""What tests of several folders share."""

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
