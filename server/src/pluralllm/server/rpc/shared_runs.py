"""The runs that the caller of the current call may read. The services of the package look up runs only here."""

from pluralllm.common.errors.tree import InvalidArgument, NotFound
from pluralllm.common.words.names import NEWEST, RunName
from pluralllm.server.members.access import check_may_read, may_read
from pluralllm.server.members.door import caller
from pluralllm.server.rounds.state import Outcome
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
        """Returns a run by its id, or for NEWEST the newest run that the caller may read. Raises errors as `get` does.

        Cancelled runs come after the others, and archived runs after all that are not: after a slip, people look for the run that
        goes on.
        """
        if run != NEWEST:
            return self.get(run)
        if not (runs := self.newest_first()):
            raise NotFound(what="run", name="yet")
        return min(runs, key=lambda run: (run.state.archived, run.state.outcome is Outcome.CANCELLED))

    def named(self, name: str) -> LiveRun:
        """Returns the run with a resource name such as "runs/demo".

        Raises InvalidArgument if the text is no resource name of a run; NotFound or RunNotShared as `get` does.
        """
        return self.get_or_newest(RunName.parse(name).run)

    def exactly(self, name: str) -> LiveRun:
        """Returns the run with a resource name, for a call that changes the run: the audit log must have the run's own name.

        Raises InvalidArgument if the text is no resource name of a run, or stands for the newest run; NotFound or RunNotShared
        as `get` does.
        """
        if (run := RunName.parse(name).run) == NEWEST:
            raise InvalidArgument(
                field="name", problem=f"is {name}, must be the run's own name in a call that changes it"
            )
        return self.get(run)

    def newest_first(self) -> tuple[LiveRun, ...]:
        """Returns the runs that the caller may read, the newest first, with archived ones."""
        principal = caller()
        return tuple(run for run in self._runs.all()[::-1] if may_read(principal, run.id, run.spec.groups))

    def not_archived(self) -> tuple[LiveRun, ...]:
        """Returns the runs that the caller may read and nobody has archived, the newest first."""
        return tuple(run for run in self.newest_first() if not run.state.archived)
