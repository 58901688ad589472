"""Decides the answer to a poll. The module is pure: it does no input or output.

The first row that matches decides the answer. "It" is the client.

state of the client                                               answer to its poll
------------------------------------------------------------------------------------------------------
It follows a run that has ended.                                  RunOver
It has a lease on a task that it does not work on.                DoTask
It works on an earlier step of its task, in a private round.      DoTask with the same task and its next step
It has a lease on the task it works on; the poll's time is over.  DoTask with the same task again
It works on a task on which it has no lease.                      Wait for RETRY_AFTER_S
It has no lease, and the poll's time is over.                     Wait for RETRY_AFTER_S and up to IDLE_HINT_S more
Any other state.                                                  None: the server holds the poll open
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from pluralllm.common.words.ids import ClientId, RunId
from pluralllm.common.words.names import TaskName
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.overview import why_waiting
from pluralllm.server.runs.sessions import Session

RETRY_AFTER_S = 0.05  # the client may ask again almost at once
IDLE_HINT_S = 0.5  # idle clients spread their next polls over this time


@dataclass(frozen=True, slots=True)
class RunOver:
    """An answer to a poll: the run has ended, and the client must forget the run."""

    run: RunId


@dataclass(frozen=True, slots=True)
class DoTask:
    """An answer to a poll: the client must do the task."""

    task: TaskName


@dataclass(frozen=True, slots=True)
class Wait:
    """An answer to a poll: the client has nothing to do, and must poll again later. `after_s` is the wait in seconds."""

    after_s: float


Answer = RunOver | DoTask | Wait


def what_now(
    ended: Sequence[RunId],
    leased: TaskName | None,
    works_on: str,
    spread: float,
    *,
    is_last: bool,
    phase: int = 0,
    held_phase: int = 0,
) -> Answer | None:
    """Returns the answer to a client's poll, or None if the server must keep the poll open.

    `ended` lists the client's runs that have ended. `leased` is the task on which the client has a lease (None if it has no
    lease). `works_on` is the name of the task that the client reports ("" if it reports no task). `spread` (0 <= spread < 1)
    varies the waiting time. `is_last` is true when the poll's time is over and the server must answer. `phase` is the step of
    the leased task in a private round (0 in a plain one), `held_phase` the step that the client reports.
    """
    if ended:
        return RunOver(ended[0])
    if leased is not None:
        is_new = str(leased) != works_on or phase not in (0, held_phase)
        return DoTask(leased) if is_last or is_new else None
    if works_on:
        return Wait(RETRY_AFTER_S)
    return Wait(RETRY_AFTER_S + IDLE_HINT_S * spread) if is_last else None


def spread_of(client: ClientId, now_s: float) -> float:
    """Returns a number x (0 <= x < 1) that varies between clients and between polls. Equal arguments give an equal number.

    The server multiplies waiting times by the number, so that a thousand idle clients do not poll at the same moment.
    """
    drawn = hashlib.sha256(f"{client}/{now_s!r}".encode()).digest()
    return int.from_bytes(drawn[:4]) / 2**32


def reason_to_wait(session: Session, works_on: str, runs: Sequence[LiveRun], *, stopping: bool) -> str:
    """Returns the reason why the client has nothing to do now, as a text for people.

    `works_on` is the name of the task that the client reports ("" if it reports no task). `runs` are the coordinator's runs.
    `stopping` is true while the coordinator stops.
    """
    if works_on:
        return f"task {works_on} is no longer wanted"
    if stopping:
        return "the coordinator is stopping"
    open_runs = [run for run in runs if not run.is_over]
    own_runs = [run for run in open_runs if run.spec.groups.role_of(session.group, session.role) is not None]
    if not own_runs:
        return "no run is open" if not open_runs else f"group {session.group} is not named in any open run"
    return "; ".join(why_waiting(run, session.client) for run in own_runs)
