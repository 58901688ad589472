"""A real daemon behind a coordinator, or a proxy, that refuses everything once: it lives, and takes part in the next round."""

import asyncio
import contextlib
import json
import sys
from pathlib import Path

import grpc
import pytest
from support.coordinator_harness import serving
from support.errors_to_raise import EVERY_BARE_CODE, EVERY_LEAF
from support.open_policy import open_policy_text
from support.process_harness import Process, process_spec, tiny_embedding_model
from support.refusals import BAD_ANSWER, Refusal, Refusals

from pluralllm.client.data.private_data import write_group
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.rpc import serving as serving_module
from pluralllm.server.rpc.first_message import FirstMessage
from pluralllm.v1 import resources_pb2 as rpb

pytestmark = pytest.mark.timeout(180)
LIMIT_S = 90.0
FINAL = {
    *("SessionReplaced", "CertificateForeign", "CertificateInvalid", "CertificateRevoked", "CertificateUnknown"),
    *("CertificateWrongUse", "CertificateExpired", "CertificateNotYetValid"),  # the last two ask the enrolment port
}
# The daemon with shorter pauses.
HURRIED = """
from pluralllm.client.daemon import pace, polling
from pluralllm.client.link import rests, transport
pace.FIRST_BACKOFF_S = pace.LAST_BACKOFF_S = polling.APPROVAL_WAIT_S = pace.IDLE_POLL_EVERY_S = 0.005
transport.FIRST_RETRY_S = transport.LAST_RETRY_S = transport.RETRY_JITTER_S = 0.005
rests.SHORTEST_REST_S = rests.LONGEST_REST_S = 0.005
from pluralllm.client.__main__ import main
main()
"""
FETCHES = ("GetRunSpec", "ListVersionRecords", "GetManifest", "GetChunks")
DELIVERIES = ("BeginUpdate", "PutChunks", "CommitUpdate", "ReportEvaluation", "ReportProgress")


def script() -> dict[str, list[Refusal]]:
    """Returns every error that is not final and every bare code for Hello and Poll, and each bare code for the other calls."""
    codes: list[Refusal] = [grpc.StatusCode[case.name] for case in EVERY_BARE_CODE]
    passing = [case.error for case in EVERY_LEAF if case.name not in FINAL]
    talk: list[Refusal] = [*codes, *passing, BAD_ANSWER]
    return {"Hello": [*talk], "Poll": [*talk]} | {method: [*codes] for method in (*FETCHES, *DELIVERIES)}


async def test_a_daemon_survives_every_refusal_that_may_pass_and_takes_part_in_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = Refusals(script())
    assert len(refusals.of["Hello"]) > 24
    bind = grpc.aio.server
    monkeypatch.setattr(
        serving_module.grpc.aio,
        "server",
        lambda interceptors, **rest: bind(
            interceptors=[refusals, *interceptors] if rest["options"] != serving_module.ENROLMENT_OPTIONS else interceptors,
            **rest,
        ),
    )
    home = tmp_path / "ann"
    await asyncio.to_thread(prepare, home, tmp_path)
    async with serving(tmp_path / "server", SystemClock(), silence_s=5, hellos_per_minute=100_000) as served:
        await served.create("r", process_spec(rounds=1, round={"min_clients": 1, "target_clients": 1}))
        identity = await served.member("ann", MemberRole.CLIENT, "G")
        settings = {"coordinator": served.address, "identity": str(identity.folder)}
        process = await asyncio.to_thread(start, home, settings)
        try:
            async with asyncio.timeout(LIMIT_S):
                while (run := await served.run("r")).phase != rpb.RUN_PHASE_ENDED:
                    assert process.running, "the daemon has ended"
                    await served.parts.run_bell.wait(served.parts.run_bell.rings, 0.2)
            assert await asyncio.to_thread(process.wait, 30.0) == 0
        finally:
            process.stop()
            print(await asyncio.to_thread(process.log.read_text))
    assert (run.outcome, run.version) == (rpb.RUN_OUTCOME_COMPLETED, 1)
    assert [len(left) for left in refusals.of.values() if left] == []
    assert [person.reason for person in run.participants] == [""], "the partner was never excluded"
