"""Errors about disk, database and stored data; tree.py draws the whole tree.

|- Refused
|  |- StorageFull     the disk has no space left; the work continues when there is space again
|  |- BackupUnusable  the backup is incomplete, from another release, or made from damaged data
|  `- NotEmpty        the target of a restore already holds data
`- Broken
   |- Corrupt      stored bytes do not have the digest that they should have
   |- BaseLost     a stored file that the next averaging needs is missing or corrupt. The file holds the model version that
   |               the round trains from, or the server optimizer's state. No later round can be averaged
   |- UpdateLost   an acknowledged update is missing or corrupt, so its round cannot be averaged
   |- StoreFailed  the database failed to do an operation
   |- DiskFailed   the coordinator's disk failed, so the coordinator stops
   `- Overtaken    another coordinator now serves from the same database
"""

from dataclasses import dataclass

from pluralllm.common.errors.root import Broken, Refused


@dataclass(eq=False)
class StorageFull(Refused):
    what: str
    why = "No space left for {what}."
    fix = "Free some space on its disk, or raise the limits of this user (quota, ulimit -f); nothing acknowledged is lost."


@dataclass(eq=False)
class BackupUnusable(Refused):
    path: str
    problem: str
    why = "The backup {path} cannot be used: {problem}."
    fix = "Nothing was changed. Use another backup; what a coordinator itself has lost, pluralllm-server verify says."


@dataclass(eq=False)
class NotEmpty(Refused):
    what: str
    holds: str
    why = "{what} is not empty: it holds {holds}."
    fix = "Nothing was changed. Restore into an empty database, an empty blob store and a new state directory."


@dataclass(eq=False)
class Corrupt(Broken):
    what: str
    expected: str
    got: str
    why = "{what} is corrupt: digest {got}, expected {expected}."
    fix = "Restore it from a backup; it was not used."


@dataclass(eq=False)
class BaseLost(Broken):
    digest: str  # of the lost blob: a model version, or a moment of the server optimizer
    problem: str
    why = "The base of the next model version is lost, blob {digest}: {problem}"


@dataclass(eq=False)
class UpdateLost(Broken):
    digest: str
    problem: str
    why = "An acknowledged update is lost, blob {digest}: {problem}"


@dataclass(eq=False)
class StoreFailed(Broken):
    problem: str
    why = "The coordinator's storage failed: {problem}."


@dataclass(eq=False)
class DiskFailed(Broken):
    problem: str
    why = "The coordinator's disk failed: {problem}. It stops, so that nothing is promised that the disk may not keep."
    fix = "Look at the disk that holds the state directory, then start the coordinator again; nothing acknowledged is lost."


@dataclass(eq=False)
class Overtaken(Broken):
    generation: int
    why = "Another coordinator serves from this database now; this one's generation is {generation}."
    fix = "Start this one again: it stands by until the other one is gone."
