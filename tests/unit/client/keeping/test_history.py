"""The history follows one chain of versions, and refuses another past."""

from pathlib import Path

import pytest

from pluralllm.client.keeping.history import History
from pluralllm.client.link.tasks import VersionLink
from pluralllm.common.errors.tree import HistoryDiverged
from pluralllm.common.words.ids import Digest, ModelVersion, RunId

RUN = RunId("r")


def link(version: int, record: str, parent: str) -> VersionLink:
    return VersionLink(ModelVersion(version), Digest("d"), record, parent)


def test_a_history_that_goes_on_is_followed_over_restarts(tmp_path: Path) -> None:
    History(tmp_path).check(RUN, link(0, "a", ""), "a")
    History(tmp_path).check(RUN, link(1, "b", "a"), "b")
    History(tmp_path).check(RUN, link(1, "b", "a"), "b")
    History(tmp_path).check(RUN, link(5, "f", "e"), "f")


@pytest.mark.parametrize(
    ("changed", "task_record"), [(link(1, "x", "a"), "x"), (link(2, "c", "x"), "c"), (link(1, "b", "a"), "y")]
)
def test_a_rewritten_history_is_refused(tmp_path: Path, changed: VersionLink, task_record: str) -> None:
    history = History(tmp_path)
    history.check(RUN, link(0, "a", ""), "a")
    history.check(RUN, link(1, "b", "a"), "b")
    with pytest.raises(HistoryDiverged):
        history.check(RUN, changed, task_record)


def test_a_run_is_open_until_its_end_is_seen_and_its_history_stays(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.check(RUN, link(0, "a", ""), "a")
    assert History(tmp_path).open_runs() == {RUN}
    history.close(RUN)
    history.close(RunId("never seen"))
    assert History(tmp_path).open_runs() == set()
    with pytest.raises(HistoryDiverged):
        history.check(RUN, link(0, "x", ""), "x")
