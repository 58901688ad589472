"""The state of a run in words."""

from pluralllm.common.words.run_state import run_state_text
from pluralllm.common.words.thinning import thinned


def test_a_run_that_has_ended_is_in_the_state_of_its_outcome() -> None:
    assert run_state_text("ended", "completed", paused=True) == "completed"
    assert run_state_text("collecting", "", paused=False) == "collecting"
    assert run_state_text("waiting", "", paused=True) == "waiting (paused)"


def test_thinned_values_keep_the_first_and_the_last_and_are_evenly_spaced() -> None:
    assert thinned(range(101), 5) == [0, 25, 50, 75, 100]
    assert thinned("abc", 3) == ["a", "b", "c"]
