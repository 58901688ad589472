"""The state of a run in words for people. Status, page and report all show this text."""


def run_state_text(phase: str, outcome: str, *, paused: bool) -> str:
    """Returns how a run stands: its outcome once it has ended, else its phase, and whether it is paused."""
    if phase == "ended":
        return outcome
    return f"{phase} (paused)" if paused else phase
