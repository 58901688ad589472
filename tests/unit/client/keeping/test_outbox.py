from pathlib import Path

import pytest

from pluralllm.client.keeping.outbox import Entry, History, Outbox
from pluralllm.client.link.tasks import VersionLink
from pluralllm.common.errors.tree import HistoryDiverged
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.ids import Digest, ModelVersion, RunId, TaskId

TASK, RUN = TaskId("runs/r/rounds/1/tasks/train-ann"), RunId("r")


def filled(folder: Path) -> tuple[Outbox, Entry]:
    outbox = Outbox(folder / "outbox")
    draft = folder / "draft"
    draft.write_bytes(b"delta")
    entry = Entry(TASK, RUN, Digest("s"), Digest("b"), manifest_of(draft).digest, 5, {"loss": 0.5})
    outbox.put(entry, draft)
    return outbox, entry


def test_an_update_is_there_again_after_a_restart(tmp_path: Path) -> None:
    _, entry = filled(tmp_path)
    again = Outbox(tmp_path / "outbox")
    found = again.get(TASK)
    assert found is not None
    assert found[0] == entry
    assert list(again.pending()) == [entry]


def test_an_update_that_was_half_written_is_not_there(tmp_path: Path) -> None:
    outbox, _ = filled(tmp_path)
    next((tmp_path / "outbox").glob("*.json")).unlink()
    again = Outbox(tmp_path / "outbox")
    assert again.get(TASK) is None
    assert not outbox.delta(TASK).exists()


def test_an_update_whose_bytes_changed_is_dropped(tmp_path: Path) -> None:
    outbox, _ = filled(tmp_path)
    outbox.delta(TASK).write_bytes(b"other")
    assert outbox.get(TASK) is None
    assert list(outbox.pending()) == []


def test_a_run_that_is_over_leaves_nothing(tmp_path: Path) -> None:
    outbox, _ = filled(tmp_path)
    outbox.drop_run(RunId("other"))
    assert outbox.get(TASK) is not None
    outbox.drop_run(RUN)
    assert list((tmp_path / "outbox").iterdir()) == []


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


def test_a_run_is_open_until_its_end_was_heard_of_and_its_history_stays(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.check(RUN, link(0, "a", ""), "a")
    assert History(tmp_path).open_runs() == {RUN}
    history.close(RUN)
    history.close(RunId("never seen"))
    assert History(tmp_path).open_runs() == set()
    with pytest.raises(HistoryDiverged):
        history.check(RUN, link(0, "x", ""), "x")
