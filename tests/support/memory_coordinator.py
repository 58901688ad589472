"""The objects of one coordinator process over a store in memory, which a test drives by direct calls, with a fake clock."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from support.coordinator_harness import QUESTIONS, small_spec, write_delta
from support.memory_blobs import MemoryBlobs
from support.memory_store import Hook, MemoryStore, Tables, nothing
from support.private_members import digest, member_key

from pluralllm.common.private_rounds.peer_keys import public_der
from pluralllm.common.process.clock import FakeClock
from pluralllm.common.rewards.rollout_batch import Candidates, write_rollouts
from pluralllm.common.weights.chunks import CHUNK_BYTES, Manifest
from pluralllm.common.weights.layout import rewards_layout, write_weights
from pluralllm.common.words.ids import ClientId, GroupName
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.members import door
from pluralllm.server.members.access import Principal
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.assembly import Assembly
from pluralllm.server.runs.coordinator import Timing
from pluralllm.server.runs.expected import Possible
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.sessions import Session
from pluralllm.server.runs.uploads import Uploads
from pluralllm.server.storage.store import ReceiptRecord

TIMING = Timing(lease_s=20.0, silence_s=5.0, tick_s=0.25, keep_updates=3, look_s=0.0)


class KnownKeys:
    """A roster in which every member has the peer key that private_members.py gives it."""

    head = digest("roster")

    def peer_key(self, name: ClientId) -> bytes | None:
        return public_der(member_key(name))


class MemoryCoordinator:
    """One process of a coordinator. Its loop does not run: a test calls `look` instead.

    The tables, the folder and the clock outlive the process: `next_process` makes another process over them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: FakeClock | None = None,
        tables: Tables | None = None,
        before: Hook = nothing,
        timing: Timing = TIMING,
        possible: Possible | None = None,
    ) -> None:
        self.folder, self.clock, self.tables, self.before = folder, clock or FakeClock(), tables or Tables(), before
        self.fail_stop = FailStop()
        for name in ("blobs", "scratch", "uploads"):
            (folder / name).mkdir(exist_ok=True)
        self.parts = Assembly(
            MemoryStore(self.tables, self._before),
            MemoryBlobs(folder / "blobs", self._before),
            self.clock,
            self.fail_stop,
            timing,
            scratch=folder / "scratch",
            uploads=Uploads(folder / "uploads"),
            poll_hold_s=20.0,
            federation="values",
            peer_keys=KnownKeys(),
            possible=possible,
        )
        self.coordinator, self.intake = self.parts.coordinator, self.parts.intake

    async def _before(self, operation: str, about: object) -> None:
        await self.before(operation, about)

    async def next_process(self) -> "MemoryCoordinator":
        """Returns the next process over the same tables, after its recovery."""
        following = MemoryCoordinator(self.folder, clock=self.clock, tables=self.tables)
        await following.coordinator.start()
        await following.stop()
        return following

    async def stop(self) -> None:
        """Ends all tasks of the process."""
        await self.parts.tasks.stop()

    async def new_run(self, run_id: str = "r", **changes: Any) -> LiveRun:
        """Creates and starts a run of two clients."""
        run = await self.coordinator.create_run(run_id, small_spec(**changes).canonical_json())
        await self.coordinator.dispatch(run, ev.RunStarted(self.clock.now_s()))
        return run

    async def hello(
        self,
        name: str,
        questions: int = QUESTIONS,
        group: str = "",
        role: GroupRole = GroupRole.TRAIN,
        noise: NoiseStatement | None = None,
        *,
        is_ready: bool = True,
    ) -> Session:
        """Opens a session of a client."""
        session = Session(
            client=ClientId(name),
            instance="first",
            group=GroupName(group or f"group of {name}"),
            role=role,
            training_questions=questions,
            software_version="test",
            last_seen_s=self.clock.now_s(),
            noise=noise,
            is_ready_for_private_rounds=is_ready,
        )
        await self.coordinator.say_hello(session)
        return session

    async def look(self, run: LiveRun) -> None:
        """Lets the coordinator look at a run once, as its loop does."""
        await self.coordinator.advance(run)

    async def collecting(self, *clients: str, **changes: Any) -> LiveRun:
        """Returns a run whose first round is open, with a slot for each client."""
        count = {"min_clients": len(clients), "target_clients": len(clients)}
        run = await self.new_run(**{**changes, "round": {**count, **changes.get("round", {})}})
        for client in clients:
            await self.hello(client)
        await self.look(run)
        while run.state.phase is Phase.EVALUATING:
            client = run.state.active[0]
            score = ev.Score(client, GroupName(client), GroupRole.TRAIN, run.state.version, 0.5, 0.5, None, 9)
            await self.coordinator.dispatch(run, ev.EvaluationArrived(self.clock.now_s(), score))
        await self.look(run)
        assert run.state.phase is Phase.COLLECTING
        return run

    async def rewarding(self, *clients: str, batch: Sequence[Candidates]) -> LiveRun:
        """Returns a run that asks for rewards, whose first round is open for a batch, with a slot for each client."""
        source = await self.new_run("source")
        await self.coordinator.dispatch(source, ev.RunCancelled(self.clock.now_s(), "only its first version is needed"))
        rewards = {"source": "runs/source/models/0", "model_digest": source.first.digest}
        count = {"min_clients": len(clients), "target_clients": len(clients)}
        run = await self.new_run("r", rewards=rewards, round=count)
        for client in clients:
            await self.hello(client)
        await self.parts.rewards.ask(run, write_rollouts(batch))
        await self.look(run)
        return run

    # Updates

    def update(self, run: LiveRun, seed: int = 1, shares: Sequence[float] = ()) -> "Update":
        return Update(self.folder / f"update-{seed}", run, seed, shares)

    async def announce(
        self,
        run: LiveRun,
        client: str,
        update: "Update",
        examples: int = QUESTIONS,
        noise: NoiseStatement | None = None,
        **metrics: float,
    ) -> ReceiptRecord | frozenset[int]:
        task, spec = run.task_name(ClientId(client)), run.record.spec_sha256
        return await self.intake.begin(task, spec, run.base.digest, update.manifest, examples, metrics, noise=noise)

    async def send(self, run: LiveRun, client: str, update: "Update") -> None:
        """Sends all chunks of an announced update."""
        for index in range(update.manifest.chunks):
            await self.intake.put(run.task_name(ClientId(client)), update.manifest.digest, index, update.chunk(index))

    async def deliver(
        self,
        run: LiveRun,
        client: str,
        update: "Update",
        examples: int = QUESTIONS,
        noise: NoiseStatement | None = None,
        **metrics: float,
    ) -> ReceiptRecord:
        """Announces, sends and commits an update."""
        task = run.task_name(ClientId(client))
        await self.announce(run, client, update, examples, noise, **metrics)
        await self.send(run, client, update)
        return await self.intake.commit(task, update.manifest.digest)


class Update:
    """A well-formed update of a run, in a file. In a run that asks for rewards, it holds the given shares."""

    def __init__(self, path: Path, run: LiveRun, seed: int, shares: Sequence[float] = ()) -> None:
        layout = rewards_layout(len(shares))
        self.manifest: Manifest = (
            write_weights(path, layout, [np.array(shares, np.float32)])
            if shares
            else write_delta(path, run.spec, seed, run.state.version)
        )
        self._content = path.read_bytes()

    def chunk(self, index: int) -> bytes:
        """Returns the bytes of one chunk."""
        return self._content[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


class Hooks:
    """The hook of a store and its blobs, which a test changes while it runs. It notes the operations that were called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self._raises: dict[str, Exception] = {}

    async def __call__(self, operation: str, about: object) -> None:
        self.calls.append((operation, about))
        if (error := self._raises.get(operation)) is not None:
            raise error

    @contextmanager
    def failing(self, operation: str, error: Exception) -> Iterator[None]:
        """Makes an operation fail within the block."""
        self._raises[operation] = error
        try:
            yield
        finally:
            del self._raises[operation]


@contextmanager
def as_caller(principal: Principal) -> Iterator[None]:
    """Makes a member the caller of the calls within the block, as the check of a real call does."""
    token = door._caller.set(principal)
    try:
        yield
    finally:
        door._caller.reset(token)


async def settle() -> None:
    """Lets the other tasks go on until they wait for the clock, for a ring or for a thread."""
    for _ in range(50):
        await asyncio.sleep(0.001)


async def until(holds: Callable[[], bool]) -> None:
    """Waits until a condition holds, at most twenty seconds."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - any piece of the coordinator may make it hold
            await asyncio.sleep(0.001)
