"""The faults of a simulation: at least one in every round, chosen and timed by a seed.

A fault is armed when its round opens, and strikes at the n-th operation or call that it concerns. No random stream is shared
by several actors, because the order of actors at the same moment is not part of a schedule.
"""

import asyncio
import errno
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, cast

from pluralllm.common.errors.tree import StorageFull, StoreFailed
from pluralllm.common.words.ids import Digest
from pluralllm.server.storage.store import Change, RoundOutcome


class Kind(StrEnum):
    """The kinds of faults; `Faults` and network.py say what each one does."""

    REQUEST_LOST = "request lost"
    REPLY_LOST = "reply lost"
    REQUEST_TWICE = "request twice"
    REQUEST_LATE = "request late"
    CONNECTION_CUT = "connection cut"
    CLIENT_KILLED = "client killed"
    CLIENT_SLOW = "client slow"
    CLIENT_FAILED = "client failed"
    COORDINATOR_KILLED = "coordinator killed"
    POWER_LOST = "power lost"
    CLOCK_SET = "clock set while it was down"
    MACHINE_SLEPT = "machine slept"
    DISK_FULL = "disk full"
    DISK_ERROR = "disk error"
    SYNC_FAILED = "fsync failed"
    DISK_SLOW = "disk slow"
    STORE_FAILED = "store failed"
    STORE_FULL = "store full"
    STORE_UNCLEAR = "store failed after its commit"
    BASE_SPOILT = "model spoilt, then restored"
    UPDATE_SPOILT = "update spoilt"
    BASE_LOST = "model spoilt for good"


K = Kind
OF_CALLS = (K.REQUEST_LOST, K.REPLY_LOST, K.REQUEST_TWICE, K.REQUEST_LATE, K.CONNECTION_CUT, K.CLIENT_KILLED)
OF_TRAINING = (K.CLIENT_SLOW, K.CLIENT_FAILED)
OF_PROCESS = (K.COORDINATOR_KILLED, K.POWER_LOST, K.CLOCK_SET, K.MACHINE_SLEPT)
OF_DISK = (K.DISK_FULL, K.DISK_ERROR, K.DISK_SLOW)
OF_STORE = (K.STORE_FAILED, K.STORE_FULL, K.STORE_UNCLEAR)
# After these faults the same updates count, so the model equals that of an undisturbed run.
HARMLESS = (*OF_CALLS, *OF_TRAINING, *OF_PROCESS, *OF_DISK, K.SYNC_FAILED, *OF_STORE, K.BASE_SPOILT)
# The number of operations or calls of a kind that every round has; a fault strikes within that number.
SURELY = {K.SYNC_FAILED: 3, **dict.fromkeys(OF_CALLS, 4), **dict.fromkeys(OF_DISK, 8), **dict.fromkeys(OF_STORE, 3)}
SURELY |= dict.fromkeys(OF_PROCESS, 15)
WRITES = frozenset({"blobs.put", "disk.begin", "disk.put", "disk.average"})  # the operations that a full disk refuses
FULL_FOR_S = 2.0
SECOND_FAULT = 0.3  # the share of rounds that have two faults


@dataclass(slots=True)
class Armed:
    """A fault that waits for its moment."""

    kind: Kind
    left: int  # the number of operations or calls until it strikes, the struck one included
    client: str
    after: bool  # whether it strikes after the operation is done
    number: int  # a seeded random number for details of the fault


def plan(seed: int, number: int, kinds: Sequence[Kind], clients: Sequence[str]) -> list[Armed]:
    """Returns the faults of a round."""
    if not kinds:
        return []
    draw = random.Random(f"{seed}/{number}")
    chosen = draw.sample(kinds, 2 if len(kinds) > 1 and draw.random() < SECOND_FAULT else 1)
    return [
        Armed(
            kind, draw.randint(1, SURELY.get(kind, 1)), draw.choice(clients), draw.random() < 0.5, draw.getrandbits(32)
        )
        for kind in chosen
    ]


class Struck(Protocol):
    """The simulated world, as the faults act on it."""

    def time(self) -> float:
        """Seconds since the simulation began."""
        ...

    def stop_coordinator(self, fault: Armed) -> None:
        """Kills the coordinator's process; another one is started."""
        ...

    def stop_coordinator_in(self, wait_s: float) -> None:
        """Lets the coordinator go on for a while, then kills it."""
        ...

    def sleep_machine(self, length_s: float) -> None: ...

    def flip_bit(self, digest: Digest, bit: int) -> None:
        """Flips a bit of a stored blob; a second flip of the same bit undoes the first."""
        ...

    def newest_model(self) -> Digest: ...


class Faults:
    """Injects the faults: called before and after every operation of the coordinator's store and disk, and at each call."""

    def __init__(self, seed: int, kinds: Sequence[Kind], clients: Sequence[str], struck: Struck) -> None:
        self._seed, self._kinds, self._clients, self._struck = seed, kinds, clients, struck
        self._armed: list[Armed] = []
        self._full_until_s = 0.0
        self._spoilt: tuple[Digest, int] | None = (
            None  # a model's digest and the flipped bit, until the model is restored
        )
        self._restore_at_s = 0.0
        self.round = 0
        self.fired: Counter[Kind] = Counter()
        self.log: list[str] = []
        self.quiet: list[int] = []  # rounds without a fault; the tests check that there are none
        self._fired_in_round = True

    async def before(self, operation: str, about: object) -> None:
        """Raises the error of a disk or database, waits, or stops the process; the caller checks whether the process lives."""
        if self._struck.time() >= self._restore_at_s or operation == "disk.average":
            self.restore()
        if operation in WRITES and self._struck.time() < self._full_until_s:
            raise StorageFull(what=operation)
        for fault in self._due(lambda fault: _concerns(fault, operation, after=False)):
            await self._strike(fault, operation, done=False)

    async def after(self, operation: str, about: object) -> None:
        """Does the same when the operation is done."""
        if operation == "store.apply":
            for change in cast("Sequence[Change]", about):
                self._look_at(change)
        for fault in self._due(lambda fault: _concerns(fault, operation, after=True)):
            await self._strike(fault, operation, done=True)

    def of_call(self, client: str, method: str) -> Armed | None:
        """Returns the fault that strikes this call, or None."""
        due = self._due(lambda fault: fault.kind in OF_CALLS and fault.client == client)
        for fault in due:
            self._note(fault, f"{method} of {client}")
        return due[0] if due else None

    def of_training(self, client: str) -> Armed | None:
        due = self._due(lambda fault: fault.kind in OF_TRAINING and fault.client == client)
        for fault in due:
            self._note(fault, client)
        return due[0] if due else None

    def restore(self) -> None:
        """Repairs the spoilt model, as from a backup."""
        if self._spoilt is not None:
            self._struck.flip_bit(*self._spoilt)
            self._spoilt = None

    def end_round(self) -> None:
        """Records the round as quiet if no fault struck in it."""
        if not self._fired_in_round:
            self.quiet.append(self.round)

    def _due(self, concerns: Callable[[Armed], bool]) -> list[Armed]:
        """Counts down the faults that are concerned; returns those that are due and disarms them."""
        if not self._armed:
            return []
        due = []
        for fault in self._armed:
            if concerns(fault):
                fault.left -= 1
                if not fault.left:
                    due.append(fault)
        if due:
            self._armed = [fault for fault in self._armed if fault.left]
        return due

    def _note(self, fault: Armed, where: str) -> None:
        self.fired[fault.kind] += 1
        self._fired_in_round = True
        self.log.append(f"{self._struck.time():.6f} round {self.round}: {fault.kind}, {where}")

    async def _strike(self, fault: Armed, operation: str, *, done: bool) -> None:
        self._note(fault, f"{'after' if done else 'before'} {operation}")
        length_s = 0.05 * (1 + fault.number % 100)  # at most 5 s
        match fault.kind:
            case K.COORDINATOR_KILLED | K.POWER_LOST | K.CLOCK_SET:
                self._struck.stop_coordinator(fault)
            case K.MACHINE_SLEPT:
                self._struck.sleep_machine(20 * length_s)
            case K.DISK_FULL:
                self._full_until_s = self._struck.time() + FULL_FOR_S
                raise StorageFull(what=operation)
            case K.DISK_ERROR | K.SYNC_FAILED:
                raise OSError(errno.EIO, "Input/output error")
            case K.DISK_SLOW:
                await asyncio.sleep(length_s)
            case K.STORE_FAILED:
                raise StoreFailed(problem="the connection was lost")
            case K.STORE_UNCLEAR:  # like sql_store.py: a store that cannot be trusted any more ends the process
                self._struck.stop_coordinator_in(length_s)
                raise StoreFailed(problem="disk I/O error")
            case K.STORE_FULL:
                raise StorageFull(what="the coordinator's database")
            case _:
                raise AssertionError(fault)

    def _look_at(self, change: Change) -> None:
        """Arms the faults of a round that opens; strikes the faults that concern the model or an update at once."""
        for row in change.rounds:
            if row.outcome is RoundOutcome.OPEN and row.round > self.round:
                self.end_round()
                self.round, self._fired_in_round = row.round, False
                self._armed = plan(self._seed, row.round, self._kinds, self._clients)
                for fault in self._due(lambda fault: fault.kind is K.BASE_SPOILT):
                    self._spoilt = (self._struck.newest_model(), fault.number)
                    self._spoil(fault, *self._spoilt)
                    self._restore_at_s = self._struck.time() + fault.number % 100 / 1000
        for arrived in change.receipts:
            for fault in self._due(lambda fault: fault.kind is K.UPDATE_SPOILT):
                self._spoil(fault, arrived.receipt.digest, fault.number)
            for fault in self._due(lambda fault: fault.kind is K.BASE_LOST):
                self._spoil(fault, self._struck.newest_model(), fault.number)

    def _spoil(self, fault: Armed, digest: Digest, bit: int) -> None:
        self._note(fault, digest[:12])
        self._struck.flip_bit(digest, bit)


def _concerns(fault: Armed, operation: str, *, after: bool) -> bool:
    """Whether the fault counts this operation, which is about to begin or done."""
    target, _, _ = operation.partition(".")
    match fault.kind:
        case kind if kind in OF_PROCESS:
            return fault.after == after
        case K.DISK_FULL:
            return not after and operation in WRITES
        case K.DISK_ERROR | K.DISK_SLOW:
            return not after and (target == "disk" or operation in ("blobs.delete", "blobs.digests"))
        case K.SYNC_FAILED:
            return not after and operation == "blobs.put"
        case K.STORE_FAILED:
            return not after and target == "store"
        case K.STORE_FULL:
            return not after and operation in ("store.apply", "store.save_client", "store.save_last_seen")
        case K.STORE_UNCLEAR:
            return after and operation == "store.apply"
        case _:
            return False
