"""The runner of mutants finds the functions that it has to change."""

import gc

from mutation.trials import _functions


def test_functions_are_found_although_the_collection_of_the_tests_has_frozen_them() -> None:
    gc.freeze()  # as tests/conftest.py does; an unfound function would stay as it is, and each of its mutants would survive
    names = {name for name, _ in _functions(__file__)}
    assert names >= {"test_functions_are_found_although_the_collection_of_the_tests_has_frozen_them"}
