"""The state of a run in words for people. Status, page and report all show these texts."""

from collections.abc import Mapping
from typing import Any

# What the coordinator reads of the updates in a run, wherever its rounds are shown.
READS_SINGLE = "the coordinator reads single updates"
READS_SUMS = "the coordinator reads sums of updates, no single one"


def run_state_text(phase: str, outcome: str, *, paused: bool, archived: bool = False) -> str:
    """Returns how a run stands: its outcome once it has ended, else its phase, and whether it is paused or archived."""
    if phase == "ended":
        return f"{outcome} (archived)" if archived else outcome
    return f"{phase} (paused)" if paused else phase


def state_of_run(run: Mapping[str, Any]) -> str:
    """Returns the same for a run as plain values. A run is neither paused nor archived if its values do not say so."""
    is_paused, is_archived = bool(run.get("paused")), bool(run.get("archived"))
    return run_state_text(run["phase"], run["outcome"], paused=is_paused, archived=is_archived)
