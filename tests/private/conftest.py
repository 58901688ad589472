"""Shortcuts for the tests of private rounds, which play a hundred rounds: none of them changes a result."""

import functools
import os

import pytest

from pluralllm.common.private_rounds import messages, statements
from pluralllm.common.private_rounds.sealed_boxes import HybridKey

verified_once = functools.cache(statements.verify)
derived_once = functools.cache(HybridKey.of)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out fsync, and computes what follows from the same bytes once: all clients check the same signatures."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(messages, "verify", verified_once)
    monkeypatch.setattr(HybridKey, "of", derived_once)
