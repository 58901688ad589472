"""Decides the answer of a held poll. Pure.

the first row that fits                                           the answer
------------------------------------------------------------------------------------------------------
a run that the client follows has ended                           RunOver
the client is leased a task that it does not work on              DoTask
the client is leased the task it works on, the poll is at its end DoTask, the same once more
the client works on a task that it is not leased                  Wait, for RETRY_AFTER_S
the client is leased no task, the poll is at its end              Wait, for RETRY_AFTER_S and up to IDLE_HINT_S
else                                                              None: the poll is held on
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
    """The client is to forget this run."""

    run: RunId


@dataclass(frozen=True, slots=True)
class DoTask:
    """The client is to do this task."""

    task: TaskName


@dataclass(frozen=True, slots=True)
class Wait:
    """The client is to ask again after a while."""

    after_s: float


Answer = RunOver | DoTask | Wait


def what_now(
    ended: Sequence[RunId], leased: TaskName | None, works_on: str, spread: float, *, is_last: bool
) -> Answer | None:
    """Returns the answer to a poll at this moment, or None to hold the poll on.

    `ended`: runs that the client follows and that have ended; `leased`: the task that the client has a lease on; `works_on`: the
    name of the task that the client reports, "" for none; `spread`: 0 <= spread < 1; `is_last`: the poll must be answered now.
    """
    if ended:
        return RunOver(ended[0])
    if leased is not None:
        return DoTask(leased) if is_last or str(leased) != works_on else None
    if works_on:
        return Wait(RETRY_AFTER_S)
    return Wait(RETRY_AFTER_S + IDLE_HINT_S * spread) if is_last else None


def spread_of(client: ClientId, now_s: float) -> float:
    """A number in 0 <= x < 1 that differs from client to client and from poll to poll, the same for the same moment.

    So that a thousand idle clients do not ask again in step.
    """
    drawn = hashlib.sha256(f"{client}/{now_s!r}".encode()).digest()
    return int.from_bytes(drawn[:4]) / 2**32


def reason_to_wait(session: Session, works_on: str, runs: Sequence[LiveRun], *, stopping: bool) -> str:
    """Returns why the client has nothing to do now, as a text for people."""
    if works_on:
        return f"task {works_on} is no longer wanted"
    if stopping:
        return "the coordinator is stopping"
    open_runs = [run for run in runs if not run.is_over]
    own_runs = [run for run in open_runs if run.spec.groups.role_of(session.group, session.role) is not None]
    if not own_runs:
        return "no run is open" if not open_runs else f"group {session.group} is not named in any open run"
    return "; ".join(why_waiting(run, session.client) for run in own_runs)
