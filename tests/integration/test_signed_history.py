"""The coordinator's signatures, over real gRPC: over whole version records and the audit log's head, by the key in the invite."""

from pathlib import Path

import pytest
from support.coordinator_harness import Served, pass_first_evaluation, serving, small_spec, until_phase, write_delta

from pluralllm.common.trust.record_signatures import RecordVerifier
from pluralllm.common.words.ids import RunId
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.record_key import RECORD_KEY
from pluralllm.server.rpc import federation
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1 import operations_pb2
from pluralllm.v1 import resources_pb2 as rpb

ALONE = {"min_clients": 1, "target_clients": 1}


async def play(served: Served, tmp_path: Path, rounds: int) -> None:
    """Plays a run of one client to its end."""
    spec = small_spec(rounds=rounds, round=ALONE)
    ann = await served.client("ann")
    await served.create("r", spec)
    await pass_first_evaluation(ann)
    for number in range(1, rounds + 1):
        task = await ann.task()
        manifest = write_delta(tmp_path / "delta", spec, number)
        await ann.push(task, tmp_path / "delta", manifest)
        if number == rounds:
            await ann.evaluate(await ann.task())
    await until_phase(served, "r", rpb.RUN_PHASE_ENDED)


async def test_an_invite_holds_the_key_and_the_key_signs_every_record(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await play(served, tmp_path, 3)
        invite = await served.operations.CreateInvite(
            operations_pb2.CreateInviteRequest(name="ben", role=rpb.MEMBER_ROLE_CLIENT)
        )
        verifier = RecordVerifier(invite.federation, invite.record_key_der)
        ann = await served.client("ann")
        answer = await ann.call("ListVersionRecords", pb.ListVersionRecordsRequest(run="r", last_version=99))
        stored = await served.parts.store.versions(RunId("r"))
        assert [record.version for record in answer.records] == [row.version for row in stored] == [0, 1, 2, 3]
        for message, row in zip(answer.records, stored, strict=True):
            assert verifier.has_signed_version(row.run, row.record_sha256, message.signature)
            assert [(u.client, u.digest, u.examples) for u in message.updates] == list(row.updates)
        membership = (await served.member("ann", MemberRole.CLIENT)).membership
        assert membership.record_verifier is not None
        assert membership.record_verifier.has_signed_version(
            RunId("r"), stored[2].record_sha256, answer.records[2].signature
        )


async def test_a_poll_and_a_status_carry_the_signed_head_of_the_audit_log(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann = await served.client("ann")
        verifier = (await served.member("ann", MemberRole.CLIENT)).membership.record_verifier
        assert verifier is not None
        first = (await ann.poll()).audit_head
        assert (first.sequence, first.sha256) == served.registry.audit.head
        assert verifier.has_signed_audit_head(first.sequence, first.sha256, first.signature)
        await served.create("r", small_spec(), start=False)
        later = (await ann.poll()).audit_head
        assert (later.sequence, later.sha256) == served.registry.audit.head != (first.sequence, first.sha256)
        assert verifier.has_signed_audit_head(later.sequence, later.sha256, later.signature)
        status = await served.operations.GetRun(operations_pb2.GetRunRequest(name="runs/r"))
        assert verifier.has_signed_audit_head(status.audit_sequence, status.audit_sha256, status.audit_signature)


async def test_an_authority_of_an_older_release_signs_after_its_start(tmp_path: Path) -> None:
    async with serving(tmp_path / "state"):
        pass
    (tmp_path / "state" / "authority" / RECORD_KEY).unlink()
    async with serving(tmp_path / "state") as served:
        ann = await served.client("ann")
        assert (await ann.poll()).audit_head.signature
        assert (tmp_path / "state" / "authority" / RECORD_KEY).stat().st_mode & 0o777 == 0o600


async def test_an_answer_with_many_updates_has_fewer_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(federation, "MAX_RECORDED_UPDATES", 2)
    async with serving(tmp_path / "state") as served:
        await play(served, tmp_path, 4)
        ann = await served.client("ann")
        answer = await ann.call("ListVersionRecords", pb.ListVersionRecordsRequest(run="r", last_version=99))
        assert [record.version for record in answer.records] == [0, 1, 2]
        request = pb.ListVersionRecordsRequest(run="r", first_version=3, last_version=99)
        answer = await ann.call("ListVersionRecords", request)
        assert [record.version for record in answer.records] == [3, 4]
