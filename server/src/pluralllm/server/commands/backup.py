"""A backup: a state directory of the embedded kind, consistent though a coordinator writes meanwhile.

Rows first, then the blobs that they name: a blob is stored before it is on record, so whatever the rows of one moment name was
there then. What retention has deleted since is noticed, and another moment is taken. The directory gets its name when
everything in it is checked and on the disk.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pluralllm.common.errors.tree import BackupUnusable, Corrupt, InvalidArgument, InvalidConfig, NotFound, StorageFull
from pluralllm.common.process.files import storage_errors, sync_directory, sync_file, write_durably
from pluralllm.common.words.ids import Digest, RunId
from pluralllm.server.commands.verify import Report, verify_state
from pluralllm.server.members.authority import SECRET, load_authority
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.runs.live_run import recover
from pluralllm.server.storage.blobs import Blobs, LocalBlobs, verify
from pluralllm.server.storage.by_url import database_url
from pluralllm.server.storage.object_blobs import ObjectBlobs, open_bucket
from pluralllm.server.storage.retention import kept_blobs
from pluralllm.server.storage.snapshot import file_of, take_snapshot
from pluralllm.server.storage.sql_membership import SqlMembership
from pluralllm.server.storage.sql_store import SqlStore, open_store
from pluralllm.server.storage.state_directory import StateDirectory

MOMENTS = 5  # tried before it is said that blobs are lost
EVERY_ROUND = 1_000_000
NO_LIMIT_BYTES = 2**62
PARTIAL = ".partial"  # of the name of what is not finished
MAX_FINDINGS = 3
COMPLETE_MARK = "federation.json"  # of an authority: its last file

Tell = Callable[[str, int, int], None]  # what is done, how many of it, of how many


@dataclass(frozen=True, slots=True)
class Contents:
    """What a backup holds."""

    report: Report
    blobs: int
    blob_bytes: int
    has_authority: bool
    has_root_key: bool


@dataclass(frozen=True, slots=True)
class Named:
    """The blobs that rows name."""

    all: frozenset[Digest]
    needed: frozenset[Digest]  # without these a run cannot go on, or its history is not whole


async def back_up(config: ServerConfig, target: Path, tell: Tell) -> Contents:
    """Raises InvalidArgument, InvalidConfig, InUse, StorageFull, StoreFailed, Corrupt, BackupUnusable.

    What was made till then is kept beside the target, under the name of what is not finished, and the next try goes on with it.
    """
    origin = StateDirectory(config.state_dir)
    if config.database_url is None and not database_file(origin).is_file():
        raise InvalidConfig(file="state_dir", problems=f"  no coordinator has kept anything in {origin.path} yet")
    with _unfinished(target) as draft, _space(target):
        await _copy_moment(config, origin, draft, tell)
        if (origin.authority / COMPLETE_MARK).is_file():
            copy_authority(origin.authority, draft.authority)
        contents = await look_through(draft, draft.scratch, tell)
        if not contents.report.is_clean:
            raise BackupUnusable(path=str(draft.path), problem=findings(contents.report))
        await asyncio.to_thread(_finish, draft.path, target)
    return contents


async def _copy_moment(config: ServerConfig, origin: StateDirectory, draft: StateDirectory, tell: Tell) -> None:
    kept = LocalBlobs(draft.blobs)
    source: Blobs = LocalBlobs(origin.blobs)
    if config.blob_url is not None:  # not through the coordinator's copies: what is in the bucket counts
        bucket = open_bucket(config.blob_url, config.blob_endpoint)
        source = ObjectBlobs(bucket, kept, draft.scratch, NO_LIMIT_BYTES)
    missing: Collection[Digest] = ()
    for _ in range(MOMENTS):
        await take_snapshot(database_url(config, origin), database_file(draft))
        async with opened(draft) as store:
            named = await named_blobs(store)
        missing = await copy_blobs(source, kept, named, draft.scratch, tell)
        if not missing:
            for digest in set(await kept.digests()) - named.all:  # of a moment before
                await kept.delete(digest)
            return
    names = ", ".join(digest[:12] for digest in sorted(missing)[:MAX_FINDINGS])
    raise BackupUnusable(path=str(draft.path), problem=f"{len(missing)} blobs that the records need are lost: {names}")


async def copy_blobs(source: Blobs, target: Blobs, named: Named, scratch: Path, tell: Tell) -> set[Digest]:
    """Checked by their digests on the way. What is needed and not there; what is past retention may be away.

    Raises Corrupt, StorageFull, StoreFailed.
    """
    stored = set(await source.digests())
    missing, wanted = set(named.needed - stored), sorted(named.all & stored)
    if missing:  # another moment is needed anyway
        return missing
    there = set(await target.digests())
    for number, digest in enumerate(wanted):
        tell("blobs", number, len(wanted))
        try:
            if digest not in there or not await _is_sound(target, digest):
                await _copy_blob(source, target, digest, scratch)
        except (NotFound, FileNotFoundError):
            if digest in named.needed:
                missing.add(digest)
                break
    return missing


async def _is_sound(target: Blobs, digest: Digest) -> bool:
    """A file that a disk has spoilt goes, to be copied again. A bucket checks what it is given."""
    if isinstance(target, LocalBlobs):
        try:
            await asyncio.to_thread(verify, await target.path(digest), digest)
        except Corrupt:
            await target.delete(digest)
            return False
    return True


async def _copy_blob(source: Blobs, target: Blobs, digest: Digest, scratch: Path) -> None:
    path = await source.path(digest)
    if isinstance(source, ObjectBlobs) and await target.exists(digest):  # it keeps what it fetches there
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
    """Raises Corrupt and what a log that cannot be replayed raises."""
    over: set[RunId] = set()
    for record in await store.runs():
        run, _ = await recover(store, record)
        over |= {run.id} if run.is_over else set()
    everything, needed = await kept_blobs(store, EVERY_ROUND, over), await kept_blobs(store, 0, over)
    return Named(frozenset(everything), frozenset(needed))


async def look_through(state: StateDirectory, scratch: Path, tell: Tell) -> Contents:
    """What a backup holds, after it was verified. Raises InvalidConfig for a damaged authority."""
    tell("verifying", 0, 0)
    async with opened(state) as store:
        report = await verify_state(store, SqlMembership(store), LocalBlobs(state.blobs), scratch)
    sizes = [path.stat().st_size for path in state.blobs.glob("??/*")]
    has_authority = (state.authority / COMPLETE_MARK).exists()
    if has_authority:
        load_authority(state.authority)
    return Contents(report, len(sizes), sum(sizes), has_authority, (state.authority / "root-key.pem").exists())


def findings(report: Report) -> str:
    """For a person, on one line."""
    more = len(report.findings) - MAX_FINDINGS
    found = "; ".join(f"{each.run}: {each.problem}" for each in report.findings[:MAX_FINDINGS])
    return f"its verification finds {found}" + (f"; and {more} more" if more > 0 else "")


def database_file(state: StateDirectory) -> Path:
    return file_of(state.database_url)


@contextlib.asynccontextmanager
async def opened(state: StateDirectory) -> AsyncIterator[SqlStore]:
    """The database of a backup; one of an older release gets this one's schema."""
    store = await open_store(state.database_url)
    try:
        yield store
    finally:
        await store.close()


def copy_authority(source: Path, target: Path) -> None:
    """Its files, for the owner only; the one that says it is complete last. Raises StorageFull."""
    shutil.rmtree(target, ignore_errors=True)  # of a try that was stopped
    target.mkdir(mode=0o700)
    names = [path.name for path in source.iterdir() if path.is_file() and not path.name.startswith(".")]
    for name in sorted(names, key=lambda name: (name == COMPLETE_MARK, name)):
        write_durably(target / name, (source / name).read_bytes(), SECRET)
    sync_directory(target.parent)


@contextlib.contextmanager
def _unfinished(target: Path) -> Iterator[StateDirectory]:
    """The folder beside the target that becomes it. Raises InvalidArgument, InUse, InvalidConfig."""
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
    """A full disk is the backup's, not the coordinator's."""
    what = f"the backup {target} (what is there goes on with the next try, as {target.name}{PARTIAL})"
    try:
        yield
    except StorageFull as error:
        raise StorageFull(what=what) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(what=what) from error
        raise


def _finish(draft: Path, target: Path) -> None:
    """Everything on the disk, then the name."""
    for folder, _, files in os.walk(draft):
        for name in files:
            sync_file(Path(folder) / name)
        sync_directory(Path(folder))
    draft.rename(target)
    sync_directory(target.parent)
