"""Refusals of backup and restore: their messages, and that they change nothing; an interrupted command can be resumed."""

import asyncio
import errno
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from drill.pairs import Embedded, Served, StorePair
from support.coordinator_harness import small_spec
from support.real_stores import S3, Postgres

from pluralllm.common.errors.tree import (
    BackupUnusable,
    Corrupt,
    InUse,
    InvalidArgument,
    InvalidConfig,
    NotEmpty,
    Overtaken,
    PluralError,
    StorageFull,
)
from pluralllm.common.process.clock import SystemClock
from pluralllm.server.commands import backup
from pluralllm.server.commands import restore as restoring
from pluralllm.server.commands.backup import PARTIAL, Contents, back_up
from pluralllm.server.commands.restore import MARK, restore
from pluralllm.server.commands.verify import verify_state
from pluralllm.server.composition import running
from pluralllm.server.members.authority import create_authority, load_authority
from pluralllm.server.members.record_key import RECORD_KEY
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.storage import leadership, migrations
from pluralllm.server.storage.by_url import blobs_of, database_url, opened_alone
from pluralllm.server.storage.leadership import leading
from pluralllm.server.storage.object_blobs import open_bucket
from pluralllm.server.storage.snapshot import sqlite_url, tables_with_rows
from pluralllm.server.storage.sql_engine import new_engine
from pluralllm.server.storage.sql_membership import SqlMembership
from pluralllm.server.storage.sql_store import open_store
from pluralllm.server.storage.state_directory import StateDirectory

SPEC = small_spec()
PAIRS = (Embedded.name, Served.name)


def quiet(what: str, done: int, total: int) -> None:
    """Ignores the progress."""


def configured(state: Path, **settings: Any) -> ServerConfig:
    return ServerConfig(state_dir=state, listen="127.0.0.1:0", enrolment_listen="127.0.0.1:0", **settings)


def make(config: ServerConfig, target: Path) -> Contents:
    return asyncio.run(back_up(config, target, quiet))


def bring_back(config: ServerConfig, directory: Path) -> Contents:
    return asyncio.run(restore(config, directory, time.time(), quiet))


async def begin_run(config: ServerConfig, name: str) -> None:
    async with running(config, SystemClock()) as found:
        await found.parts.coordinator.create_run(name, SPEC.canonical_json())


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    """A stopped coordinator with an authority and a run."""
    config = configured(tmp_path_factory.mktemp("origin") / "state")
    create_authority(StateDirectory(config.state_dir).authority, "f", ["127.0.0.1"], None, time.time())
    asyncio.run(begin_run(config, "r"))
    return config


@pytest.fixture(scope="module")
def whole(origin: ServerConfig) -> Path:
    """A backup that no test changes."""
    path = origin.state_dir.with_name("backup")
    make(origin, path)
    return path


@pytest.fixture
def spoilable_backup(whole: Path, tmp_path: Path) -> Path:
    """A copy of the backup that a test may spoil."""
    return shutil.copytree(whole, tmp_path / "mine")


@pytest.fixture(params=PAIRS)
def target(
    request: pytest.FixtureRequest, tmp_path: Path, postgres: Postgres, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> ServerConfig:
    """Empty stores of either pair."""
    served = Served(postgres, s3)
    for name, value in served.environment.items():
        monkeypatch.setenv(name, value)
    pair: StorePair = Embedded() if request.param == Embedded.name else served
    return configured(tmp_path / "target", **pair.settings(tmp_path))


def everything(folder: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def blob_of(directory: Path) -> Path:
    (found,) = directory.glob("blobs/*/*")
    return found


# Backups


def test_a_backup_makes_a_new_directory(origin: ServerConfig, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InvalidArgument, match="is there already"):
        make(origin, tmp_path / "there")


def test_a_directory_that_only_has_the_name_of_an_unfinished_backup_is_left_alone(
    origin: ServerConfig, tmp_path: Path
) -> None:
    partial = tmp_path / f"backup{PARTIAL}"
    partial.mkdir()
    (partial / "letters.txt").write_text("mine")
    with pytest.raises(InvalidArgument, match="was not made by a backup"):
        make(origin, tmp_path / "backup")
    assert everything(partial) == {"letters.txt": b"mine"}


def test_a_place_that_cannot_hold_a_directory_is_refused(origin: ServerConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="cannot be used"):
        make(origin, tmp_path / "file" / "backup")


def test_where_no_coordinator_was_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="no coordinator has kept anything"):
        make(configured(tmp_path / "nowhere"), tmp_path / "backup")
    assert list(tmp_path.iterdir()) == []


def test_two_backups_do_not_write_into_one_directory(origin: ServerConfig, tmp_path: Path) -> None:
    with StateDirectory(tmp_path / f"backup{PARTIAL}"), pytest.raises(InUse, match="in use by process"):
        make(origin, tmp_path / "backup")


def test_a_full_disk_is_said_to_be_the_backups(
    origin: ServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(source: Path, draft: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", is_full)
        with pytest.raises(StorageFull, match=r"No space left for the backup .*goes on with the next try"):
            make(origin, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
    assert make(origin, tmp_path / "backup").report.is_clean


def test_a_backup_that_was_stopped_is_none_and_goes_on(
    origin: ServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stop(*_: object) -> None:
        raise KeyboardInterrupt

    path, partial = tmp_path / "backup", tmp_path / f"backup{PARTIAL}"
    with monkeypatch.context() as patch:
        patch.setattr(backup, "verify_state", stop)
        with pytest.raises(KeyboardInterrupt):
            make(origin, path)
    copied = blob_of(partial).stat().st_ino
    with pytest.raises(BackupUnusable, match="it is not finished"):
        bring_back(configured(tmp_path / "target"), partial)
    make(origin, path)
    assert blob_of(path).stat().st_ino == copied
    assert not partial.exists()


def test_what_a_coordinator_has_lost_is_not_backed_up_as_if_it_were_whole(
    spoilable_backup: Path, tmp_path: Path
) -> None:
    blob = blob_of(spoilable_backup)
    blob.write_bytes(b"spoilt" + blob.read_bytes()[6:])
    with pytest.raises(Corrupt):
        make(configured(spoilable_backup), tmp_path / "backup")
    blob.unlink()
    with pytest.raises(BackupUnusable, match="1 blobs that the records need are lost"):
        make(configured(spoilable_backup), tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


# Restores: faults of the backup


def other_database(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE letters (text TEXT)")


def newer_schema(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def changed_rows(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE versions SET record_sha256 = parent_sha256, digest = spec_sha256")


@pytest.mark.parametrize(
    ("spoil", "refusal"),
    [
        (lambda path: path.unlink(), "there is no coordinator.sqlite3 in it"),
        (lambda path: path.write_text("letters " * 1000), "its database cannot be read"),
        (other_database, "of no release of this coordinator"),
        (newer_schema, "of a newer release"),
        (changed_rows, "its verification finds run r: "),
    ],
    ids=["no database", "no SQLite", "another database", "a newer one", "changed rows"],
)
def test_a_database_that_is_no_coordinators_is_refused(
    spoilable_backup: Path, tmp_path: Path, spoil: Callable[[Path], None], refusal: str
) -> None:
    spoil(spoilable_backup / "coordinator.sqlite3")
    before = everything(spoilable_backup)
    with pytest.raises(BackupUnusable, match=refusal):
        bring_back(configured(tmp_path / "target"), spoilable_backup)
    assert not (tmp_path / "target").exists()
    assert everything(spoilable_backup) == before


@pytest.mark.parametrize("spoil", [lambda blob: blob.unlink(), lambda blob: blob.write_bytes(b"other")])
def test_a_backup_with_a_spoilt_blob_is_refused(
    spoilable_backup: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(blob_of(spoilable_backup))
    with pytest.raises(BackupUnusable, match="its verification finds run r: model version 0"):
        bring_back(configured(tmp_path / "target"), spoilable_backup)
    assert not (tmp_path / "target").exists()


def test_what_is_not_there_cannot_be_restored(tmp_path: Path) -> None:
    with pytest.raises(BackupUnusable, match="there is no such directory"):
        bring_back(configured(tmp_path / "target"), tmp_path / "backup")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_a_coordinator_serves_from_is_no_backup(spoilable_backup: Path, tmp_path: Path) -> None:
    with StateDirectory(spoilable_backup), pytest.raises(InUse, match=r"The backup .* is in use by process"):
        bring_back(configured(tmp_path / "target"), spoilable_backup)


def test_a_backup_of_an_older_release_is_restored_and_stays_as_it_is(spoilable_backup: Path, tmp_path: Path) -> None:
    path = spoilable_backup / "coordinator.sqlite3"
    path.unlink()
    asyncio.run(upgrade(path, "0003"))
    before = path.read_bytes()
    assert bring_back(configured(tmp_path / "target"), spoilable_backup).report.is_clean
    assert path.read_bytes() == before


async def upgrade(path: Path, revision: str) -> None:
    """Creates a database with the tables of a release."""
    engine = new_engine(sqlite_url(path))

    def migrate(connection: object) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    async with engine.begin() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


# Restores: faults of the target


def test_a_target_with_a_run_is_refused_and_stays_as_it_is(whole: Path, target: ServerConfig) -> None:
    create_authority(StateDirectory(target.state_dir).authority, "f", ["127.0.0.1"], None, time.time())
    asyncio.run(begin_run(target, "other"))
    before = everything(target.state_dir)
    with pytest.raises(NotEmpty, match=r"The database .* holds runs, versions"):
        bring_back(target, whole)
    after = everything(target.state_dir)
    assert {name: text for name, text in after.items() if name != "lock"} == {
        name: text for name, text in before.items() if name != "lock"
    }


def test_blobs_of_somebody_else_are_not_mixed_with_those_of_a_backup(whole: Path, target: ServerConfig) -> None:
    strange = "ab" * 32
    if target.blob_url is not None:
        open_bucket(target.blob_url, target.blob_endpoint).put(strange, b"a model")
    else:
        (target.state_dir / "blobs" / "ab").mkdir(parents=True)
        (target.state_dir / "blobs" / "ab" / strange).write_bytes(b"a model")
    with pytest.raises(NotEmpty, match="1 blobs that no restore has put there"):
        bring_back(target, whole)
    assert rows_in(target) == ()


@pytest.mark.parametrize("target", [Served.name], indirect=True)
def test_a_bucket_with_the_same_blobs_may_be_another_coordinators(
    whole: Path, target: ServerConfig, tmp_path: Path
) -> None:
    bring_back(target, whole)
    elsewhere = configured(tmp_path / "other", blob_url=target.blob_url, blob_endpoint=target.blob_endpoint)
    with pytest.raises(NotEmpty, match="1 blobs that no restore has put there"):
        bring_back(elsewhere, whole)
    assert not (tmp_path / "other").exists()


def rows_in(config: ServerConfig) -> tuple[str, ...]:
    return asyncio.run(tables_with_rows(database_url(config, StateDirectory(config.state_dir))))


def test_nothing_is_restored_under_a_coordinator_that_runs(whole: Path, target: ServerConfig, tmp_path: Path) -> None:
    async def try_it() -> None:
        other = target.model_copy(update={"state_dir": tmp_path / "another machine"})
        async with leading(database_url(target, StateDirectory(target.state_dir)), wait=False):
            with StateDirectory(target.state_dir), pytest.raises(InUse, match="State directory"):
                await restore(target, whole, time.time(), quiet)
            if target.database_url is not None:
                with pytest.raises(InUse, match="The database"):
                    await restore(other, whole, time.time(), quiet)

    asyncio.run(try_it())
    assert rows_in(target) == ()


def test_a_coordinator_that_begins_in_mid_restore_keeps_its_empty_database(
    whole: Path, target: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = backup.copy_blobs

    async def take_over_meanwhile(*arguments: Any) -> set[Any]:
        store = await open_store(database_url(target, StateDirectory(target.state_dir)))
        await store.take_over()
        await store.close()
        return set(await copy(*arguments))

    monkeypatch.setattr(restoring, "copy_blobs", take_over_meanwhile)
    with pytest.raises(Overtaken):
        bring_back(target, whole)
    assert rows_in(target) == ()


@pytest.mark.parametrize("target", [Served.name], indirect=True)
def test_a_long_restore_lets_no_coordinator_begin(
    whole: Path, target: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = backup.copy_blobs

    async def take_long(*arguments: Any) -> set[Any]:
        await asyncio.sleep(2.5)  # longer than the database waits for a leader that does not renew its lead
        url = database_url(target, StateDirectory(target.state_dir))
        with pytest.raises(InUse):
            async with leading(url, wait=False):
                pass
        return set(await copy(*arguments))

    monkeypatch.setattr(leadership, "IDLE_LIMIT", "1500ms")
    monkeypatch.setattr(restoring, "copy_blobs", take_long)
    assert bring_back(target, whole).report.runs == 1


def test_a_restore_that_was_stopped_has_brought_back_nothing_and_goes_on(
    whole: Path, target: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(restoring, "_write_rows", stop)
        with pytest.raises(KeyboardInterrupt):
            bring_back(target, whole)
    assert rows_in(target) == ()
    assert bring_back(target, whole).report.runs == 1
    assert not (target.state_dir / MARK).exists()
    with pytest.raises(NotEmpty):
        bring_back(target, whole)


def test_an_authority_of_the_same_root_is_left_as_it_is_and_another_one_is_refused(whole: Path, tmp_path: Path) -> None:
    renewed, foreign = configured(tmp_path / "renewed"), configured(tmp_path / "foreign")
    shutil.copytree(whole / "authority", renewed.state_dir / "authority")
    load_authority(renewed.state_dir / "authority").renew_server(time.time())
    before = everything(renewed.state_dir / "authority")
    bring_back(renewed, whole)
    assert everything(renewed.state_dir / "authority") == before
    older = configured(tmp_path / "older")
    shutil.copytree(whole / "authority", older.state_dir / "authority")
    (older.state_dir / "authority" / RECORD_KEY).unlink()
    bring_back(older, whole)
    assert everything(older.state_dir / "authority") == everything(whole / "authority"), "members know the record key"
    create_authority(foreign.state_dir / "authority", "f", ["127.0.0.1"], None, time.time())
    with pytest.raises(NotEmpty, match="the authority of another federation"):
        bring_back(foreign, whole)


def test_a_state_directory_that_lost_its_database_and_has_a_spoilt_blob_is_whole_again(
    whole: Path, spoilable_backup: Path
) -> None:
    (spoilable_backup / "coordinator.sqlite3").unlink()
    blob_of(spoilable_backup).write_bytes(b"spoilt")
    bring_back(configured(spoilable_backup), whole)
    assert blob_of(spoilable_backup).read_bytes() == blob_of(whole).read_bytes()
    assert asyncio.run(verified(configured(spoilable_backup))) == (1, True)


@pytest.mark.parametrize("target", [Served.name], indirect=True)
def test_a_federation_moves_to_other_stores_and_keeps_its_state_directory(
    spoilable_backup: Path, target: ServerConfig
) -> None:
    moved = target.model_copy(update={"state_dir": spoilable_backup.with_name("state")})
    shutil.copytree(spoilable_backup, moved.state_dir)
    assert bring_back(moved, spoilable_backup).report.runs == 1
    asyncio.run(begin_run(moved, "s"))
    assert "runs" in rows_in(moved)
    assert asyncio.run(verified(moved)) == (2, True)


async def verified(config: ServerConfig) -> tuple[int, bool]:
    with StateDirectory(config.state_dir) as state:
        async with opened_alone(config, state) as store:
            report = await verify_state(store, SqlMembership(store), blobs_of(config, state), state.scratch)
    return report.runs, report.is_clean


def test_every_refusal_says_what_to_do(whole: Path, tmp_path: Path) -> None:
    attempts: list[Callable[[], Contents]] = [
        lambda: bring_back(configured(tmp_path / "x"), tmp_path),
        lambda: make(configured(whole), whole),
    ]
    for attempt in attempts:
        with pytest.raises(PluralError) as refused:
            attempt()
        assert len(str(refused.value).split()) > 8
