"""Runs in any state, without the steps that lead to it."""

from dataclasses import replace
from typing import Any

from pluralllm.server.runs.live_run import LiveRun


def with_state(run: LiveRun, **changes: Any) -> LiveRun:
    """Returns a copy of the run with other values of its state."""
    return replace(run, progress=replace(run.progress, state=replace(run.state, **changes)))


def change_state(run: LiveRun, **changes: Any) -> None:
    """Changes values of the state of the run itself, past the inbox."""
    object.__setattr__(run, "progress", with_state(run, **changes).progress)
