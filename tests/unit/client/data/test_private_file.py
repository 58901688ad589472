"""The private file under a running daemon: a change is noticed, read once, announced, and remembered over a restart."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pluralllm.client.data.private_file import FILE, PrivateFile
from pluralllm.common.errors.tree import DataChanged, InvalidData


def rows(count: int, share: float = 0.5) -> str:
    return "".join(
        json.dumps({"question": f"Question {number}?", "options": ["yes", "no"], "shares": [share, 1 - share]}) + "\n"
        for number in range(count)
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_text(rows(3))
    return path


def test_a_file_that_stays_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = PrivateFile(path, path.parent)
    assert (data.questions, data.changed_s) == (3, None)
    assert data.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr("pluralllm.client.data.private_file.content_of", lambda _: pytest.fail("it is read again"))
    assert not data.has_changed()
    assert not data.look()
    data.check()


def test_a_change_is_told_once_with_both_numbers_and_must_be_announced(path: Path) -> None:
    data = PrivateFile(path, path.parent)
    path.write_text(rows(5))
    with pytest.raises(DataChanged):
        data.check()
    with capture_logs() as logs:
        assert [data.look(), data.look()] == [True, False]
    data.check()
    [line] = logs
    told = (line["event"], line["log_level"], line["questions_before"], line["questions"])
    assert told == ("data.changed", "warning", 3, 5)
    assert data.changed_s is not None
    assert (data.questions, data.sha256) == (5, hashlib.sha256(path.read_bytes()).hexdigest())
    assert (path.parent / FILE).stat().st_mode & 0o077 == 0, "a hash of few answers can be guessed"


def test_other_answers_to_as_many_questions_are_a_change(path: Path) -> None:
    data = PrivateFile(path, path.parent)
    path.write_text(rows(3, share=0.25))
    assert data.look()
    assert data.questions == 3


def test_a_new_time_with_the_same_content_is_no_change(path: Path) -> None:
    data = PrivateFile(path, path.parent)
    os.utime(path, (1, 1))
    assert data.has_changed()
    with capture_logs() as logs:
        assert not data.look()
    assert logs == []
    assert data.changed_s is None
    assert not data.has_changed()


@pytest.mark.parametrize("broken", ['{"question": "x"}\n', "", "no JSON\n", None])
def test_a_file_that_becomes_unusable_is_refused_until_it_is_mended(path: Path, broken: str | None) -> None:
    data = PrivateFile(path, path.parent)
    path.unlink()
    if broken is not None:
        path.write_text(broken)
    with capture_logs() as logs:
        assert not data.look()
        assert not data.look()
    assert [line["event"] for line in logs] == ["data.unusable"]
    with pytest.raises(InvalidData):
        data.check()
    path.write_text(rows(3))
    assert data.look(), "Hello must take back the refusals"
    data.check()
    assert data.changed_s is None, "the content is the one that was announced"


def test_a_change_while_the_daemon_was_away_is_told_at_its_start(path: Path) -> None:
    PrivateFile(path, path.parent)
    path.write_text(rows(2))
    with capture_logs() as logs:
        data = PrivateFile(path, path.parent)
        again = PrivateFile(path, path.parent)
    assert [(line["event"], line["questions_before"], line["questions"]) for line in logs] == [("data.changed", 3, 2)]
    assert again.changed_s == data.changed_s is not None


@pytest.mark.parametrize("note", ["", "[]", '{"sha256": 1}', '{"questions": "x", "sha256": "y"}', "\x00"])
def test_a_lost_note_costs_one_message_only(path: Path, note: str) -> None:
    (path.parent / FILE).write_text(note)
    assert PrivateFile(path, path.parent).questions == 3
    path.write_text(rows(2))
    assert PrivateFile(path, path.parent).changed_s is not None


def test_a_state_directory_that_cannot_be_written_stops_nothing(path: Path) -> None:
    with capture_logs() as logs:
        assert PrivateFile(path, path.parent / "missing").questions == 3
    assert [line["event"] for line in logs] == ["data.not_noted"]


def test_a_file_with_problems_is_refused_at_the_start(path: Path) -> None:
    path.write_text("no JSON\n")
    with pytest.raises(InvalidData):
        PrivateFile(path, path.parent)


def test_other_answers_with_the_old_size_and_the_old_time_are_noticed(path: Path) -> None:
    data, before = PrivateFile(path, path.parent), path.stat()
    path.write_text(rows(3).replace("0.5, 0.5", "0.1, 0.9"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync --times and cp -p do
    assert (path.stat().st_size, path.stat().st_mtime_ns, path.stat().st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )
    assert data.look()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "link to a pipe", "link to nothing"])
def test_what_takes_the_place_of_the_file_is_refused_at_once(path: Path, kind: str) -> None:
    data = PrivateFile(path, path.parent)
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case _:
            path.symlink_to(path.with_name("other"))
            if kind == "link to a pipe":
                os.mkfifo(path.with_name("other"))
    assert not data.look()
    with pytest.raises(InvalidData):
        data.check()
