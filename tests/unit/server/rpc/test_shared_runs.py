"""The run that `-` stands for, and the runs that lists have."""

from types import SimpleNamespace
from typing import Any

import pytest

from pluralllm.common.words.names import NEWEST
from pluralllm.server.rounds.state import Outcome
from pluralllm.server.rpc import shared_runs
from pluralllm.server.rpc.shared_runs import SharedRuns

GOING_ON, COMPLETED, CANCELLED, ABORTED = None, Outcome.COMPLETED, Outcome.CANCELLED, Outcome.ABORTED
ARCHIVED = {COMPLETED: "completed and archived", CANCELLED: "cancelled and archived"}


def shared(states: "list[Outcome | str | None]", monkeypatch: pytest.MonkeyPatch) -> SharedRuns:
    """Returns runs in these states, oldest first, which the caller may read. Their ids are their positions."""
    spec = SimpleNamespace(groups=())
    known = {**{one: (one, False) for one in (None, *Outcome)}, **{text: (one, True) for one, text in ARCHIVED.items()}}
    runs: Any = [
        SimpleNamespace(id=str(n), spec=spec, state=SimpleNamespace(outcome=known[one][0], archived=known[one][1]))
        for n, one in enumerate(states)
    ]
    monkeypatch.setattr(shared_runs, "caller", lambda: None)
    monkeypatch.setattr(shared_runs, "may_read", lambda *_: True)
    held: Any = SimpleNamespace(all=lambda: tuple(runs))
    return SharedRuns(held)


@pytest.mark.parametrize(
    ("states", "newest"),
    [
        ([COMPLETED, GOING_ON, CANCELLED], 1),
        ([CANCELLED, CANCELLED], 1),
        ([CANCELLED, ABORTED], 1),
        ([GOING_ON, ARCHIVED[COMPLETED]], 0),
        ([GOING_ON, CANCELLED, ARCHIVED[COMPLETED], ARCHIVED[CANCELLED]], 0),
        ([COMPLETED, COMPLETED, ARCHIVED[COMPLETED]], 1),
        ([CANCELLED, ARCHIVED[COMPLETED]], 0),
        ([ARCHIVED[COMPLETED], ARCHIVED[COMPLETED], ARCHIVED[CANCELLED]], 1),
        ([ARCHIVED[CANCELLED], ARCHIVED[CANCELLED]], 1),
    ],
)
def test_the_newest_run_is_neither_archived_nor_cancelled_if_there_is_such_a_run(
    states: "list[Outcome | str | None]", newest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shared(states, monkeypatch).get_or_newest(NEWEST).id == str(newest)


def test_a_list_leaves_archived_runs_out_and_the_rights_to_read_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = shared([COMPLETED, ARCHIVED[COMPLETED], GOING_ON, ARCHIVED[CANCELLED]], monkeypatch)
    assert [run.id for run in runs.not_archived()] == ["2", "0"]
    assert [run.id for run in runs.newest_first()] == ["3", "2", "1", "0"]
