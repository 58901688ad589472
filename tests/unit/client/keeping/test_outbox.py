"""The outbox holds whole updates, over restarts, until they are delivered."""

import errno
import hashlib
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pluralllm.client.keeping.outbox import KEPT_OF_RUN, Entry, Outbox
from pluralllm.client.process.instruments import OUTBOX_UPDATES
from pluralllm.common.errors.tree import StorageFull
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.ids import Digest, RunId, TaskId
from pluralllm.common.words.noise import NoiseStatement

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


def test_the_facts_of_an_update_are_kept_word_for_word(tmp_path: Path) -> None:
    outbox, entry = filled(tmp_path)
    kept = outbox.get(TASK)
    assert kept is not None
    assert kept == (entry, manifest_of(outbox.delta(TASK)))
    assert outbox.get(TaskId("runs/r/rounds/2/tasks/train-ann")) is None
    assert stat.S_IMODE((tmp_path / "outbox").stat().st_mode) == 0o700
    assert not (tmp_path / "draft").exists()


def test_updates_from_true_answers_are_not_sent_once_the_answers_are_noised(tmp_path: Path) -> None:
    outbox, entry = filled(tmp_path)
    for name, noise in (
        ("true", NoiseStatement(noised=False)),
        ("noised", NoiseStatement(True, 2.0, 1e-6, "respondent")),
    ):
        (tmp_path / "draft").write_bytes(b"delta")
        outbox.put(replace(entry, task=TaskId(name), noise=noise), tmp_path / "draft")
    outbox.follow(noised=False)
    assert len(list(outbox.pending())) == 3
    outbox.follow(noised=True)
    assert [kept.task for kept in outbox.pending()] == ["noised"]
    assert not outbox.delta(TASK).exists()


def test_updates_of_several_runs_are_counted_and_limited_one_by_one(tmp_path: Path) -> None:
    outbox, entry = filled(tmp_path)
    assert OUTBOX_UPDATES._value.get() == 1
    for number in range(KEPT_OF_RUN):
        (tmp_path / "draft").write_bytes(b"delta")
        outbox.put(replace(entry, run=RunId("s"), task=TaskId(f"s{number}")), tmp_path / "draft")
    assert OUTBOX_UPDATES._value.get() == KEPT_OF_RUN + 1
    assert outbox.get(TASK) is not None
    (tmp_path / "draft").write_bytes(b"delta")
    outbox.put(replace(entry, run=RunId("s"), task=TaskId("s0")), tmp_path / "draft")  # once more: it takes no room
    assert OUTBOX_UPDATES._value.get() == KEPT_OF_RUN + 1
    outbox.drop(TASK)
    assert OUTBOX_UPDATES._value.get() == KEPT_OF_RUN
    OUTBOX_UPDATES.set(99)
    Outbox(tmp_path / "outbox")
    assert OUTBOX_UPDATES._value.get() == KEPT_OF_RUN


def test_an_update_keeps_its_files_over_releases_and_is_dropped_as_often_as_one_likes(tmp_path: Path) -> None:
    outbox, _ = filled(tmp_path)
    name = hashlib.sha256(TASK.encode()).hexdigest()[:24]
    assert {path.name for path in (tmp_path / "outbox").iterdir()} == {f"{name}.json", f"{name}.safetensors"}
    outbox.delta(TASK).unlink()
    for _ in range(2):
        outbox.drop(TASK)
    assert list((tmp_path / "outbox").iterdir()) == []


def test_the_oldest_update_is_the_first_to_go(tmp_path: Path) -> None:
    outbox, entry = filled(tmp_path)
    names = [TaskId(f"runs/r/rounds/{number}/tasks/train-ann") for number in (5, 3, 4)]
    for age, task in enumerate(names):
        (tmp_path / "draft").write_bytes(b"delta")
        outbox.put(replace(entry, task=task), tmp_path / "draft")
        facts = outbox._facts(task)
        os.utime(facts, (100.0 - age, 100.0 - age))  # round 4 is the oldest
    os.utime(outbox._facts(TASK), (200.0, 200.0))
    (tmp_path / "draft").write_bytes(b"delta")
    outbox.put(replace(entry, task=TaskId("newest")), tmp_path / "draft")
    assert {kept.task for kept in outbox.pending()} == {TASK, names[0], names[1], "newest"}


def test_an_update_that_a_full_disk_refuses_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox, entry = filled(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("pluralllm.client.keeping.outbox.publish", full)
    with pytest.raises(StorageFull):
        outbox.put(replace(entry, task=TaskId("next")), tmp_path / "draft")
    assert [kept.task for kept in outbox.pending()] == [TASK]


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


WRONG_TYPES = """{"task": "x", "run": "r", "spec_sha256": "s", "base_digest": "b", "digest": "d", "examples": "many",
"metrics": {}}"""


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", "5", '{"task": "x"}', "null", "\x00", WRONG_TYPES])
def test_a_damaged_entry_is_reported_once_and_hides_no_other(tmp_path: Path, damage: str) -> None:
    outbox, entry = filled(tmp_path)
    (tmp_path / "draft").write_bytes(b"delta")
    outbox.put(replace(entry, task=TaskId("other")), tmp_path / "draft")
    outbox._facts(TASK).write_text(damage)
    (tmp_path / "outbox" / "folder.json").mkdir()
    with capture_logs() as logs:
        assert [[kept.task for kept in outbox.pending()] for _ in range(2)] == [["other"]] * 2
    assert [line["event"] for line in logs] == ["outbox.damaged"] * 2
    assert outbox.get(TASK) is None
    assert not outbox.delta(TASK).exists()


def test_an_update_without_its_bytes_is_dropped(tmp_path: Path) -> None:
    outbox, _ = filled(tmp_path)
    outbox.delta(TASK).unlink()
    assert outbox.get(TASK) is None
    assert list(outbox.pending()) == []


def test_a_run_that_is_over_leaves_nothing(tmp_path: Path) -> None:
    outbox, _ = filled(tmp_path)
    outbox.drop_run(RunId("other"))
    assert outbox.get(TASK) is not None
    assert KEPT_OF_RUN == 4
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


def test_a_task_without_an_update_is_not_reported_as_damaged_and_damage_is_reported_at_once(tmp_path: Path) -> None:
    outbox, _ = filled(tmp_path)
    with capture_logs() as logs:
        assert outbox.get(TaskId("never")) is None
        assert logs == []
        outbox._facts(TASK).write_bytes(b"{")
        assert list(outbox.pending()) == []
        assert [line["event"] for line in logs] == ["outbox.damaged"]
        assert list(outbox.pending()) == []
    assert len(logs) == 1
