"""Files and folders: writes that survive a power loss, and files that belong to whom they are for.

An administrator often types a command as root for the user that a service runs as. What root makes in a folder of another user
is therefore handed over to that user; otherwise the service could not read its own key, or not write into its own database.
"""

import contextlib
import errno
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pluralllm.common.errors.tree import InvalidConfig, StorageFull
from pluralllm.common.text.reading import Unreadable, read_json

NO_ROOM = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
)  # the disk, the user's quota, or the process's limit of a file's size
RESTORE = "restore it from a backup"

Kind = TypeVar("Kind")


def sync_directory(folder: Path) -> None:
    """Makes new, renamed and removed file names in a directory durable (fsync)."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Makes a file's content and metadata durable (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_data(path: Path) -> None:
    """Makes a file's present content durable, but not the file's times (fdatasync, which is faster than fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        getattr(os, "fdatasync", os.fsync)(handle)  # macOS has no fdatasync
    finally:
        os.close(handle)


def publish(source: Path, target: Path) -> None:
    """Moves a finished file to its final name so that the move survives a power loss: fsync, rename, fsync of the directory.

    If the fsync of the file fails, the file is removed and the OSError is raised. The file is removed because a second fsync
    could succeed although bytes are lost. The same happens, with FileExistsError, if `target` is a device or a pipe: root would
    replace /dev/null by the file. Users other than the owner and its group cannot write to the file, whatever the umask.
    """
    try:
        if is_special(target):
            raise FileExistsError(errno.EEXIST, "It is a device or a pipe, which no file replaces", str(target))
        with _opened(source, os.O_RDONLY) as handle:
            _hand_over(handle, source.parent)
            if (
                mode := os.fstat(handle).st_mode
            ) & 0o002:  # a umask of 0 lets every user of this machine change the file
                os.fchmod(handle, stat.S_IMODE(mode) & ~0o002)
        sync_file(source)
    except OSError:
        with contextlib.suppress(OSError):
            source.unlink()
        raise
    source.rename(target)
    sync_directory(target.parent)


def is_special(path: Path) -> bool:
    """Returns whether there is something at a path that is neither a file nor a folder: a device, a pipe or a socket."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_durably(target: Path, content: bytes, mode: int = 0o644) -> None:
    """Writes a small file. After a power loss, the file has either its old or its complete new content.

    The file has the access rights `mode` from the beginning, so other users can never read a secret (mode 0o600).
    Raises StorageFull if the disk is full.
    """
    with _draft_of(target, mode) as file:
        file.write(content)


def write_private(target: Path, content: bytes) -> None:
    """Writes a file with private answers as `write_durably` does. A new file is for its owner only; an old one keeps its rights.

    Raises StorageFull if the disk is full.
    """
    with _draft_of(target, 0o600) as file:
        keep_rights(file.fileno(), target)
        file.write(content)


@contextlib.contextmanager
def _draft_of(target: Path, mode: int) -> Iterator[BinaryIO]:
    """Opens a draft for the block, and publishes it at the block's end. An OSError removes the draft.

    Raises StorageFull if the disk is full.
    """
    with storage_errors(target.name):
        draft = target.with_name(f".{target.name}.{_writer()}.tmp")
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                yield file
            publish(draft, target)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise


def _writer() -> str:
    """Returns the part of a draft's name that no other writer of the same file has, in this process or another one."""
    return os.urandom(8).hex()


def keep_rights(handle: int, target: Path) -> None:
    """Gives an open draft the access rights of the file that it will replace; those of its owner only if there is no such file.

    A group that this user cannot give the draft to gets no rights, because they would be another group's.
    """
    if not target.is_file():
        os.fchmod(handle, 0o600)
        return
    old = target.stat()
    mode = stat.S_IMODE(old.st_mode) & 0o777
    if old.st_gid != os.fstat(handle).st_gid:
        try:
            os.fchown(handle, -1, old.st_gid)
        except OSError:
            mode &= ~0o070
    os.fchmod(handle, mode)


def can_others_read(path: Path) -> bool:
    """Returns whether every user of this machine can read a file: the file and all folders above it allow it."""
    file = path.resolve()
    return bool(file.stat().st_mode & 0o004) and all(folder.stat().st_mode & 0o001 for folder in file.parents)


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Makes a folder, and the folders above it, that do not exist yet. They belong to the owner of the folder that exists.

    Raises InvalidConfig for a path that begins with ~, which would make a folder of this name.
    """
    if folder.parts[:1] == ("~",):
        problem = "  the shell has not put your home folder in the place of ~; write the whole path"
        raise InvalidConfig(file=str(folder), problems=problem)
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    if folder.is_dir():
        return
    for made in reversed(missing):
        made.mkdir(mode=mode, exist_ok=True)  # raises FileExistsError or NotADirectoryError where there is a file
        with _opened(made, os.O_RDONLY | os.O_DIRECTORY) as handle:
            _hand_over(handle, made.parent)


def hide_from_git(folder: Path) -> None:
    """Writes a .gitignore for everything into a folder of keys or of state, so that no `git add` takes it along."""
    path = folder / ".gitignore"
    with contextlib.suppress(FileExistsError), _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644) as handle:
        os.write(handle, b"*\n")
        _hand_over(handle, folder)


def create_file(path: Path, mode: int = 0o600) -> None:
    """Makes an empty file if there is none. Use it before a library opens the file for writing."""
    with contextlib.suppress(FileExistsError), _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode) as handle:
        _hand_over(handle, path.parent)


def why_not_writable(folder: Path) -> str:
    """Returns why this user can make no files in a folder, or in the folder above it that exists; empty if it can."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return f"{folder} is no folder"
    if os.access(folder, os.W_OK | os.X_OK):
        return ""
    return f"{folder} cannot be written. {owner_hint(folder) or 'Is its file system mounted for reading only?'}"


def open_at_once(path: str, flags: int) -> int:
    """Opens a path for `open`. A pipe without a reader is refused (OSError), where an ordinary opening would wait for one."""
    return os.open(path, flags | os.O_NONBLOCK, 0o644)


def owner_hint(path: Path) -> str:
    """Returns the advice for a path that this user may not use; empty if the path is this user's own, or if root asks."""
    owner = None
    while owner is None:
        try:
            owner = path.stat().st_uid
        except OSError:  # it does not exist, or this user may not even see it
            if path == path.parent:
                return "this user may not use the working directory: change to another folder, or give whole paths"
            path = path.parent
    if os.geteuid() in (0, owner):
        return ""
    return f"{path} belongs to {_user(owner)}: type the command as this user, for example sudo -u {_user(owner)} ..."


def _hand_over(handle: int, folder: Path) -> None:
    """Gives a file or folder that root has just made to the owner of the folder that it is in."""
    if os.geteuid() != 0:
        return
    owner, made = folder.stat(), os.fstat(handle)
    if made.st_uid == 0 and owner.st_uid != 0:
        os.fchown(handle, owner.st_uid, owner.st_gid)


def _user(number: int) -> str:
    """Returns the name of a user; the number, in the form that sudo takes, if the user has no name."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"#{number}"


@contextlib.contextmanager
def _opened(path: Path, flags: int, mode: int = 0o600) -> Iterator[int]:
    """Opens a file or folder, but not through a symbolic link, which another user may have put there."""
    handle = os.open(path, flags | os.O_NOFOLLOW, mode)
    try:
        yield handle
    finally:
        os.close(handle)


def read_state(path: Path, mend: str = RESTORE) -> Any:
    """Returns the value in a JSON file that this program has written.

    mend: the advice if the file is damaged. Raises InvalidConfig, with the file's name and the advice, if it holds no JSON.
    """
    try:
        return read_json(path)
    except Unreadable as error:
        raise damaged(path, error.problem, mend) from error


def read_state_as(path: Path, kind: type[Kind], mend: str = RESTORE) -> Kind:
    """Returns the value in a JSON file that this program has written, as a value of the type `kind`.

    Raises InvalidConfig, with the file's name and the advice `mend`, if the file holds no such value. The error quotes no value.
    """
    value = read_state(path, mend)
    try:
        return as_state(value, kind)
    except ValueError as error:
        raise damaged(path, str(error), mend) from error


def as_state(value: Any, kind: type[Kind]) -> Kind:
    """Returns a JSON value as a value of a type, for example of a dataclass. Raises ValueError, which quotes no value."""
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - most commands check no such file

    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None


def damaged(path: Path, problem: str, mend: str = RESTORE) -> InvalidConfig:
    """Returns the error for a damaged file that this program has written. problem: what is wrong. mend: what its owner can do."""
    return InvalidConfig(file=str(path), problems=f"  it is damaged: {problem}. To mend it, {mend}")


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turns an OSError of the `with` block into StorageFull if the disk is full or a quota is exceeded.

    Other errors are raised unchanged. what: a description of the data that the block writes, for the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise StorageFull(what=what) from error
        raise
