"""For those who tune models: batches of rollouts in, rewards of the groups out. Between them is a round like any other."""

import asyncio
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.errors.tree import NotFound, WrongPhase
from pluralllm.common.process.files import storage_errors
from pluralllm.common.rewards.rollout_batch import count_candidates, read_rollouts, write_rollouts
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.ids import Digest, RoundNumber
from pluralllm.common.words.names import RoundName
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.aggregation.reward_files import read_rewards
from pluralllm.server.aggregation.update_files import StoredWeights
from pluralllm.server.rounds import events as ev
from pluralllm.server.runs.coordinator import Coordinator
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.storage.store import ClientRecord, ReceiptRecord, RoundOutcome, RoundRecord


@dataclass(frozen=True, slots=True)
class GroupRewards:
    """What one group said."""

    group: str
    role: GroupRole
    weight: float  # in the aggregate; all together 1
    rewards: NDArray[np.float32] | None  # (candidates,); None once they are past retention


@dataclass(frozen=True, slots=True)
class RoundRewards:
    """What became of a batch."""

    record: RoundRecord
    rewards: (
        NDArray[np.float32] | None
    )  # (candidates,), in the batch's order; None while it is open, or if it was abandoned
    groups: tuple[GroupRewards, ...] = ()


class RewardDesk:
    def __init__(self, coordinator: Coordinator, scratch: Path, hold_s: float) -> None:
        """`hold_s`: how long a call is held open at most."""
        self._coordinator = coordinator
        self._hold_s = hold_s
        self._scratch = scratch

    async def ask(self, run: LiveRun, rollouts_json: bytes) -> RoundNumber:
        """Opens a round with a batch; the open round if it is this batch already.

        Raises WrongPhase (it trains, is not started, or another batch is under way), InvalidArgument, OverLimit, StorageFull.
        """
        coordinator = self._coordinator
        if run.spec.rewards is None:
            raise WrongPhase(run=run.id, phase="a run that trains", wanted="asked for rewards")
        batch = read_rollouts(rollouts_json, run.spec.rewards.max_candidates)
        draft = self._scratch / f"rollouts-{uuid.uuid4().hex}"
        with storage_errors("the rollouts"):
            digest = await asyncio.to_thread(_write, draft, write_rollouts(batch))
        try:
            if run.state.rollouts != digest:
                async with coordinator.retention.storing():
                    await coordinator.blobs.put(digest, draft)
                    asked = ev.RolloutsAsked(coordinator.clock.now_s(), digest, count_candidates(batch))
                    await coordinator.dispatch(run, asked)
            return run.state.round
        finally:
            await asyncio.to_thread(draft.unlink, missing_ok=True)

    async def rollouts(self, run: LiveRun) -> bytes:
        """The open round's batch. Raises NotFound."""
        if not run.state.rollouts:
            raise NotFound(what="batch of rollouts", name=f"of run {run.id} now")
        path = await self._coordinator.blobs.path(Digest(run.state.rollouts))
        return await asyncio.to_thread(path.read_bytes)

    async def rewards(self, run: LiveRun, number: RoundNumber, hold_s: float) -> RoundRewards:
        """What a batch came to; waits up to `hold_s` for its round to end. Raises NotFound, Corrupt."""
        coordinator, loop = self._coordinator, asyncio.get_running_loop()
        until_s = loop.time() + min(hold_s, self._hold_s)
        while True:
            heard = coordinator.bell.rings
            record = await coordinator.store.round(run.id, number)
            if record is None or not record.rollouts:
                raise NotFound(what="round with rewards", name=str(RoundName(run.id, number)))
            left_s = 0.0 if coordinator.draining else until_s - loop.time()
            if record.outcome is not RoundOutcome.OPEN or left_s <= 0:
                break
            await coordinator.bell.wait(heard, left_s)
        if record.version is None:
            return RoundRewards(record, None)
        version = await coordinator.store.version(run.id, record.version)
        assert version is not None  # in the same transaction
        receipts = await coordinator.store.receipts(run.id, number)
        members = {member.client: member for member in await coordinator.store.clients()}
        groups = [
            await self._group(members[row.receipt.client], row, weight)
            for row, weight in zip(receipts, version.weights, strict=True)
        ]
        return RoundRewards(record, await self._read(version.digest), tuple(groups))

    async def _group(self, member: ClientRecord, row: ReceiptRecord, weight: float) -> GroupRewards:
        try:
            rewards: NDArray[np.float32] | None = await self._read(row.receipt.digest)
        except (NotFound, FileNotFoundError):  # past retention, perhaps since a moment ago
            rewards = None
        return GroupRewards(member.group, member.role, weight, rewards)

    async def _read(self, digest: Digest) -> NDArray[np.float32]:
        return await asyncio.to_thread(read_rewards, StoredWeights(await self._coordinator.blobs.path(digest), digest))


def _write(path: Path, content: bytes) -> Digest:
    path.write_bytes(content)
    return manifest_of(path).digest
