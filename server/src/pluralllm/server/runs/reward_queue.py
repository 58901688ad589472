"""Serves the trainers of language models: accepts batches of rollouts and returns the groups' rewards.

A rollout is a text that a language model has generated. Each batch is scored in one round.
"""

import asyncio
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.errors.tree import NotFound, WrongPhase
from pluralllm.common.process.clock import Clock
from pluralllm.common.process.files import storage_errors
from pluralllm.common.rewards.rollout_batch import count_candidates, read_rollouts, write_rollouts
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.weights.stored_weights import StoredWeights
from pluralllm.common.words.ids import Digest, RoundNumber
from pluralllm.common.words.names import RoundName
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.aggregation.reward_files import read_rewards
from pluralllm.server.rounds import events as ev
from pluralllm.server.runs.bell import Bell
from pluralllm.server.runs.coordinator import Coordinator
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.retention import Retention
from pluralllm.server.storage.store import ClientRecord, ReceiptRecord, RoundOutcome, RoundRecord, Store


@dataclass(frozen=True, slots=True)
class GroupRewards:
    """The rewards that one group gave to a batch of rollouts (generated texts), and the group's weight."""

    group: str
    role: GroupRole
    weight: float  # the group's weight in the aggregate; the weights of a round sum to 1
    rewards: NDArray[np.float32] | None  # (candidates,); None if retention has deleted them


@dataclass(frozen=True, slots=True)
class RoundRewards:
    """The rewards of one batch of rollouts: the combined rewards of all groups, and each group's own rewards."""

    record: RoundRecord
    # (candidates,), in the batch's order; None while the round is open and if it was abandoned.
    rewards: NDArray[np.float32] | None
    groups: tuple[GroupRewards, ...] = ()


class RewardQueue:
    """The batches of rollouts (generated texts) in all runs that ask for rewards. A run has at most one open batch."""

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        store: Store,
        blobs: Blobs,
        retention: Retention,
        clock: Clock,
        run_bell: Bell,
        scratch: Path,
        hold_s: float,
    ) -> None:
        """Stores the arguments. `hold_s` is the longest time in seconds that the server holds a call open."""
        self._coordinator, self._store, self._blobs, self._retention = coordinator, store, blobs, retention
        self._clock, self._run_bell, self._scratch, self._hold_s = clock, run_bell, scratch, hold_s

    async def ask(self, run: LiveRun, rollouts_json: bytes) -> RoundNumber:
        """Opens a round in which clients score a batch of rollouts (generated texts), and returns the round's number.

        If the open round already has an equal batch, the method returns that round's number. Raises WrongPhase for a training
        run, for a run that is not started, or if another batch is in progress. Raises InvalidArgument or OverLimit if the batch
        is not valid or too large; StorageFull if no space is left.
        """
        if run.spec.rewards is None:
            raise WrongPhase(run=run.id, phase="a run that trains", wanted="asked for rewards")
        batch = await asyncio.to_thread(read_rollouts, rollouts_json, run.spec.rewards.max_candidates)
        draft = self._scratch / f"rollouts-{uuid.uuid4().hex}"
        with storage_errors("the rollouts"):
            digest = await asyncio.to_thread(_write, draft, write_rollouts(batch))
        try:
            if run.state.rollouts != digest:
                async with self._retention.storing():
                    await self._blobs.put(digest, draft)
                    asked = ev.RolloutsAsked(self._clock.now_s(), digest, count_candidates(batch))
                    await self._coordinator.dispatch(run, asked)
            return run.state.round
        finally:
            await asyncio.to_thread(draft.unlink, missing_ok=True)

    async def rollouts(self, run: LiveRun) -> bytes:
        """Returns the batch of the open round as JSON. Raises NotFound if the run has no open batch."""
        if not run.state.rollouts:
            raise NotFound(what="batch of rollouts", name=f"of run {run.id} now")
        path = await self._blobs.path(Digest(run.state.rollouts))
        return await asyncio.to_thread(path.read_bytes)

    async def rewards(self, run: LiveRun, number: RoundNumber, hold_s: float) -> RoundRewards:
        """Waits until a round has ended, and returns the round's rewards.

        hold_s: the longest wait in seconds. If the round is still open after the wait or was abandoned, the result has no
        rewards. Raises NotFound if the round does not exist or has no batch; Corrupt if a stored file of rewards has been
        changed.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + min(hold_s, self._hold_s)
        while True:
            heard = self._run_bell.rings
            record = await self._store.round(run.id, number)
            if record is None or not record.rollouts:
                raise NotFound(what="round with rewards", name=str(RoundName(run.id, number)))
            left_s = 0.0 if self._run_bell.closed else until_s - loop.time()
            if record.outcome is not RoundOutcome.OPEN or left_s <= 0:
                break
            await self._run_bell.wait(heard, left_s)
        if record.version is None:
            return RoundRewards(record, None)
        version = await self._store.version(run.id, record.version)
        assert version is not None  # it was written in the same transaction
        receipts = await self._store.receipts(run.id, number)
        members = {member.client: member for member in await self._store.clients()}
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
        return await asyncio.to_thread(read_rewards, StoredWeights(await self._blobs.path(digest), digest))


def _write(path: Path, content: bytes) -> Digest:
    path.write_bytes(content)
    return manifest_of(path).digest
