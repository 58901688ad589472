"""The run that `-` stands for."""

from types import SimpleNamespace
from typing import Any

import pytest

from pluralllm.common.words.names import NEWEST
from pluralllm.server.rounds.state import Outcome
from pluralllm.server.rpc import shared_runs
from pluralllm.server.rpc.shared_runs import SharedRuns


@pytest.mark.parametrize(
    ("outcomes", "newest"),
    [
        ([Outcome.COMPLETED, None, Outcome.CANCELLED], 1),
        ([Outcome.CANCELLED, Outcome.CANCELLED], 1),
        ([Outcome.CANCELLED, Outcome.ABORTED], 1),
    ],
)
def test_the_newest_run_is_one_that_nobody_has_cancelled_if_there_is_one(
    outcomes: list[Outcome | None], newest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SimpleNamespace(groups=())
    runs: Any = [
        SimpleNamespace(id=str(n), spec=spec, state=SimpleNamespace(outcome=o)) for n, o in enumerate(outcomes)
    ]
    monkeypatch.setattr(shared_runs, "caller", lambda: None)
    monkeypatch.setattr(shared_runs, "may_read", lambda *_: True)
    held: Any = SimpleNamespace(all=lambda: runs)
    assert SharedRuns(held).get_or_newest(NEWEST).id == str(newest)
