"""A coordinator that serves on loopback in a thread of its own, and the code that keeps its run going whatever a call did."""

import asyncio
import contextlib
import dataclasses
import logging
import shutil
import sqlite3
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
import structlog
from fuzz.good_requests import GUEST, RATER, SCORER, TRAINERS, Situation
from support.coordinator_harness import BOOTSTRAP, HandClient, small_spec, write_delta
from support.coordinator_thread import InThread, serving_in_thread

from pluralllm.common.private_rounds.peer_keys import PeerKeyClaim, endorsed, public_der
from pluralllm.common.rewards.rollout_batch import Candidates, write_rollouts
from pluralllm.common.trust.certificates import key_from_pem, make_request, new_key
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.wire.channels import blocking_channel, enrolment_channel
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.members.access import Principal
from pluralllm.server.members.invite_order import InviteOrder
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.storage.membership import MemberState
from pluralllm.v1 import federation_pb2, operations_pb2

T = TypeVar("T")
LIMIT_S = 30.0
OLD_RUNS = 30
ENDED = "over"  # a run that was cancelled before it began
SETTLED_S = 0.01
STRANGER = ""  # calls the enrolment port without a membership
PEOPLE: Mapping[str, MemberRole] = {
    **dict.fromkeys((*TRAINERS, SCORER, RATER), MemberRole.CLIENT),
    "olga": MemberRole.OBSERVER,
    "admin": MemberRole.ADMIN,
}
SETTINGS: dict[str, Any] = {"poll_hold_s": 0.01, "chunk_idle_s": 2.0, "joins_per_minute": 10_000_000}
SETTINGS |= {"calls_per_second": 10_000_000, "hellos_per_minute": 10_000_000}
SETTINGS |= {"page_remote_listen": "127.0.0.1:0"}  # without it there are no links to the page
SPEC = small_spec(
    groups={"train": [f"group of {name}" for name in TRAINERS]}, round={"min_clients": 3, "target_clients": 3}
)
SCORED = small_spec(groups={"train": [f"group of {SCORER}"]}, round={"min_clients": 1, "target_clients": 1})
BATCH = write_rollouts([Candidates("Which?", ("this", "that"), (3, 1)), Candidates("How?", ("so", "thus"))])
Snapshot = dict[str, Any]


class World:
    """One coordinator and its clients; the methods are for the thread of the test."""

    def __init__(self, folder: Path, coordinator: InThread) -> None:
        self._folder, self._coordinator, self._served = folder, coordinator, coordinator.served
        self._state = folder / "state"
        self._database = sqlite3.connect(self._state / "coordinator.sqlite3", timeout=LIMIT_S)
        self._clients: dict[str, HandClient] = {}
        self._channels: dict[str, grpc.Channel] = {}
        self._guest_key, self._next_key = new_key(), new_key()
        self._guest_token = ""
        self.runs = 0  # the number of runs made so far
        self._first: LiveRun | None = None
        self._scored: LiveRun | None = None
        self._rated: LiveRun | None = None
        self._task = federation_pb2.Task()
        self._rest: Snapshot | None = None  # the state while nothing is in progress
        self._uploaded = False
        self._now: Situation | None = None
        self._seen_version, self._seen = -1, Snapshot()
        self._update = folder / "update"
        self._manifest = write_delta(self._update, SPEC, 1)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the coordinator's loop."""
        return self._coordinator.call(work)

    def channel(self, who: str) -> grpc.Channel:
        """Returns a channel to the main port for a member, or to the enrolment port for the stranger."""
        if who not in self._channels:
            if who == STRANGER:
                authority = self._served.registry.authority.root_pem
                self._channels[who] = enrolment_channel(self._served.enrolment_address, authority)
            else:
                self._channels[who] = blocking_channel(self.call(self._served.member(who, PEOPLE[who])))
        return self._channels[who]

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self._database.close()

    # State

    def snapshot(self) -> Snapshot:
        """Returns all state that a call may change, except for the audit log and the list of refusals."""
        files = {
            str(path): path.stat().st_size for part in ("blobs", "uploads", "scratch") for path in self._files(part)
        }
        states = {run.id: dataclasses.replace(run.state, refusals=()) for run in self._served.parts.runs.all()}
        sessions = [(name, self._served.parts.sessions.get(ClientId(name))) for name in PEOPLE]
        instances = {name: session.instance for name, session in sessions if session is not None}
        return {**self._tables(), "files": files, "states": states, "instances": instances}

    def _tables(self) -> Snapshot:
        """Reads the tables, and reads them again if anybody has written since."""
        (version,) = self._database.execute("PRAGMA data_version").fetchone()
        if version != self._seen_version:
            tables = self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            rows = {name: self._database.execute(f'SELECT * FROM "{name}"').fetchall() for (name,) in tables}
            del rows["audit_log"]
            rows["events"] = [row for row in rows["events"] if "UpdateRefused" not in row]
            self._seen_version, self._seen = version, rows
        return self._seen

    def settled(self) -> Snapshot:
        """Returns the state after the work has ended that accepted calls began."""
        before = self.snapshot()
        for _ in range(500):
            self.call(asyncio.sleep(SETTLED_S))
            after = self.snapshot()
            if after == before:
                return after
            before = after
        raise AssertionError("the coordinator does not come to rest")

    def _files(self, part: str) -> Iterator[Path]:
        return (path for path in (self._state / part).rglob("*") if path.is_file())

    # Progress

    def ready(self, *, uploaded: bool) -> Snapshot:
        """Makes all people members, opens a round, announces an update (or uploads it), and leaves a score open."""
        if self._rest is None or uploaded > self._uploaded:
            self.call(self._heal(uploaded=uploaded))
            self._rest, self._uploaded, self._now = self.settled(), uploaded, self._look()
        return self._rest

    def stir(self) -> None:
        """Notes that a call has changed something and may still do so."""
        self._rest = None

    async def _heal(self, *, uploaded: bool) -> None:
        for name in PEOPLE:
            await self._readmit(name)
        if not self._served.registry.roster.entries(0, 1):
            await self._register_peer_key(TRAINERS[0])
        if not any(invite.name == GUEST for invite in self._served.registry.open_invites()):
            await self._invite_guest()
        await self._served.create(ENDED, SPEC, start=False)
        await self._cancel(self._served.parts.runs.get(ENDED))
        for run in self._served.parts.runs.all():
            if run not in (self._first, self._scored, self._rated) and run.state.phase not in (
                Phase.CREATED,
                Phase.ENDED,
            ):
                await self._cancel(run)  # such a run would take the clients away
        if self._first is None or not self._is_open(self._first):
            self._first = await self._anew(self._first, SPEC)
            tasks = [await self._clients[name].task() for name in TRAINERS]
            for name, task in zip(TRAINERS, tasks, strict=True):  # version 0 is scored before a round opens
                await self._clients[name].evaluate(task)
            for name in TRAINERS:
                while (task := await self._clients[name].task()).kind != federation_pb2.TASK_KIND_TRAIN:
                    pass
                self._task = self._task if name != TRAINERS[0] else task
        if self._scored is None or self._scored.state.phase is not Phase.EVALUATING or self._scored.state.away:
            self._scored = await self._anew(self._scored, SCORED)
            await self._clients[SCORER].task()
        if self._rated is None or self._rated.state.phase is not Phase.COLLECTING or not self._rated.state.active:
            self._rated = await self._anew(self._rated, await self._rewards_spec())
            request = operations_pb2.AskRewardsRequest(name=f"runs/{self._rated.id}", rollouts_json=BATCH)
            await self._served.operations.AskRewards(request, timeout=LIMIT_S)
            await self._clients[RATER].task()
        ann = self._clients[TRAINERS[0]]
        await ann.begin(self._task, self._manifest)
        if uploaded:
            await ann.put(self._task, self._update, self._manifest, range(self._manifest.chunks))

    async def _rewards_spec(self) -> RunSpec:
        assert self._first is not None
        rewards = {"source": f"runs/{self._first.id}/models/0", "model_digest": self._first.first.digest}
        policy = {"min_clients": 1, "target_clients": 1}
        return small_spec(groups={"train": [f"group of {RATER}"]}, round=policy, rewards=rewards)

    async def _readmit(self, name: str) -> None:
        registry, role = self._served.registry, PEOPLE[name]
        member = next((member for member in registry.members() if member.name == name), None)
        if member is not None and registry.state_of(member) is not MemberState.ACTIVE:
            shutil.rmtree(self._served.identities / name)
            for channels in (self._served.channels, self._channels):
                channels.pop(name, None)
            self._clients.pop(name, None)
        if role is not MemberRole.CLIENT:
            await self._served.member(name, role)
        elif name not in self._clients:
            self._clients[name] = await self._served.client(name)
        else:
            session = self._served.parts.sessions.get(ClientId(name))
            client = self._clients[name]
            if session is None or (session.instance, session.training_questions) != (client.instance, client.questions):
                await client.hello()

    async def _register_peer_key(self, name: str) -> None:
        identity, key = load_identity(self._served.identities / name, ""), new_key()
        said = (self._served.registry.authority.federation, name, public_der(key))
        claim = PeerKeyClaim(public_der(key), endorsed(key_from_pem(identity.key_pem), *said), endorsed(key, *said))
        await self._served.registry.roster.register(Principal(ClientId(name), MemberRole.CLIENT), "G", claim)

    async def _invite_guest(self) -> None:
        order = InviteOrder(GUEST, MemberRole.CLIENT, f"group of {GUEST}")
        if any(member.name == GUEST for member in self._served.registry.members()):
            with contextlib.suppress(Exception):
                await self._served.registry.revoke(BOOTSTRAP, GUEST, "")
        self._guest_key = new_key()
        _, self._guest_token = await self._served.registry.invite(BOOTSTRAP, order)

    def _is_open(self, run: LiveRun) -> bool:
        state = run.state
        return (
            state.phase is Phase.COLLECTING
            and not (state.paused or state.away or state.excluded or state.receipts)
            and state.cohort == TRAINERS
        )

    async def _anew(self, old: LiveRun | None, spec: Any) -> LiveRun:
        if old is not None and not old.is_over:
            await self._cancel(old)
        self.runs += 1
        await self._served.create(name := f"run-{self.runs:04}", spec)
        return self._served.parts.runs.get(name)

    async def _cancel(self, run: LiveRun) -> None:
        coordinator = self._served.coordinator
        await coordinator.dispatch(run, ev.RunCancelled(self._served.clock.now_s(), "made anew"))

    def situation(self) -> Situation:
        """Returns the facts that a caller may know now."""
        self.ready(uploaded=False)
        assert self._now is not None
        return self._now

    def _look(self) -> Situation:
        assert self._first is not None
        assert self._scored is not None
        assert self._rated is not None
        return Situation(
            run=self._first.id,
            scored_run=self._scored.id,
            scored_task=str(self._scored.task_name(ClientId(SCORER))),
            rated_run=self._rated.id,
            rated_task=str(self._rated.task_name(ClientId(RATER))),
            rollouts_json=BATCH,
            next_run=f"made-{self.runs:04}",
            ended_run=ENDED,
            task=self._task,
            manifest=self._manifest,
            update=self._update.read_bytes(),
            spec_json=SPEC.canonical_json(),
            generation=self._served.parts.generation,
            token=self._guest_token,
            requests_der=(make_request(self._guest_key, GUEST), make_request(self._next_key, TRAINERS[0])),
            chain_pem=(self._served.identities / TRAINERS[0] / "credentials.pem").read_bytes(),
        )


@contextlib.contextmanager
def a_world(folder: Path) -> Iterator[World]:
    """Runs a coordinator in a thread until the block ends."""
    with serving_in_thread(folder / "state", **SETTINGS) as coordinator:
        world = World(folder, coordinator)
        # This hides thousands of refusals.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        try:
            yield world
        finally:
            structlog.reset_defaults()
            world.close()


class Worlds:
    """One world after another, because the end of a run takes longer the more runs a coordinator has had."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = contextlib.ExitStack()
        self._now: World | None = None
        self._made = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def young(self) -> World:
        if self._now is None or self._now.runs > OLD_RUNS:
            self._open.close()
            self._made += 1
            (folder := self._folder / str(self._made)).mkdir()
            self._now = self._open.enter_context(a_world(folder))
        return self._now
