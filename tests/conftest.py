"""What tests of several folders share."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub: no test waits for a network

REPOSITORY = Path(__file__).parents[1]
SURVEY = REPOSITORY.parent / "shared" / "data" / "globalopinionqa" / "global_opinions.csv"


@pytest.fixture(scope="session")
def survey() -> Path:
    """The real survey file beside the checkout; never copied into it."""
    if not SURVEY.is_file():
        pytest.skip("the GlobalOpinionQA file is not beside this checkout (../shared/data/globalopinionqa)")
    return SURVEY
