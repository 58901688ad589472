"""The mutants that are made of a module, and the modules that `make mutants` knows."""

from typing import Any

import pytest
from mutation.__main__ import MODULES, REPOSITORY, path_of
from mutation.mutants import mutants_of


def mutants(source: str) -> list[str]:
    return [mutant.name for mutant in mutants_of(source)]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("a < b", ["a < b  ->  a <= b"]),
        ("0 < a <= b", ["0 < a <= b  ->  0 <= a <= b", "0 < a <= b  ->  0 < a < b", "0  ->  1"]),
        ("a and b", ["a and b  ->  b", "a and b  ->  a"]),
        ("not a", ["not a  ->  a"]),
        ("a - b", ["a - b  ->  a + b"]),
        ("min(a, b)", ["min(a, b)  ->  max(a, b)"]),
        ("a if b else c", ["a if b else c  ->  a", "a if b else c  ->  c"]),
        ("[x for x in a if x]", ["for x in a if x  ->  for x in a"]),
        ("f'{a + b}'", []),
        ("'text'", []),
        ("a | b", ["a | b  ->  a & b"]),
        ("isinstance(a, int | None)", []),
        ("isinstance(a, A | B)", []),
    ],
)
def test_each_piece_of_logic_is_changed_in_one_way_at_a_time(code: str, expected: list[str]) -> None:
    assert mutants(f"def f(a, b, c):\n    return {code}\n") == [f"f: {change}" for change in expected]


def test_statements_are_left_out_or_taken_always_and_never() -> None:
    source = """
def f(a):
    '''Documentation.'''
    assert a
    if a:
        log.info("text", number=1)
        raise Error(1 + 2)
    for x in a:
        a.b = x
        g(x)
        continue
    with lock:
        pass
"""
    assert mutants(source) == [
        "f: if a  ->  if False",
        "f: if a  ->  if True",
        "f: raise Error(1 + 2)  ->  left out",
        "f: a.b = x  ->  left out",
        "f: g(x)  ->  left out",
        "f: continue  ->  left out",
        "f: with lock  ->  if True",
    ]


def test_a_mutant_is_code_with_one_change_and_leaves_the_module_as_it_was() -> None:
    source = "LIMIT = 3\n\nclass C:\n    def f(self, a, b=1):\n        return a < LIMIT\n"
    results = {}
    for mutant in mutants_of(source):
        names: dict[str, Any] = {}
        exec(mutant.code("file.py"), names)  # type: ignore[arg-type]
        results[mutant.name] = (names["LIMIT"], names["C"]().f(3), names["C"].f.__defaults__, mutant.scope)
    assert results == {
        ": 3  ->  4": (4, True, (1,), None),
        "C.f: 1  ->  2": (3, False, (2,), None),
        "C.f: a < LIMIT  ->  a <= LIMIT": (3, True, (1,), ("C.f", 4)),
    }


def test_two_equal_changes_of_a_function_have_two_names() -> None:
    assert mutants("def f(a):\n    return a + 1, a + 1\n") == [
        "f: a + 1  ->  a - 1",
        "f: 1  ->  2",
        "f: a + 1  ->  a - 1  #2",
        "f: 1  ->  2  #2",
    ]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_and_its_tests_exist(module: str) -> None:
    assert path_of(module).is_file()
    assert all((REPOSITORY / name).exists() for name in MODULES[module])
