"""Attack 25: a member is revoked, or the run is cancelled, within a private round of the real service."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from private.evil_coordinator import CONFIRM, KEYS, REVEAL, SHARES, UPDATE
from private.test_service import (
    MEMBERS,
    SPEC,
    clean,
    members_of,
    plain_mean,
    play,
    replace_round,
    stored,
    until_version,
)
from support.coordinator_harness import DEADLINE_S, serving

from pluralllm.common.errors.tree import RoundClosed
from pluralllm.common.words.ids import ClientId, ModelVersion, RunId
from pluralllm.v1 import operations_pb2
from pluralllm.v1 import resources_pb2 as rpb

LAST = MEMBERS[3]


@pytest.mark.parametrize("step", [UPDATE, REVEAL])  # tests/unit/server/rounds/test_private.py: in every step
async def test_25_a_member_revoked_before_the_sum_is_fixed_is_not_in_it_and_later_it_stays_in_it(
    tmp_path: Path, step: int
) -> None:
    async with serving(tmp_path / "state") as served:
        spec = replace_round(grace_after_quorum_s=1e6 if step > UPDATE else 0.0)
        await served.create("r", spec)
        members = await members_of(served, tmp_path / "clients")
        await play(members, *range(KEYS, step))
        request = operations_pb2.RevokeMemberRequest(name=f"members/{LAST}")
        await served.operations.RevokeMember(request, timeout=DEADLINE_S)
        left = members[:3]
        await play(left, step)
        await play(left, *range(step + 1, REVEAL + 1))
        await until_version(served, 1)
        record = await served.parts.store.version(RunId("r"), ModelVersion(1))
        assert record is not None
        in_sum = [client for client, *_ in record.updates]
        assert in_sum == sorted(MEMBERS if step > UPDATE else MEMBERS[:3])
        moved = (await stored(served, 1)).astype(np.float64) - await stored(served, 0)
        assert np.abs(moved - plain_mean([one for one in members if one.name in in_sum])).max() < 1e-5
        assert served.parts.runs.get("r").state.is_excluded(ClientId(LAST))
        assert await clean(served, tmp_path) == 1


async def test_25_a_cancelled_run_keeps_no_message_of_its_round_and_takes_none(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", SPEC)
        members = await members_of(served, tmp_path / "clients")
        await play(members, KEYS, SHARES, UPDATE, CONFIRM)
        late = members[2]
        late.task = await late.hand.task()
        message = await late.answer()
        await play(members[:2], REVEAL)
        await served.operations.CancelRun(operations_pb2.CancelRunRequest(name="runs/r"), timeout=DEADLINE_S)
        run = await served.run("r")
        assert (run.outcome, run.version) == (rpb.RUN_OUTCOME_CANCELLED, 0)
        with pytest.raises(RoundClosed):
            await late.send(message)
        for _ in range(100):
            if not await served.parts.store.round_messages(RunId("r")):
                break
            await asyncio.sleep(0.02)
        assert not await served.parts.store.round_messages(RunId("r"))
        assert await clean(served, tmp_path) == 0
