"""The state of a run in words."""

from pluralllm.common.words.run_state import run_state_text


def test_a_run_that_has_ended_is_in_the_state_of_its_outcome() -> None:
    assert run_state_text("ended", "completed", paused=True) == "completed"
    assert run_state_text("collecting", "", paused=False) == "collecting"
    assert run_state_text("waiting", "", paused=True) == "waiting (paused)"
    assert run_state_text("ended", "cancelled", paused=False, archived=True) == "cancelled (archived)"
