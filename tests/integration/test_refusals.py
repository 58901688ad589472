"""A real daemon behind a coordinator, or a proxy, that refuses everything once: it lives, and takes part in the next round."""

import asyncio
import sys
from pathlib import Path
from typing import Any

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
from pluralllm.common.trust.identity import Identity
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.rpc.serving import ENROLMENT_OPTIONS
from pluralllm.v1 import resources_pb2 as rpb

pytestmark = pytest.mark.timeout(180)
LIMIT_S = 90.0
PASSING = {  # of the error tree; tests/unit/client/daemon/test_polling.py has all
    *("AnswerInvalid", "AwaitingApproval", "DiskFailed", "IdentityMismatch", "Internal", "NotFound", "OverLimit"),
    *("Overtaken", "ProtocolUnsupported", "StaleSession", "StorageFull", "StoreFailed", "TooManyCalls"),
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
DELIVERIES = ("BeginUpdate", "PutChunks", "CommitUpdate", "ReportEvaluation")


def script() -> dict[str, list[Refusal]]:
    """Returns every bare code for each call, and for Hello and Poll also errors of the coordinator and a bad answer."""
    codes: list[Refusal] = [grpc.StatusCode[case.name] for case in EVERY_BARE_CODE]
    passing = [case.error for case in EVERY_LEAF if case.name in PASSING]
    talk: list[Refusal] = [*codes, *passing, BAD_ANSWER]
    return {"Hello": [*talk], "Poll": [*talk]} | {method: [*codes] for method in (*FETCHES, *DELIVERIES)}


def daemon_of(home: Path, identity: Identity, model: Path) -> Process:
    """Returns the daemon of ann, which is not started."""
    write_group(home / "answers.jsonl", next(iter(sample_groups(2, 60, 0).values())))
    (home / "policy.toml").write_text(open_policy_text())
    settings = {
        "data": home / "answers.jsonl",
        "state_dir": home / "state",
        "policy": home / "policy.toml",
        "identity": identity.folder,
        "coordinator": identity.membership.coordinator,
        "embedding_model_path": model,
        "threads": 1,
        "exit_when_run_over": True,
    }
    environment = {f"PLURALLLM_CLIENT_{key.upper()}": str(value) for key, value in settings.items()}
    return Process([sys.executable, "-c", HURRIED, "run"], home / "log", environment | {"OMP_NUM_THREADS": "1"})


async def test_a_daemon_survives_every_refusal_that_may_pass_and_takes_part_in_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = Refusals(script())
    assert len(refusals.of["Hello"]) >= 24
    server = grpc.aio.server

    def behind_refusals(interceptors: list[Any], **rest: Any) -> grpc.aio.Server:
        is_main = rest["options"] != ENROLMENT_OPTIONS
        return server(interceptors=[refusals, *interceptors] if is_main else interceptors, **rest)

    monkeypatch.setattr(grpc.aio, "server", behind_refusals)
    home = tmp_path / "ann"
    home.mkdir()
    model = await asyncio.to_thread(tiny_embedding_model, tmp_path / "model")
    async with serving(tmp_path / "server", SystemClock(), silence_s=5, hellos_per_minute=100_000) as served:
        await served.create("r", process_spec(rounds=1, round={"min_clients": 1, "target_clients": 1}))
        identity = await served.member("ann", MemberRole.CLIENT, "G")
        process = daemon_of(home, identity, model).start()
        try:
            async with asyncio.timeout(LIMIT_S):
                while (run := await served.run("r")).phase != rpb.RUN_PHASE_ENDED:
                    assert process.running, "the daemon has ended"
                    await served.parts.run_bell.wait(served.parts.run_bell.rings, 0.2)
            assert process.popen is not None
            assert await asyncio.to_thread(process.popen.wait, 30.0) == 0
        finally:
            await asyncio.to_thread(process.stop)
            print((await asyncio.to_thread(process.log.read_text))[-5000:])
    assert (run.outcome, run.version) == (rpb.RUN_OUTCOME_COMPLETED, 1)
    assert {method: len(left) for method, left in refusals.of.items() if left} == {}, "not every refusal was tried"
    assert [person.reason for person in run.participants] == [""], "the partner was never excluded"
