"""Attack 19: runs that hide less than the policy demands. The client refuses before anything of its answers leaves."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from private.test_daemons import LIMIT_S, MEMBERS, members, spec_of
from structlog.testing import capture_logs
from support.coordinator_harness import serving
from support.open_policy import open_policy

from pluralllm.client.daemon.work_under_way import JoinedRun
from pluralllm.client.disclosure.policy import RoundPrivacy
from pluralllm.common.errors.tree import InvalidSpec
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.words.ids import RunId
from pluralllm.common.words.spec import RunSpec

PRIVATE = spec_of(1)
NO_COLLUDERS = {"private_rounds": {"colluders": 0, "clip_norm": 4.0, "step_s": 1000.0, "closing_scores": False}}


def changed(spec: RunSpec, **tables: Any) -> RunSpec:
    return RunSpec.model_validate({**spec.model_dump(mode="json", exclude_none=True), **tables})


PLAIN = RunSpec.model_validate(
    {
        name: table
        for name, table in PRIVATE.model_dump(mode="json").items()
        if name not in ("private_rounds", "privacy")
    }
)


@pytest.mark.parametrize(
    ("spec", "key"),
    [(PLAIN, "[private_rounds] rounds"), (changed(PRIVATE, **NO_COLLUDERS), "[private_rounds] colluders")],
    ids=["plain rounds", "no colluders"],
)
async def test_19_a_client_that_demands_private_rounds_sends_no_key_and_no_update_to_a_run_that_hides_less(
    tmp_path: Path, spec: RunSpec, key: str
) -> None:
    policy = open_policy(private_rounds=RoundPrivacy(rounds="required", hidden_among=2))
    async with serving(tmp_path / "server", SystemClock(), silence_s=5) as served:
        await served.create("r", spec)
        with capture_logs() as logs:
            async with members(tmp_path / "clients", served) as some:
                await some.start(*MEMBERS, policy=policy)
                async with asyncio.timeout(LIMIT_S):
                    while sum(line["event"] == "task.failed" for line in logs) < len(MEMBERS):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                assert all(not one.worker.deltas for one in some.of.values()), "nothing was trained"
                sent = [one.transport.traffic.sent_bytes for one in some.of.values()]
                outputs = [path for one in some.of.values() for path in (one.state / "outbox").iterdir()]
                notebooks = [path for one in some.of.values() for path in (one.state / "private").glob("r.*")]
        failed = [line for line in logs if line["event"] == "task.failed"]
        assert {(line["reason"], line["permanent"]) for line in failed} == {("POLICY_FORBIDS", True)}
        assert all(key in line["problem"] for line in failed)
        assert outputs + notebooks == []
        assert max(sent) < 20_000, "Hello, polls and the refusal"
        assert not await served.parts.store.round_messages(RunId("r"))


def test_19_a_run_spec_with_an_older_protocol_of_private_rounds_is_no_run_spec() -> None:
    older = PRIVATE.canonical_json().replace(b'"pluralllm.private/1"', b'"pluralllm.private/0"')
    assert older != PRIVATE.canonical_json()
    with pytest.raises(InvalidSpec, match="private_rounds"):
        JoinedRun.of(RunId("r"), older, "")
