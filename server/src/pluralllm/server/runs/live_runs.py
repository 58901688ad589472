"""The collection of the runs that the coordinator holds in memory."""

from pluralllm.common.errors.tree import NotFound
from pluralllm.common.words.ids import RunId
from pluralllm.server.runs.live_run import LiveRun


class Runs:
    """All runs of the coordinator, the oldest first. Only the coordinator adds runs."""

    def __init__(self) -> None:
        self._by_id: dict[RunId, LiveRun] = {}

    def add(self, run: LiveRun) -> None:
        """Adds a run whose database rows exist already."""
        self._by_id[run.id] = run

    def all(self) -> tuple[LiveRun, ...]:
        """Returns all runs, the oldest first."""
        return tuple(self._by_id.values())

    def find(self, name: str) -> LiveRun | None:
        """Returns the run with the given name, or None if no run has the name."""
        return self._by_id.get(RunId(name))

    def get(self, name: str) -> LiveRun:
        """Returns the run with the given name. Raises NotFound if no run has the name."""
        if (run := self.find(name)) is None:
            raise NotFound(what="run", name=name)
        return run
