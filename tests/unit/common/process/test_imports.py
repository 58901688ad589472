"""Garbage during imports."""

import gc

import pytest

from pluralllm.common.process.imports import without_collecting


def test_no_garbage_is_collected_in_the_block_and_it_is_afterwards() -> None:
    frozen = gc.get_freeze_count()
    with without_collecting():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen


def test_a_failed_import_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), without_collecting():
        raise ImportError("gone")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with without_collecting():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
