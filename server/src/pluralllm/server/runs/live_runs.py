"""The runs that this process has in memory."""

from pluralllm.common.errors.tree import NotFound
from pluralllm.common.words.ids import RunId
from pluralllm.server.runs.live_run import LiveRun


class Runs:
    """Every run of the coordinator, oldest first. The coordinator alone adds to it."""

    def __init__(self) -> None:
        self._by_id: dict[RunId, LiveRun] = {}

    def add(self, run: LiveRun) -> None:
        """Enters a run that is on record."""
        self._by_id[run.id] = run

    def all(self) -> tuple[LiveRun, ...]:
        """All runs, oldest first."""
        return tuple(self._by_id.values())

    def find(self, name: str) -> LiveRun | None:
        """The run of this name, or None."""
        return self._by_id.get(RunId(name))

    def get(self, name: str) -> LiveRun:
        """The run of this name. Raises NotFound."""
        if (run := self.find(name)) is None:
            raise NotFound(what="run", name=name)
        return run
