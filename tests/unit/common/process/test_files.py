"""Files belong to whom they are for: what root makes in a folder of another user is that user's."""

import errno
import os
import pwd
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pluralllm.common.errors.tree import InvalidConfig, StorageFull
from pluralllm.common.process import files
from pluralllm.common.process.files import (
    can_others_read,
    create_file,
    is_special,
    keep_rights,
    make_folder,
    owner_hint,
    publish,
    read_state,
    storage_errors,
    why_not_writable,
    write_durably,
    write_private,
)
from pluralllm.common.process.lock import DirectoryLock
from pluralllm.server.commands.doctor import checks_of
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.storage.sql_store import open_store
from pluralllm.server.storage.state_directory import StateDirectory

is_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand files over")
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of another user's, as a service has it."""
    service = tmp_path / "service"
    service.mkdir(mode=0o700)
    os.chown(service, NOBODY.pw_uid, NOBODY.pw_gid)
    return service


def owners(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns user and group of all that is below a folder."""
    status = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*")}
    return {name: (one.st_uid, one.st_gid) for name, one in status.items()}


def publish_draft(folder: Path) -> None:
    (folder / "draft").write_text("x")
    publish(folder / "draft", folder / "final")


def lock(folder: Path) -> None:
    with DirectoryLock(folder), DirectoryLock(folder / "below" / "state"):
        pass


@is_root
@pytest.mark.parametrize(
    "act",
    [
        lambda folder: write_durably(folder / "key.pem", b"secret", 0o600),
        lambda folder: make_folder(folder / "a" / "b"),
        lambda folder: create_file(folder / "empty"),
        publish_draft,
        lock,
    ],
)
def test_what_root_makes_in_a_folder_of_another_user_is_that_users(folder: Path, act: Callable[[Path], None]) -> None:
    act(folder)
    made = owners(folder)
    assert made
    assert set(made.values()) == {(NOBODY.pw_uid, NOBODY.pw_gid)}, made


@is_root
async def test_a_database_that_root_makes_is_the_services(folder: Path) -> None:
    with StateDirectory(folder) as state:
        store = await open_store(state.database_url)
        await store.close()
    assert owners(folder)["coordinator.sqlite3"] == (NOBODY.pw_uid, NOBODY.pw_gid)
    assert set(owners(folder).values()) == {(NOBODY.pw_uid, NOBODY.pw_gid)}


@is_root
def test_what_was_there_keeps_its_owner_and_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("root's")
    (folder / "mine").write_text("x")
    create_file(folder / "mine")
    assert owners(folder)["mine"] == (0, 0)
    (folder / "link").symlink_to(own)
    create_file(folder / "link")
    write_durably(folder / "link", b"new")
    assert own.read_text() == "root's"
    assert own.stat().st_uid == 0
    (folder / "draft").symlink_to(own)
    with pytest.raises(OSError, match="symbolic links"):
        publish(folder / "draft", folder / "final")
    assert own.stat().st_uid == 0


@is_root
def test_roots_own_folder_stays_roots(tmp_path: Path) -> None:
    write_durably(tmp_path / "file", b"x")
    make_folder(tmp_path / "a" / "b")
    assert set(owners(tmp_path).values()) == {(0, 0)}


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Takes root's rights from this process for a test."""
    os.seteuid(NOBODY.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)


@is_root
@pytest.mark.usefixtures("as_nobody")
def test_a_user_who_may_not_write_is_told_whose_folder_it_is() -> None:
    hint = "/ belongs to root: type the command as this user, for example sudo -u root ..."
    assert owner_hint(Path("/no-such-folder/below")) == hint
    with (
        pytest.raises(InvalidConfig, match=r"cannot be used: Permission denied\. / belongs to root"),
        DirectoryLock(Path("/no-such-folder")),
    ):
        pass


def test_ones_own_folder_has_no_hint(tmp_path: Path) -> None:
    assert owner_hint(tmp_path / "none") == ""


def test_a_file_that_is_there_keeps_its_content(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "database") as database:
        database.execute("CREATE TABLE rows (number)")
    before = (tmp_path / "database").read_bytes()
    create_file(tmp_path / "database")
    assert (tmp_path / "database").read_bytes() == before


def test_a_folder_is_made_with_its_rights_and_a_file_is_no_folder(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a", tmp_path / "a" / "b")} == {0o700}
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")


def test_a_path_that_begins_with_a_tilde_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidConfig, match="has not put your home folder in the place of ~"):
        make_folder(Path("~/state"))
    assert list(tmp_path.iterdir()) == []
    make_folder(Path("a/~"))


def test_a_damaged_state_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(InvalidConfig, match=r"state.json is not valid:\n  it is damaged: not JSON"):
        read_state(tmp_path / "state.json")


def test_a_working_directory_that_this_user_may_not_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_path: Path) -> os.stat_result:
        raise PermissionError

    monkeypatch.setattr(Path, "stat", forbidden)  # as for a user who types a command in the folder of root
    assert "change to another folder" in owner_hint(Path("state/history"))


def test_a_file_system_without_locks_is_refused_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_file: object, _how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(
        InvalidConfig, match=r"cannot be locked: No locks available\. Put the state directory on a local disk"
    ):
        DirectoryLock(tmp_path).__enter__()


def test_a_folder_in_which_no_file_can_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert why_not_writable(tmp_path / "not" / "made" / "yet") == ""
    assert "is no folder" in why_not_writable(tmp_path / "file")
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for a file system that is mounted for reading
    assert why_not_writable(tmp_path / "not").startswith(f"{tmp_path} cannot be written")
    checks = {check.name: check for check in checks_of(ServerConfig(state_dir=tmp_path, plain_text=True))}
    assert (checks["state directory"].ok, "cannot be written" in checks["state directory"].result) == (False, True)


def test_a_file_in_the_place_of_a_state_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(InvalidConfig, match="there is a file, or a link to nothing, in its place"):
        DirectoryLock(tmp_path / "state").__enter__()


def test_a_device_or_a_pipe_is_not_replaced_and_the_draft_is_removed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="which no file replaces") as refused:
        write_durably(tmp_path / "pipe", b"content")
    assert refused.value.filename == str(tmp_path / "pipe")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert [is_special(path) for path in (tmp_path / "pipe", tmp_path, tmp_path / "none")] == [True, False, False]


@pytest.mark.parametrize(("mode", "published"), [(0o666, 0o664), (0o664, 0o664), (0o640, 0o640), (0o777, 0o775)])
def test_no_other_user_can_change_a_file_whatever_the_umask_was(tmp_path: Path, mode: int, published: int) -> None:
    (tmp_path / "draft").write_bytes(b"content")
    (tmp_path / "draft").chmod(mode)
    publish(tmp_path / "draft", tmp_path / "file")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == published


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize(
    ("before", "after"), [(None, 0o600), (0o640, 0o640), (0o644, 0o644), (0o666, 0o664), (0o400, 0o400)]
)
def test_private_answers_are_for_their_owner_only_and_a_file_keeps_the_rights_that_its_owner_gave_it(
    tmp_path: Path, umask: int, before: int | None, after: int
) -> None:
    file = tmp_path / "answers.jsonl"
    if before is not None:
        file.write_bytes(b"old")
        file.chmod(before)
    usual = os.umask(umask)
    try:
        write_private(file, b"new")
    finally:
        os.umask(usual)
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"new", after)
    assert list(tmp_path.iterdir()) == [file]


def test_the_rights_of_a_group_are_not_given_to_another_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b"old")
    file.chmod(0o640)
    old, asked = file.stat(), list[tuple[int, int]]()
    seen = os.stat_result((*old[:5], old.st_gid + 1, *old[6:]))
    monkeypatch.setattr(Path, "stat", lambda *_, **__: seen)
    monkeypatch.setattr(os, "fchown", lambda _, *owner: asked.append(owner))
    with (tmp_path / "draft").open("wb") as draft:
        keep_rights(draft.fileno(), file)
        assert asked == [(-1, old.st_gid + 1)]
        assert stat.S_IMODE(os.fstat(draft.fileno()).st_mode) == 0o640

        def refuse(*_: int) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "fchown", refuse)
        keep_rights(draft.fileno(), file)
        assert stat.S_IMODE(os.fstat(draft.fileno()).st_mode) == 0o600


def test_a_file_that_others_can_reach_and_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "answers.jsonl"
    file.write_bytes(b"")
    modes = {file.resolve(): 0o100644}
    monkeypatch.setattr(Path, "stat", lambda path, **_: os.stat_result((modes.get(path, 0o40755), *[0] * 9)))
    assert can_others_read(file)
    modes[file.resolve()] = 0o100640
    assert not can_others_read(file)
    modes |= {file.resolve(): 0o100644, tmp_path.resolve(): 0o40750}
    assert not can_others_read(file)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_whatever_limits_a_file_is_one_error_with_its_remedies(number: int) -> None:
    with pytest.raises(StorageFull, match="quota, ulimit -f"), storage_errors("the model"):
        raise OSError(number, "no")


@pytest.mark.parametrize("write", [write_durably, write_private])
def test_a_write_that_fails_leaves_no_draft(
    write: Callable[[Path, bytes], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "file"
    file.write_bytes(b"old")
    monkeypatch.setattr(files, "publish", full)
    with pytest.raises(StorageFull):
        write(file, b"new")
    assert (file.read_bytes(), list(tmp_path.iterdir())) == (b"old", [file])


def test_threads_that_write_one_file_at_the_same_time_leave_the_whole_content_of_one(tmp_path: Path) -> None:
    target, contents = tmp_path / "file", [bytes([letter]) * 50_000 for letter in b"abcd"]
    start = threading.Barrier(len(contents))

    def write(content: bytes) -> None:
        start.wait(10)
        for _ in range(5):
            write_durably(target, content)

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(write, contents))
    assert target.read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
