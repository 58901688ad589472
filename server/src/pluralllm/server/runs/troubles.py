"""The problems that keep the coordinator itself from going on with a run."""

from pluralllm.common.words.ids import RunId


class Troubles:
    """The current problem of each run as a text for people. The coordinator alone writes it."""

    def __init__(self) -> None:
        self._by_run: dict[RunId, str] = {}

    def note(self, run: RunId, problem: str) -> bool:
        """Keeps a run's problem; True if it is another one than before."""
        is_new = self.of(run) != problem
        self._by_run[run] = problem
        return is_new

    def clear(self, run: RunId) -> None:
        """Forgets the problem: the run has gone on."""
        self._by_run.pop(run, None)

    def of(self, run: RunId) -> str:
        """The run's problem, or "" if it has none."""
        return self._by_run.get(run, "")
