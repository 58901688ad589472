"""Makes a backup: a state directory with an SQLite database and files. The coordinator may run meanwhile.

The command first copies the database rows of one moment, then the blobs that the rows refer to. The coordinator stores a blob
before the rows that refer to the blob, so every such blob existed when the rows were copied. If the coordinator has
deleted a needed blob after that, the command copies the rows again. The backup's directory gets its final name after all files
in the directory are verified and synced to disk.
"""

import asyncio
import contextlib
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pluralllm.common.errors.tree import BackupUnusable, Corrupt, InvalidArgument, InvalidConfig, NotFound, StorageFull
from pluralllm.common.process.files import (
    NO_ROOM,
    make_folder,
    storage_errors,
    sync_directory,
    sync_file,
    write_durably,
)
from pluralllm.common.words.ids import Digest
from pluralllm.server.commands.verify import Report, verify_state
from pluralllm.server.members.authority import SECRET, load_authority
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.recovery import recover_all
from pluralllm.server.storage.blobs import Blobs, LocalBlobs, verify
from pluralllm.server.storage.by_url import database_url
from pluralllm.server.storage.object_blobs import ObjectBlobs, open_bucket
from pluralllm.server.storage.retention import kept_blobs
from pluralllm.server.storage.snapshot import file_of, take_snapshot
from pluralllm.server.storage.sql_membership import SqlMembership
from pluralllm.server.storage.sql_store import SqlStore, open_store
from pluralllm.server.storage.state_directory import StateDirectory

MOMENTS = 5  # moments that are tried before blobs are reported as lost
EVERY_ROUND = 1_000_000
NO_LIMIT_BYTES = 2**62
PARTIAL = ".partial"  # end of the name of an unfinished backup
MAX_FINDINGS = 3
COMPLETE_MARK = "federation.json"  # the file of an authority that is written last

ReportProgress = Callable[[str, int, int], None]  # what is copied, how many are done, how many in total


@dataclass(frozen=True, slots=True)
class Contents:
    """Summary of a backup: the verification's result, the blobs, and whether the authority and the root's key are included."""

    report: Report
    blobs: int
    blob_bytes: int
    has_authority: bool
    has_root_key: bool


@dataclass(frozen=True, slots=True)
class Named:
    """Digests of the blobs that database rows refer to.

    If a blob in `needed` is lost, a run cannot continue or its history is incomplete.
    """

    all: frozenset[Digest]
    needed: frozenset[Digest]  # blobs without which a run cannot go on or its history is incomplete


async def back_up(config: ServerConfig, target: Path, report_progress: ReportProgress) -> Contents:
    """Backs up a coordinator into the new directory `target` and returns a summary. The coordinator may run meanwhile.

    Raises InvalidArgument, InvalidConfig, InUse, StorageFull, StoreFailed, Corrupt or BackupUnusable. After an error, the
    unfinished backup stays beside `target` under a name that ends with the constant PARTIAL. The next call continues this backup.
    """
    origin = StateDirectory(config.state_dir)
    if config.database_url is None and not database_file(origin).is_file():
        raise InvalidConfig(file="state_dir", problems=f"  no coordinator has kept anything in {origin.path} yet")
    with _unfinished(target) as draft, _space(target):
        await _copy_moment(config, origin, draft, report_progress)
        if (origin.authority / COMPLETE_MARK).is_file():
            copy_authority(origin.authority, draft.authority)
        contents = await look_through(draft, draft.scratch, report_progress)
        if not contents.report.is_clean:
            raise BackupUnusable(path=str(draft.path), problem=findings(contents.report))
        await asyncio.to_thread(_finish, draft.path, target)
    return contents


async def _copy_moment(
    config: ServerConfig, origin: StateDirectory, draft: StateDirectory, report_progress: ReportProgress
) -> None:
    """Copies the database rows of one moment and the blobs that the rows refer to.

    If needed blobs are missing, the function copies the rows of a later moment. Raises BackupUnusable if needed blobs are
    missing after MOMENTS attempts.
    """
    kept = LocalBlobs(draft.blobs)
    source: Blobs = LocalBlobs(origin.blobs)
    if config.blob_url is not None:  # read from the bucket itself, not from the coordinator's local copies
        bucket = open_bucket(config.blob_url, config.blob_endpoint)
        source = ObjectBlobs(bucket, kept, draft.scratch, NO_LIMIT_BYTES)
    missing: Collection[Digest] = ()
    for _ in range(MOMENTS):
        await take_snapshot(database_url(config, origin), database_file(draft))
        async with opened(draft) as store:
            named = await named_blobs(store)
        missing = await copy_blobs(source, kept, named, draft.scratch, report_progress)
        if not missing:
            for digest in set(await kept.digests()) - named.all:  # blobs of an earlier moment
                await kept.delete(digest)
            return
    names = ", ".join(digest[:12] for digest in sorted(missing)[:MAX_FINDINGS])
    raise BackupUnusable(path=str(draft.path), problem=f"{len(missing)} blobs that the records need are lost: {names}")


async def copy_blobs(
    source: Blobs, target: Blobs, named: Named, scratch: Path, report_progress: ReportProgress
) -> set[Digest]:
    """Copies the blobs in `named` and verifies their digests. Returns the needed blobs that are missing in `source`.

    Blobs that are not in `named.needed` may be missing. Raises Corrupt if a copied blob does not match its digest;
    StorageFull if the disk is full; StoreFailed if a bucket does not work.
    """
    stored = set(await source.digests())
    missing, copied = set(named.needed - stored), sorted(named.all & stored)
    if missing:  # the caller must take another moment anyway
        return missing
    existing = set(await target.digests())
    for number, digest in enumerate(copied):
        report_progress("blobs", number, len(copied))
        try:
            if digest not in existing or not await _is_sound(target, digest):
                await _copy_blob(source, target, digest, scratch)
        except (NotFound, FileNotFoundError):
            if digest in named.needed:
                missing.add(digest)
                break
    return missing


async def _is_sound(target: Blobs, digest: Digest) -> bool:
    """Returns whether the bytes of a blob in `target` match its digest.

    Deletes a corrupt file, so that the caller copies the blob again. Blobs in a bucket are not checked, because a bucket
    verifies the bytes that it receives.
    """
    if isinstance(target, LocalBlobs):
        try:
            await asyncio.to_thread(verify, await target.path(digest), digest)
        except Corrupt:
            await target.delete(digest)
            return False
    return True


async def _copy_blob(source: Blobs, target: Blobs, digest: Digest, scratch: Path) -> None:
    path = await source.path(digest)
    if isinstance(source, ObjectBlobs) and await target.exists(digest):  # the bucket's reader keeps its copies there
        return
    draft = scratch / f"copied-{uuid.uuid4().hex}"
    try:
        with storage_errors(f"blob {digest[:12]}"):
            await asyncio.to_thread(shutil.copyfile, path, draft)
        await asyncio.to_thread(verify, draft, digest)
        await target.put(digest, draft)
    finally:
        draft.unlink(missing_ok=True)


async def named_blobs(store: SqlStore) -> Named:
    """Returns the digests of the blobs that the database rows refer to.

    Raises Corrupt if a stored run spec is damaged. If an event log cannot be replayed, the round machine's error is raised.
    """
    over = {run.id async for _, run in recover_all(store) if isinstance(run, LiveRun) and run.is_over}
    everything, needed = await kept_blobs(store, EVERY_ROUND, over), await kept_blobs(store, 0, over)
    return Named(frozenset(everything), frozenset(needed))


async def look_through(state: StateDirectory, scratch: Path, report_progress: ReportProgress) -> Contents:
    """Verifies a backup and returns a summary. Raises InvalidConfig if the files of the authority are damaged."""
    report_progress("verifying", 0, 0)
    async with opened(state) as store:
        report = await verify_state(store, SqlMembership(store), LocalBlobs(state.blobs), scratch)
    sizes = [path.stat().st_size for path in state.blobs.glob("??/*")]
    has_authority = (state.authority / COMPLETE_MARK).exists()
    if has_authority:
        load_authority(state.authority)
    return Contents(report, len(sizes), sum(sizes), has_authority, (state.authority / "root-key.pem").exists())


def findings(report: Report) -> str:
    """Returns the first findings of a verification as one line of text for a person."""
    more = len(report.findings) - MAX_FINDINGS
    first = "; ".join(f"{finding.run}: {finding.problem}" for finding in report.findings[:MAX_FINDINGS])
    return f"its verification finds {first}" + (f"; and {more} more" if more > 0 else "")


def database_file(state: StateDirectory) -> Path:
    return file_of(state.database_url)


@contextlib.asynccontextmanager
async def opened(state: StateDirectory) -> AsyncIterator[SqlStore]:
    """Opens the database of a backup, and closes it when the block ends.

    If an older release made the database, its schema is migrated to the current release.
    """
    store = await open_store(state.database_url)
    try:
        yield store
    finally:
        await store.close()


def copy_authority(source: Path, target: Path) -> None:
    """Copies the files of a certificate authority. Only the owner can read the copies. Raises StorageFull if the disk is full.

    The file COMPLETE_MARK is copied last: an authority without the file is not complete.
    """
    shutil.rmtree(target, ignore_errors=True)  # files of a backup or restore that was stopped
    make_folder(target)
    names = [path.name for path in source.iterdir() if path.is_file() and not path.name.startswith(".")]
    for name in sorted(names, key=lambda name: (name == COMPLETE_MARK, name)):
        write_durably(target / name, (source / name).read_bytes(), SECRET)
    sync_directory(target.parent)


@contextlib.contextmanager
def _unfinished(target: Path) -> Iterator[StateDirectory]:
    """Creates or opens the unfinished backup's folder beside `target`, and locks the folder until the block ends.

    Raises InvalidArgument if `target` exists or the folder is not usable; InUse if another process uses the folder.
    """
    if target.exists() or target.is_symlink():
        raise InvalidArgument(field="DIRECTORY", problem=f"{target} is there already; a backup makes a new directory")
    draft = target.with_name(target.name + PARTIAL)
    if draft.exists() and not (draft / "lock").is_file():
        problem = f"{draft} is there and was not made by a backup; move it away or choose another name"
        raise InvalidArgument(field="DIRECTORY", problem=problem)
    with contextlib.ExitStack() as stack:
        try:
            state = stack.enter_context(StateDirectory(draft))
        except InvalidConfig as error:
            raise InvalidArgument(field="DIRECTORY", problem=error.problems.strip()) from error
        yield state


@contextlib.contextmanager
def _space(target: Path) -> Iterator[None]:
    """Raises StorageFull if the disk becomes full during the block.

    The error's message names the backup, because the backup's disk is full and not the coordinator's disk.
    """
    what = f"the backup {target} (what is there goes on with the next try, as {target.name}{PARTIAL})"
    try:
        yield
    except StorageFull as error:
        raise StorageFull(what=what) from error
    except OSError as error:
        if error.errno in NO_ROOM:
            raise StorageFull(what=what) from error
        raise


def _finish(draft: Path, target: Path) -> None:
    """Syncs all files of the backup to disk, then gives the backup its final name."""
    for folder, _, files in os.walk(draft):
        for name in files:
            sync_file(Path(folder) / name)
        sync_directory(Path(folder))
    draft.rename(target)
    sync_directory(target.parent)
