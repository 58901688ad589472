"""A coordinator that forges records or rewrites its audit log, over real gRPC: the client downloads nothing, and complains."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.evil_coordinator import IdleWorker
from structlog.testing import capture_logs
from support.coordinator_harness import Served, pass_first_evaluation, serving, small_spec, until_phase, write_delta
from support.fixed_data import FixedData

from pluralllm.client.daemon.daemon import Daemon
from pluralllm.client.daemon.models import Models
from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.doctor import checks_of
from pluralllm.client.joining.partner import load_partner
from pluralllm.client.keeping.audit_watch import read_heads, verified_log
from pluralllm.client.keeping.history import History
from pluralllm.client.link.tasks import Introduction, Task
from pluralllm.client.link.transport import Transport
from pluralllm.client.process.config import ClientConfig
from pluralllm.common.errors.membership import AuditBroken
from pluralllm.common.errors.tree import AnswerInvalid, HistoryDiverged, PluralError, RecordInvalid
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.trust.audit_chain import AuditEntry
from pluralllm.common.words.ids import ModelVersion, RunId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.rpc.signatures import Signatures
from pluralllm.v1 import operations_pb2
from pluralllm.v1 import resources_pb2 as rpb

SPEC = small_spec(rounds=5, round={"min_clients": 1, "target_clients": 1})
GROUP = "group of ann"
ROUNDS = 2
LIST = "ListVersionRecords"


async def after_two_rounds(served: Served, folder: Path) -> None:
    """Plays two rounds by hand, as the client ann."""
    ann = await served.client("ann")
    await served.create("r", SPEC)
    await pass_first_evaluation(ann)
    for number in range(1, ROUNDS + 1):
        task = await ann.task()
        await ann.push(task, folder / "delta", write_delta(folder / "delta", SPEC, number))
    await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING, ROUNDS + 1)


async def use_model(served: Served, folder: Path) -> PluralError | None:
    """Lets the client's own code take the task of round 3 and its model; returns the error with which it refused."""
    identity = await served.member("ann", MemberRole.CLIENT)
    transport = Transport.of_member(identity)
    history = History(folder / "history", identity.membership.name, identity.membership.record_verifier)
    try:
        await transport.hello(Introduction(GROUP, GroupRole.TRAIN, 50))
        task = await transport.poll(None, [])
        assert isinstance(task, Task)
        await Models(folder / "models", history, transport).fetch(task, layout_for(SPEC).size_bytes, SPEC)
    except (RecordInvalid, HistoryDiverged, AnswerInvalid) as error:
        assert transport.traffic.received_bytes == 0, "a forged model was downloaded"
        assert history.seen(RunId("r")).versions == {}
        return error
    finally:
        await transport.close()
    assert transport.traffic.received_bytes == layout_for(SPEC).size_bytes
    assert history.updates_of(RunId("r"), ModelVersion(ROUNDS)) == 1
    return None


def unsigned(record: rpb.VersionRecord) -> None:
    record.signature = b""


def of_another_update(record: rpb.VersionRecord) -> None:
    if record.updates:
        record.updates[0].digest = "0" * 64


def of_another_model(record: rpb.VersionRecord) -> None:
    record.digest = "0" * 64


def of_another_spec(record: rpb.VersionRecord) -> None:
    record.spec_sha256 = "0" * 64


def with_a_gap(record: rpb.VersionRecord) -> None:
    if record.version == 1:
        record.version = 2


FORGERIES = (unsigned, of_another_update, of_another_model, of_another_spec, with_a_gap)


async def test_an_honest_coordinators_model_is_used(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", SystemClock()) as served:
        await after_two_rounds(served, tmp_path)
        assert await use_model(served, tmp_path / "ann") is None


@pytest.mark.parametrize("forge", FORGERIES)
async def test_a_forged_record_is_refused_before_the_model_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forge: Callable[[rpb.VersionRecord], None]
) -> None:
    honest = Signatures.version_record

    def forged(self: Signatures, record: object) -> rpb.VersionRecord:
        message = honest(self, record)  # type: ignore[arg-type]
        forge(message)
        return message

    async with serving(tmp_path / "state", SystemClock()) as served:
        await after_two_rounds(served, tmp_path)
        monkeypatch.setattr(Signatures, "version_record", forged)
        refusal = await use_model(served, tmp_path / "ann")
    assert refusal is not None
    assert refusal.facts.get("call", LIST) == LIST, refusal


# The audit log


def config_of(served: Served, folder: Path) -> ClientConfig:
    return ClientConfig(
        data=folder / "answers.jsonl",
        state_dir=folder / "state",
        identity=served.identities / "ann",
        coordinator=served.address,
    )


async def test_a_daemon_complains_of_an_audit_log_that_goes_back_and_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path / "server", SystemClock(), poll_hold_s=0.1) as served:
        await served.member("ann", MemberRole.CLIENT, GROUP)
        config = config_of(served, tmp_path)
        (tmp_path / "state").mkdir()
        partner = load_partner(config)
        assert partner.identity is not None
        transport, stop = Transport.of_member(partner.identity), asyncio.Event()
        daemon = Daemon(config, partner, Policy(), FixedData(100), transport, IdleWorker())  # type: ignore[arg-type]
        before = served.registry.audit.head
        with capture_logs() as lines:
            running = asyncio.create_task(daemon.run(stop))
            try:
                await until(lambda: read_heads(tmp_path / "state" / "history").sequence > before[0])
                before = served.registry.audit.head  # Hello has registered the client's peer key
                ((first, sha256),) = await served.registry.audit.entries(0, 1)
                served.registry.audit.head = (first.sequence, sha256)
                await until(lambda: read_heads(tmp_path / "state" / "history").complaint is not None)
                polled = transport.audit_head
                await until(lambda: transport.audit_head is not polled)
                assert not running.done(), "the daemon goes on"
            finally:
                stop.set()
                await asyncio.gather(running, return_exceptions=True)
                await transport.close()
        complaints = [line for line in lines if line["event"] == "audit.contradicted"]
        assert [(line["log_level"], line["sequence"], line["kept_sequence"]) for line in complaints] == [
            ("error", 1, before[0])
        ]
    (check,) = [check for check in await asyncio.to_thread(checks_of, config) if check.name == "audit log"]
    assert not check.ok
    assert f"goes back from entry {before[0]} to entry 1" in check.result


async def until(holds: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Waits until a condition holds."""
    async with asyncio.timeout(limit_s):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110 - the files are written by the daemon
            await asyncio.sleep(0.02)


async def test_a_client_reads_its_part_of_the_audit_log_and_checks_the_whole_chain(tmp_path: Path) -> None:
    async with serving(tmp_path / "server", SystemClock()) as served:
        ann = await served.member("ann", MemberRole.CLIENT, GROUP)
        await served.member("ben", MemberRole.CLIENT, "group of ben")
        await served.create("own", SPEC)
        await served.create("other", small_spec(groups={"train": ["group of ben", "group of cleo"]}), start=False)
        transport = Transport.of_member(ann)
        try:
            shown, is_whole = await verified_log(tmp_path / "history", transport.audit_entries, 3, 100)
        finally:
            await transport.close()
        assert is_whole
        assert (len(shown), shown[-1].sha256) == served.registry.audit.head
        own = [one.entry for one in shown if isinstance(one.entry, AuditEntry)]
        assert {entry.object for entry in own} == {"members/ann", "runs/own"}
        assert {"CreateInvite", "Join", "CreateRun", "StartRun"} <= {entry.action for entry in own}


async def test_an_administrator_who_rewrites_the_log_is_noticed_by_a_reader(tmp_path: Path) -> None:
    async with serving(tmp_path / "server", SystemClock()) as served:
        ann = await served.member("ann", MemberRole.CLIENT, GROUP)
        transport = Transport.of_member(ann)
        honest = served.registry.audit.entries

        async def rewritten(after: int, limit: int) -> object:
            return [
                (entry if entry.sequence != 2 else AuditEntry(2, 0, "x", "", "y", "runs/z", "", "{}", ""), sha256)
                for entry, sha256 in await honest(after, limit)
            ]

        served.registry.audit.entries = rewritten  # type: ignore[method-assign, assignment]
        try:
            with pytest.raises(AuditBroken):
                await verified_log(tmp_path / "history", transport.audit_entries, 50, 10)
        finally:
            await transport.close()


async def test_an_observer_reads_nothing_of_the_audit_log_and_an_administrator_all(tmp_path: Path) -> None:
    async with serving(tmp_path / "server", SystemClock()) as served:
        await served.member("ben", MemberRole.CLIENT, "group of ben")
        answer = await served.operations.ListAuditEvents(operations_pb2.ListAuditEventsRequest())
        assert [event.withheld for event in answer.events] == [False] * served.registry.audit.head[0]
