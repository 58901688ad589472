"""A coordinator that gives a daemon any task with any run spec, and notes every call and every order to the worker."""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from support.fixed_data import FixedData
from support.tasks import task_of

from pluralllm.client.daemon.daemon import Daemon
from pluralllm.client.data.private_file import PrivateFile
from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.joining.partner import Partner
from pluralllm.client.link.tasks import (
    Answer,
    AuditHead,
    Greeting,
    Introduction,
    RosterPage,
    ShownEntry,
    SignedRecord,
    Task,
    Wait,
)
from pluralllm.client.link.transport import Traffic
from pluralllm.client.process.config import ClientConfig
from pluralllm.client.work.orders import PREPARE, Prepared
from pluralllm.common.trust.version_record import VersionRecord, record_sha256
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId, TaskId
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.spec import GroupRole, RunSpec

LIMIT_S = 20.0
ADDRESS = "127.0.0.1:1"


class EvilCoordinator:
    """Takes the place of the daemon's transport. A refused client gets the same task again after its next Hello, or at once."""

    address = ADDRESS
    audit_head: AuditHead | None = None

    def __init__(
        self,
        spec: RunSpec,
        kind: TaskKind = TaskKind.TRAIN,
        *,
        repeats: int = 0,
        updates: Sequence[int] = (),
        **changes: Any,
    ) -> None:
        """Stores the task to give. repeats: number of times that the task comes again without a Hello.

        updates: the number of updates behind each of the model versions 1, 2, ...; without them, the client gets no version.
        changes: fields of the task.
        """
        self.spec_json = spec.canonical_json()
        spec_sha256 = Digest(hashlib.sha256(self.spec_json).hexdigest())
        self.records = _records(spec_sha256, updates) if updates else []
        based = _based_on(self.records[-1]) if updates else {}
        self.task: Task = task_of(spec, kind, **{"spec_sha256": spec_sha256, **based, **changes})
        self.traffic = Traffic()
        self.calls: list[str] = []
        self.hellos: list[Introduction] = []
        self.refusals: list[tuple[str, str, bool]] = []
        self._called = asyncio.Condition()
        self._repeats = repeats
        self._hands_out = False

    async def hello(self, said: Introduction) -> Greeting:
        self.hellos.append(said)
        await self._note("Hello")
        self._hands_out = True
        return Greeting(0.0)

    async def roster(self, after: int) -> RosterPage:
        raise AssertionError("this coordinator has no roster")

    async def poll(self, held: TaskId | None, following: Iterable[RunId], held_phase: int = 0) -> Answer:
        if held is not None:  # as a coordinator does, this one holds the poll until something happens
            calls = len(self.calls)
            async with self._called:
                await self._called.wait_for(lambda: len(self.calls) > calls)
            return Wait(0.0, "the task failed") if self.calls[-1] == "ReportFailure" else self.task
        if self._hands_out:
            self._hands_out = False
            return self.task
        return Wait(0.01, "nothing to do")

    async def run_spec(self, run: RunId) -> bytes:
        await self._note("GetRunSpec")
        return self.spec_json

    async def report_failure(
        self, task: TaskId, reason: str, message: str, *, permanent: bool, deadline_s: float = 0.0
    ) -> None:
        self.refusals.append((reason, message, permanent))
        if self._repeats > 0:
            self._repeats -= 1
            self._hands_out = True
        await self._note("ReportFailure")

    async def fetch_model(self, *_: object) -> Any:
        """Notes the call. The file stays away, because the worker only notes its orders."""
        await self._note("GetManifest")

    async def version_records(self, run: RunId, first: ModelVersion, last: ModelVersion) -> list[SignedRecord]:
        """Answers with the records. Never answers if there are none: the test is about whether the daemon gets so far."""
        await self._note("ListVersionRecords")
        if not self.records:
            await asyncio.Event().wait()
        return [SignedRecord(record, b"") for record in self.records[first : last + 1]]

    async def audit_entries(self, after: int, limit: int) -> list[ShownEntry]:
        """Shows an empty audit log."""
        await self._note("ListAuditEvents")
        return []

    async def report_progress(self, *_: object) -> None:
        await self._note("ReportProgress")

    async def until_called(self, call: str, times: int = 1) -> None:
        """Waits until the daemon has made a call so many times."""
        async with asyncio.timeout(LIMIT_S), self._called:
            await self._called.wait_for(lambda: self.calls.count(call) >= times)

    async def _note(self, call: str) -> None:
        async with self._called:
            self.calls.append(call)
            self._called.notify_all()


def _records(spec_sha256: Digest, updates: Sequence[int]) -> list[VersionRecord]:
    """Returns the records of the versions 0, 1, ... of the run r, with so many updates of other clients in them."""
    records: list[VersionRecord] = []
    for version, number in enumerate((0, *updates)):
        made = tuple((ClientId(f"b{client:02}"), Digest(f"{client:064}"), 40) for client in range(number))
        parent = record_sha256(records[-1]) if records else ""
        facts: dict[str, Any] = {"digest": Digest(f"{version + 100:064}"), "spec_sha256": spec_sha256, "created_s": 0.0}
        numbers: dict[str, Any] = {"version": ModelVersion(version), "round": RoundNumber(version)}
        records.append(VersionRecord(run=RunId("r"), parent_sha256=parent, updates=made, **numbers, **facts))
    return records


def _based_on(record: VersionRecord) -> dict[str, Any]:
    return {
        "round_number": record.version + 1,
        "base_version": record.version,
        "base_digest": record.digest,
        "base_record_sha256": record_sha256(record),
    }


class NotedWorker:
    """A worker that notes what it is asked."""

    def __init__(self) -> None:
        self.orders: list[object] = []
        self.passes = 0  # orders that succeed before the first one that fails

    async def start(self) -> None:
        """Starts nothing."""

    async def stop(self) -> None:
        """Stops nothing."""

    async def ask(self, command: Any, order: object, *_: object) -> Any:
        self.orders.append(order)
        if len(self.orders) <= self.passes:
            return Prepared(60, "cpu") if command is PREPARE else None
        raise AssertionError("nothing is computed for this coordinator")


class Victim:
    """The daemon of one partner under a policy, with a coordinator of the test's choice."""

    def __init__(
        self, state: Path, policy: Policy, coordinator: EvilCoordinator, data: PrivateFile | None = None
    ) -> None:
        state.mkdir(exist_ok=True)
        self.coordinator, self.worker, self.stop = coordinator, NotedWorker(), asyncio.Event()
        config = ClientConfig(data=state / "answers.jsonl", state_dir=state)
        partner = Partner(ClientId("ann"), "G", GroupRole.TRAIN, ADDRESS, None)
        arguments = cast(Any, (data or FixedData(60), coordinator, self.worker))
        self.daemon = Daemon(config, partner, policy, *arguments)

    async def __aenter__(self) -> "Victim":
        self._running = asyncio.create_task(self.daemon.run(self.stop))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        await asyncio.wait_for(self._running, LIMIT_S)

    async def refusal(self) -> tuple[str, str, bool]:
        """Waits until the daemon has refused, and returns reason, message and whether the refusal is permanent."""
        await self.coordinator.until_called("ReportFailure")
        return self.coordinator.refusals[-1]
