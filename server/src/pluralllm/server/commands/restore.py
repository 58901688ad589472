"""Restores a backup into the configured database, blob store and state directory: completely or not at all.

The command first writes the blobs, to which no database row refers yet. Then it writes the files of the certificate
authority, and at the end all rows in one transaction. A restore that stopped before the last step can be repeated: the
command recognizes its own blobs by their digests, and the authority by the root certificate.
"""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from pluralllm.common.errors.tree import BackupUnusable, InUse, NotEmpty, StoreFailed
from pluralllm.common.process.files import write_durably
from pluralllm.common.process.lock import OWN_FILES
from pluralllm.common.words.ids import Digest
from pluralllm.server.commands.backup import (
    COMPLETE_MARK,
    PARTIAL,
    Contents,
    ReportProgress,
    copy_authority,
    copy_blobs,
    database_file,
    findings,
    look_through,
    named_blobs,
    opened,
)
from pluralllm.server.members.authority import SECRET, load_authority
from pluralllm.server.members.record_key import RECORD_KEY
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.storage import schema as t
from pluralllm.server.storage.blobs import LocalBlobs
from pluralllm.server.storage.by_url import blobs_of, database_url
from pluralllm.server.storage.leadership import alone
from pluralllm.server.storage.snapshot import (
    copy_rows,
    count_on,
    file_of,
    filled_tables,
    release_of_file,
    sqlite_url,
    tables_with_rows,
    take_snapshot,
)
from pluralllm.server.storage.sql_engine import new_engine
from pluralllm.server.storage.sql_store import SqlStore, open_store
from pluralllm.server.storage.state_directory import StateDirectory

MARK = "restoring"  # file in the state directory while the blob store holds blobs of an unfinished restore


class Source(StateDirectory):
    """The backup that is restored. Its blobs and the authority's files are read from the backup's directory.

    The rows are read from a copy of the backup's database. A copy is needed because opening a database may migrate its schema.
    """

    def __init__(self, path: Path, database: Path) -> None:
        super().__init__(path)
        self._database = database

    @property
    def database_url(self) -> sa.URL:
        return sqlite_url(self._database)


async def restore(config: ServerConfig, directory: Path, now_s: float, report_progress: ReportProgress) -> Contents:
    """Restores the backup in `directory` into the configured stores, which must be empty. Returns a summary of the backup.

    Raises BackupUnusable, NotEmpty, InUse, InvalidConfig, StoreFailed, StorageFull or Corrupt. If the function
    raises an error, it has written no database row.
    """
    backup = StateDirectory(directory)
    with _standing_still(backup), _target(config.state_dir) as state:
        copy = state.scratch / "backup.sqlite3"
        source = Source(directory, copy)
        try:
            await _copy_database(backup, copy)
            async with opened(source) as store:
                named = await named_blobs(store)
            async with alone(database_url(config, state)):
                await _check_empty(config, state, source, named.all)
            contents = await look_through(source, state.scratch, report_progress)
            if not contents.report.is_clean:
                raise BackupUnusable(path=str(directory), problem=findings(contents.report))
            async with alone(database_url(config, state)):
                await _check_empty(config, state, source, named.all)  # again, because verifying takes long
                store = await open_store(database_url(config, state))
                try:
                    await store.take_over()  # a coordinator that starts nevertheless makes our writes fail
                    write_durably(state.path / MARK, _mark(config))
                    blobs = blobs_of(config, state)
                    if await copy_blobs(LocalBlobs(source.blobs), blobs, named, state.scratch, report_progress):
                        raise BackupUnusable(path=str(directory), problem="blobs have gone from it")
                    _restore_authority(source, state)
                    await _write_rows(source, store, now_s)
                finally:
                    await store.close()
        finally:
            for left in state.scratch.glob("backup.sqlite3*"):
                left.unlink()
        (state.path / MARK).unlink()
    return contents


def _mark(config: ServerConfig) -> bytes:
    return (config.blob_url or "").encode()


def _begun(config: ServerConfig, state: StateDirectory) -> bool:
    """Returns whether an earlier restore into the configured blob store was started and not finished."""
    mark = state.path / MARK
    return mark.is_file() and mark.read_bytes() == _mark(config)


async def _copy_database(backup: StateDirectory, copy: Path) -> None:
    """Copies the backup's database to the file `copy`.

    Raises BackupUnusable if the database cannot be read, or if neither the current release nor an earlier one made it.
    """
    try:
        await take_snapshot(backup.database_url, copy)
        release = await release_of_file(copy)
    except StoreFailed as error:
        raise BackupUnusable(path=str(backup.path), problem=f"its database cannot be read ({error.problem})") from error
    if release in ("no", "a newer"):
        raise BackupUnusable(path=str(backup.path), problem=f"its database is of {release} release of this coordinator")


async def _check_empty(config: ServerConfig, state: StateDirectory, source: Source, named: frozenset[Digest]) -> None:
    """Checks that the configured stores hold nothing except parts of the backup from an earlier attempt.

    `named` has the digests of the blobs that the backup's rows refer to. Raises NotEmpty if the stores hold anything else.
    """
    url = database_url(config, state)
    if filled := await tables_with_rows(url):
        name = str(file_of(url)) if config.database_url is None else url.render_as_string(hide_password=True)
        raise NotEmpty(what=f"The database {name}", holds=", ".join(filled))
    foreign = set(await blobs_of(config, state).digests())
    if config.blob_url is None or _begun(config, state):  # others may use a bucket
        foreign -= named
    if foreign:
        where = config.blob_url or str(state.blobs)
        raise NotEmpty(what=f"The blob store {where}", holds=f"{len(foreign)} blobs that no restore has put there")
    if (state.authority / COMPLETE_MARK).exists():
        root = load_authority(state.authority).root
        backup_root = load_authority(source.authority).root if (source.authority / COMPLETE_MARK).exists() else None
        if root != backup_root:
            raise NotEmpty(what=f"The state directory {state.path}", holds="the authority of another federation")


def _restore_authority(source: Source, state: StateDirectory) -> None:
    """Copies the certificate authority of the backup, if the backup has one and the state directory has none.

    An existing authority is kept, because it may be newer and may hold another server certificate for the machine. But it
    gets the backup's record key if it has none, because the members know that key.
    """
    kept = source.authority / RECORD_KEY
    if kept.exists() and (state.authority / COMPLETE_MARK).exists() and not (state.authority / RECORD_KEY).exists():
        write_durably(state.authority / RECORD_KEY, kept.read_bytes(), SECRET)
    if (source.authority / COMPLETE_MARK).exists() and not (state.authority / COMPLETE_MARK).exists():
        copy_authority(source.authority, state.authority)


async def _write_rows(source: Source, store: SqlStore, now_s: float) -> None:
    engine = new_engine(source.database_url)
    try:
        async with engine.connect() as rows, store.writing() as target:
            if filled := await target.run_sync(filled_tables):
                raise NotEmpty(what="The database", holds=", ".join(filled))
            newest = (await target.execute(sa.select(t.leadership.c.generation))).scalar_one()
            await copy_rows(rows, target)
            await count_on(target)
            copied = (await target.execute(sa.select(t.leadership.c.generation))).scalar_one()
            # A paused coordinator may have served from a database of this name before. Its generation is below the number of
            # seconds since 1970, so it is refused when it wakes up.
            generation = max(newest, copied, round(now_s))
            await target.execute(sa.update(t.leadership).values(generation=generation))
    finally:
        await engine.dispose()


@contextlib.contextmanager
def _standing_still(backup: StateDirectory) -> Iterator[None]:
    """Locks a backup during the block, so that no other process changes it. The function writes nothing into the backup.

    Raises BackupUnusable if the directory is not a finished backup; InUse while a coordinator serves from the directory.
    """
    problem = ""
    if not backup.path.is_dir():
        problem = "there is no such directory"
    elif backup.path.name.endswith(PARTIAL):
        problem = "it is not finished: pluralllm-server backup goes on with it"
    elif not database_file(backup).is_file():
        problem = f"there is no {database_file(backup).name} in it"
    if problem:
        raise BackupUnusable(path=str(backup.path), problem=problem)
    with contextlib.ExitStack() as stack:
        if (backup.path / "lock").is_file():
            lock = stack.enter_context((backup.path / "lock").open())
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InUse(what=f"The backup {backup.path}", by=f"process {lock.read().strip()}") from error
        yield


@contextlib.contextmanager
def _target(path: Path) -> Iterator[StateDirectory]:
    """Opens the configured state directory for the time of the block, and locks the directory against other processes.

    Raises InUse if another process uses the directory. After an error in the block, the function removes the directory if
    the directory is new and empty.
    """
    is_new = not path.exists()
    with StateDirectory(path) as state:
        try:
            yield state
        except BaseException:
            if is_new and all(path.is_dir() or path.name in OWN_FILES for path in state.path.rglob("*")):
                shutil.rmtree(state.path, ignore_errors=True)
            raise
