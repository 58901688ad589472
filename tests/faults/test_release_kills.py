"""kill -9 between any two steps of a release: no uncharged release, no double charge, no refund by an older state folder."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from drill.release_kills import BOTH, CODEBOOK, DELTA, QUESTIONS, Places
from drill.trial import ALL

from pluralllm.client.privacy.accountant import epsilon_of, rho_used
from pluralllm.client.privacy.entries import Charge, Entry, totals_of
from pluralllm.client.privacy.ledger import Ledger
from pluralllm.client.privacy.release import release
from pluralllm.client.privacy.released_answers import released_answers
from pluralllm.common.errors.tree import PrivacyBudgetSpent

pytestmark = pytest.mark.faults
STEP = 1 if ALL else 7  # an odd step meets points before and after calls


def entries(places: Places) -> tuple[Entry, ...]:
    return Ledger(places.state, places.data.resolve()).entries


def spent(places: Places) -> float:
    return epsilon_of(rho_used(totals_of(entries(places)).values(), QUESTIONS), DELTA)


def released_again(places: Places) -> bool:
    """Releases what the budget still allows, as a partner does after a crash. Returns whether anything was left."""
    try:
        release(places.data, places.state, CODEBOOK, BOTH, draw=lambda numbers, _: [number + 7 for number in numbers])
    except PrivacyBudgetSpent:
        return False
    return True


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of releases that were killed, each at another point."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "drill.release_kills", str(folder), str(STEP)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[1]
    )
    assert int(done.stdout) > 30, "the points of a release"
    return sorted(folder.iterdir(), key=lambda home: int(home.name))


def test_a_killed_release_was_charged_before_anything_was_drawn_and_is_charged_once(killed: list[Path]) -> None:
    used_before = 0
    for home in killed:
        places = Places(home)
        shutil.copytree(home, home.with_suffix(".restored"))
        before = spent(places)
        assert before == pytest.approx(BOTH.epsilon if before > 1.1 else 1.0), home
        assert not places.drawn.exists() or before == pytest.approx(BOTH.epsilon), home
        in_use = released_answers(places.data, places.state)
        is_over = in_use.path.name != "noised-0.jsonl"
        used_before += is_over
        assert released_again(places) != is_over, home
        assert spent(places) == pytest.approx(BOTH.epsilon), home
        assert sum(isinstance(entry, Charge) for entry in entries(places)) == 2, home
        if is_over:
            assert released_answers(places.data, places.state) == in_use, "what was used once stays in use"
    assert 0 < used_before < len(killed), "kills before and after the release"


def test_an_older_state_folder_does_not_refund_a_killed_release(killed: list[Path]) -> None:
    drawn = 0
    for home in killed:
        places = Places(home.with_suffix(".restored"))
        for path in places.data.parent.iterdir():  # the ledger names the private file by its path
            shutil.copy2(path, Places(home).data.parent)
        places.data = Places(home).data
        shutil.rmtree(places.state)
        shutil.copytree(places.older, places.state)
        drawn += places.drawn.exists()
        assert not places.drawn.exists() or spent(places) == pytest.approx(BOTH.epsilon), home
        charges = sum(isinstance(entry, Charge) for entry in entries(places))
        released_again(places)
        assert spent(places) == pytest.approx(BOTH.epsilon), home
        assert sum(isinstance(entry, Charge) for entry in entries(places)) == max(2, charges), home
    assert 0 < drawn < len(killed)
