"""The list of attacks on private rounds in docs/private-rounds.md is whole, and each test that it names exists."""

import re
from functools import cache

import pytest
from support.documented import ROOT

SECTION = (
    (ROOT / "docs" / "private-rounds.md")
    .read_text(encoding="utf-8")
    .partition("## Attacks and faults\n")[2]
    .partition("\n## ")[0]
)
ROW = re.compile(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$", re.MULTILINE)
NAMED = re.compile(r"`([a-z_/]+\.py)::(test_\w+)`")
ROWS = {int(number): (attack, NAMED.findall(shown)) for number, attack, _, shown in ROW.findall(SECTION)}


@cache
def functions_in(file: str) -> frozenset[str]:
    """Returns the names of the test functions in a file below tests."""
    return frozenset(re.findall(r"^(?:async )?def (test_\w+)\(", (ROOT / "tests" / file).read_text(), re.MULTILINE))


def test_every_attack_of_the_design_has_its_line() -> None:
    assert list(ROWS) == list(range(1, 30))


@pytest.mark.parametrize("number", ROWS)
def test_an_attack_names_tests_that_exist(number: int) -> None:
    attack, named = ROWS[number]
    assert named, attack
    assert [name for file, name in named if name not in functions_in(file)] == []
