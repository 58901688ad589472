"""The runs that the caller of the current call may read. The services of the package look up runs only here."""

from pluralllm.common.errors.tree import NotFound
from pluralllm.common.words.names import NEWEST, RunName
from pluralllm.server.members.access import check_may_read, may_read
from pluralllm.server.members.door import caller
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.live_runs import Runs


class SharedRuns:
    """Looks up runs for the caller of the current call. The table in access.py decides about the call, may_read about the run."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def get(self, run: str) -> LiveRun:
        """Returns a run by its id. Raises NotFound if there is no such run; RunNotShared if the caller may not read it."""
        live = self._runs.get(run)
        check_may_read(caller(), live.id, live.spec.groups)
        return live

    def get_or_newest(self, run: str) -> LiveRun:
        """Returns a run by its id; the newest run that the caller may read if the id is NEWEST. Raises errors as `get` does."""
        if run != NEWEST:
            return self.get(run)
        if not (runs := self.newest_first()):
            raise NotFound(what="run", name="yet")
        return runs[0]

    def named(self, name: str) -> LiveRun:
        """Returns the run with a resource name such as "runs/demo".

        Raises InvalidArgument if the text is no resource name of a run; NotFound or RunNotShared as `get` does.
        """
        return self.get_or_newest(RunName.parse(name).run)

    def newest_first(self) -> tuple[LiveRun, ...]:
        """Returns the runs that the caller may read, the newest first."""
        principal = caller()
        return tuple(run for run in self._runs.all()[::-1] if may_read(principal, run.id, run.spec.groups))
