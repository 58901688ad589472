"""The outbox holds whole updates, over restarts, until they are delivered."""

from dataclasses import replace
from pathlib import Path

from pluralllm.client.keeping.outbox import KEPT_OF_RUN, Entry, Outbox
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.ids import Digest, RunId, TaskId

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
    kept = again.get(TASK)
    assert kept is not None
    assert kept[0] == entry
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


def test_a_run_keeps_its_newest_updates_only(tmp_path: Path) -> None:
    outbox, entry = filled(tmp_path)
    tasks = [TaskId(f"runs/r/rounds/{number}/tasks/train-ann") for number in range(2, KEPT_OF_RUN + 2)]
    for task in tasks:
        assert outbox.get(TASK) is not None
        (tmp_path / "draft").write_bytes(b"delta")
        outbox.put(replace(entry, task=task), tmp_path / "draft")
    assert sorted(kept.task for kept in outbox.pending()) == tasks
