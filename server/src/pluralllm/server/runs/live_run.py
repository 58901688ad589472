"""One run in memory: its machine state, what the state was built from, and how both are recovered from the log."""

import asyncio
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from pluralllm.common.errors.tree import Corrupt
from pluralllm.common.predictor.architecture import initial_values, layout_for, parameters
from pluralllm.common.process.files import storage_errors
from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.weights.layout import Layout, rewards_layout, write_weights
from pluralllm.common.weights.update_format import UpdateFormat, update_format
from pluralllm.common.words.ids import ClientId, RoundNumber, RunId
from pluralllm.common.words.names import TaskKind, TaskName
from pluralllm.common.words.spec import RunSpec, parse_spec
from pluralllm.server.process.instruments import note_step
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.machine import step
from pluralllm.server.rounds.state import Phase, Run
from pluralllm.server.runs.changes import change_of
from pluralllm.server.runs.round_traces import trace_step
from pluralllm.server.storage.store import RoundRecord, RunRecord, Store, VersionRecord

REPLAY_PAGE = 1000


@dataclass(slots=True)
class LiveRun:
    """Owned by the coordinator; only `dispatch` changes state."""

    record: RunRecord
    spec: RunSpec
    layout: Layout
    state: Run
    first: VersionRecord  # row of version 0
    newest: VersionRecord  # row of the current version
    sequence: int = 0  # of the last event written
    open_round: RoundRecord | None = None
    examples: dict[ClientId, int] = field(default_factory=dict)  # of each client's first update: constant over a run
    averaging: "asyncio.Task[None] | None" = None
    updated_s: float = 0.0  # of the last event
    trouble: str = ""  # what keeps the coordinator itself from going on, for people
    received_bytes: int = 0  # since this process started
    sent_bytes: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def id(self) -> RunId:
        return self.record.id

    @property
    def update_format(self) -> UpdateFormat:
        """What an update's file must look like; of a run that asks for rewards, in the open round."""
        layout = self.layout if self.spec.rewards is None else rewards_layout(self.state.candidates)
        return update_format(layout, self.spec.updates.encoding)

    @property
    def base(self) -> VersionRecord:
        """The version that clients work with now: the newest, or the one that a run of rewards scores with."""
        return self.newest if self.spec.rewards is None else self.first

    @property
    def is_over(self) -> bool:
        return self.state.phase is Phase.ENDED

    async def dispatch(self, store: Store, event: ev.Event) -> tuple[ev.Effect, ...] | None:
        """Feeds one event to the machine; durable when it returns. None if it changes nothing: then nothing is written.

        Raises what the machine refuses or the store fails with.
        """
        async with self.lock:
            before = self.state
            after, effects = step(self.state, event)
            if after == before and not effects:
                return None
            change = change_of(self.record, after, self.sequence + 1, event, effects, self.open_round, self.newest)
            await store.apply(change)
            self.state, self.sequence, self.updated_s = after, change.sequence, event.at_s
            for round_record in change.rounds:
                self.open_round = round_record
            for version in change.versions:
                self.newest = version
            for row in change.receipts:
                self.examples.setdefault(row.receipt.client, row.receipt.examples)
            note_step(before, after, event, effects)
            trace_step(self.record, self.open_round, event, effects)
            return effects

    @property
    def work_kind(self) -> TaskKind:
        """The kind of this run's tasks while a round collects updates."""
        return TaskKind.TRAIN if self.spec.rewards is None else TaskKind.REWARD

    def task_name(self, client: ClientId) -> TaskName:
        """The client's task in the open round or evaluation: the same name for the same work."""
        kind = TaskKind.EVALUATE if self.state.phase is Phase.EVALUATING else self.work_kind
        return TaskName(self.id, RoundNumber(self.state.round), kind, client)


def first_state(record: RunRecord, spec: RunSpec, first: VersionRecord) -> Run:
    """A run before its first event."""
    return Run(
        id=record.id,
        seed=spec.seed,
        rounds=spec.rounds,
        policy=spec.round,
        named_groups=len(spec.groups.train) + len(spec.groups.held_out),
        model_digest=first.digest,
        aggregation=spec.aggregation,
        rewards=None if spec.rewards is None else spec.rewards.aggregation,
    )


async def recover(store: Store, record: RunRecord) -> tuple[LiveRun, ev.Average | None]:
    """A run from its log, by the same `step`; and the averaging that was under way. Raises Corrupt if spec and hash differ."""
    spec = parse_spec(record.spec_json, f"of run {record.id}")
    got = hashlib.sha256(record.spec_json).hexdigest()  # of the bytes: a later release may know more keys
    if got != record.spec_sha256:
        raise Corrupt(what=f"the stored spec of run {record.id}", expected=record.spec_sha256, got=got)
    versions = await store.versions(record.id)
    state, sequence, pending = first_state(record, spec, versions[0]), 0, None
    updated_s = record.created_s
    while page := await store.events(record.id, sequence, REPLAY_PAGE):
        for row in page:
            state, effects = step(state, ev.event_from_facts(row.kind, dict(row.facts)))
            sequence, updated_s = row.sequence, row.at_s
            pending = next((effect for effect in effects if isinstance(effect, ev.Average)), pending)
    run = LiveRun(record, spec, layout_for(spec), state, versions[0], versions[-1], sequence, updated_s=updated_s)
    run.open_round = await store.round(record.id, state.round) if state.round else None
    for version in reversed(versions):
        run.examples |= {client: examples for client, _, examples in version.updates}
    if state.round:
        for row_ in await store.receipts(record.id, RoundNumber(state.round)):
            run.examples.setdefault(row_.receipt.client, row_.receipt.examples)
    return run, pending if state.phase is Phase.AGGREGATING else None


def write_first_version(draft: Path, spec: RunSpec) -> Manifest:
    """Version 0: the seed's initial values. Raises StorageFull."""
    found = parameters(spec.predictor, spec.embedding.dimension)
    with storage_errors("the first model version"):
        return write_weights(draft, layout_for(spec), (initial_values(p, spec.seed).ravel() for p in found))
