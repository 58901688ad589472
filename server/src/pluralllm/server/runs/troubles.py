"""The problems on the coordinator's side that block a run, for example a full disk."""

from pluralllm.common.text.printable import printable
from pluralllm.common.words.ids import RunId

MAX_PROBLEM = 400  # characters


class Troubles:
    """The current problem of each run, as a text for people. Only the coordinator records and removes problems."""

    def __init__(self) -> None:
        self._by_run: dict[RunId, str] = {}

    def note(self, run: RunId, problem: str) -> bool:
        """Records the run's current problem. Returns whether the problem differs from the one recorded before."""
        is_new = self.of(run) != problem
        self._by_run[run] = problem
        return is_new

    def clear(self, run: RunId) -> None:
        """Removes the run's problem, because the run has made progress."""
        self._by_run.pop(run, None)

    def of(self, run: RunId) -> str:
        """Returns the text of the run's problem, or "" if the run has none."""
        return self._by_run.get(run, "")


def problem_of(error: Exception) -> str:
    """Returns the text of an error that people and the event log get.

    It is cut, and printable: a part of it may come from another package, or from a client's file.
    """
    return printable((str(error) or type(error).__name__)[:MAX_PROBLEM])
