"""One run in memory: its state, and the database rows that the state came from."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pluralllm.common.errors.tree import DigestMismatch
from pluralllm.common.predictor.architecture import (
    update_layout,
)
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.weights.layout import Layout, rewards_layout
from pluralllm.common.weights.update_format import UpdateFormat, update_format
from pluralllm.common.words.ids import ClientId, RoundNumber, RunId
from pluralllm.common.words.names import TaskKind, TaskName
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.machine import step
from pluralllm.server.rounds.state import Phase, Run
from pluralllm.server.runs.changes import change_of
from pluralllm.server.runs.checkpoints import Content, Remembered, checkpoint_of
from pluralllm.server.storage.store import Change, Checkpoint, ReceiptRecord, RoundRecord, RunRecord, Store


@dataclass(frozen=True, slots=True)
class Progress:
    """The changeable state of a run: the round machine's state, the number of the last event, and two database rows.

    The rows are the row of the newest model version and the row of the newest round.
    """

    state: Run
    newest: VersionRecord  # row of the current version
    sequence: int = 0  # number of the last event written
    open_round: RoundRecord | None = None  # row of the open round, or of the last one; None if the run is over
    updated_s: float = 0.0  # time of the last event
    averaging: ev.Average | None = None  # the averaging that the open round waits for


@dataclass(frozen=True, slots=True)
class Step:
    """One durable step of a run: an event, the run's progress before and after it, and the effects that follow from it."""

    event: ev.Event
    before: Progress
    after: Progress
    effects: tuple[ev.Effect, ...]

    @property
    def ends_round(self) -> bool:
        """Whether a round, or the whole run, has ended with the step."""
        return any(isinstance(effect, ev.Publish | ev.Abandon | ev.EndRun) for effect in self.effects)

    @property
    def ends_run(self) -> bool:
        return any(isinstance(effect, ev.EndRun) for effect in self.effects)

    @property
    def needs_checkpoint(self) -> bool:
        """Whether the run gets a checkpoint with the step: no round is open after it, or the run is over."""
        return (self.ends_round and self.after.averaging is None) or self.after.state.phase is Phase.ENDED


@dataclass(frozen=True, slots=True, eq=False)
class LiveRun:
    """A run in the coordinator's memory. Only the inbox changes a run; other code only reads it."""

    record: RunRecord
    spec: RunSpec
    layout: Layout
    first: VersionRecord  # row of version 0
    progress: Progress
    _remembered: Remembered = field(default_factory=Remembered)
    # The receipts of the newest round, each with the time at which it was given. They are durable.
    _receipts: dict[ClientId, ReceiptRecord] = field(default_factory=dict)
    # The format of the updates of the newest round, by what it depends on: every update asks for it several times.
    _formats: dict[int, UpdateFormat] = field(default_factory=dict)

    @property
    def id(self) -> RunId:
        return self.record.id

    @property
    def state(self) -> Run:
        """The run's current state, which the round machine has made."""
        return self.progress.state

    @property
    def newest(self) -> VersionRecord:
        """The database row of the run's current model version."""
        return self.progress.newest

    @property
    def sequence(self) -> int:
        """The number of the last event in the run's event log; 0 before the first event."""
        return self.progress.sequence

    @property
    def examples(self) -> Mapping[ClientId, int]:
        """The number of examples (training questions) in each client's first update of the run.

        Every later update of the client must have the same number.
        """
        return self._remembered.examples

    @property
    def noise(self) -> Mapping[ClientId, NoiseStatement | None]:
        """The weakest statement about noise with which each client has sent an update; None if one came without a statement."""
        return self._remembered.noise

    @property
    def update_format(self) -> UpdateFormat:
        """The format that the file of an update must have: names, shapes and types of the tensors.

        In a run that asks for rewards, the format depends on the batch of texts in the open round. If updates are terms of
        sums, it depends on the base version.
        """
        asks = self.spec.rewards is not None
        key = self.state.candidates if asks else self.state.version
        if (required := self._formats.get(key)) is None:
            layout = rewards_layout(key) if asks else update_layout(self.spec, key)
            required = update_format(
                layout, self.spec.updates.encoding if self.spec.private_rounds is None else "ring32"
            )
            self._formats.clear()
            self._formats[key] = required
        return required

    @property
    def base(self) -> VersionRecord:
        """The database row of the model version that clients work with now.

        In a training run, clients work with the newest version. In a run that asks for rewards, clients calculate rewards with
        version 0.
        """
        return self.newest if self.spec.rewards is None else self.first

    @property
    def is_over(self) -> bool:
        return self.state.phase is Phase.ENDED

    @property
    def work_kind(self) -> TaskKind:
        """The kind of the tasks that clients do while a round collects updates: training or rewards."""
        return TaskKind.TRAIN if self.spec.rewards is None else TaskKind.REWARD

    def task_name(self, client: ClientId) -> TaskName:
        """Returns the name of the client's task in the open round or evaluation. The same task always has the same name."""
        kind = TaskKind.EVALUATE if self.state.phase is Phase.EVALUATING else self.work_kind
        return TaskName(self.id, RoundNumber(self.state.round), kind, client)

    async def receipt(self, store: Store, number: RoundNumber, client: ClientId) -> ReceiptRecord | None:
        """Returns a client's receipt in a round, or None if it has none.

        The store is asked for earlier rounds, and for all rounds of a run that is over.
        """
        if number >= self.state.round and not self.is_over:
            return self._receipts.get(client) if number == self.state.round else None
        return await store.receipt(self.id, number, client)

    def take(self, step: Step) -> None:
        """Takes a step that has just become durable. Only the inbox calls this, in the order of the steps; a test looks."""
        object.__setattr__(self, "progress", step.after)
        self._remembered.note(step.event, step.effects)
        for effect in step.effects:
            match effect:
                case ev.OpenRound() | ev.EndRun():
                    self._receipts.clear()
                case ev.RecordReceipt(number, receipt):
                    self._receipts[receipt.client] = ReceiptRecord(self.id, number, receipt, step.event.at_s)
                case ev.WithdrawReceipt(client=client):
                    self._receipts.pop(client, None)
                case _:
                    pass

    def checkpoint_after(self, steps: Sequence[Step]) -> Checkpoint:
        """Returns the checkpoint of the run after steps that it has not taken yet; of the run as it is if there are none."""
        remembered = self._remembered.copy()
        for taken in steps:
            remembered.note(taken.event, taken.effects)
        last = steps[-1].after if steps else self.progress
        return checkpoint_of(self.id, last.sequence, Content(last.state, last.updated_s, remembered))


def next_step(record: RunRecord, before: Progress, event: ev.Event, body: bytes = b"") -> tuple[Step, Change] | None:
    """Passes one event to the round machine, and returns the step and the rows that the store must write for it.

    record: the run's row. before: the run's progress before the event. body: the message that a member of a private round has
    sent, if the event is its arrival. Returns None if the event changes nothing. Raises a subclass of Refused if the round
    machine does not allow the event; DigestMismatch if the event is the arrival of another message.
    """
    state, effects = step(before.state, event)
    if not effects and state == before.state:
        return None
    for effect in effects:
        if isinstance(effect, ev.RecordMessage) and (got := hashlib.sha256(body).hexdigest()) != effect.digest:
            raise DigestMismatch(what=f"the {effect.step} of {effect.client}", expected=effect.digest, got=got)
    sequence = before.sequence + 1
    change = change_of(record, state, sequence, event, effects, before.open_round, before.newest, body)
    after = Progress(
        state=state,
        newest=change.versions[-1] if change.versions else before.newest,
        sequence=sequence,
        open_round=_row_of_round(before, state, change),
        updated_s=event.at_s,
        averaging=averaging_after(before.averaging, state, effects),
    )
    return Step(event, before, after, effects), change


def _row_of_round(before: Progress, state: Run, change: Change) -> RoundRecord | None:
    if state.phase is Phase.ENDED:
        return None
    return change.rounds[-1] if change.rounds else before.open_round


def averaging_after(before: ev.Average | None, state: Run, effects: tuple[ev.Effect, ...]) -> ev.Average | None:
    """Returns the averaging that a run waits for after an event. before: the one that it waited for before the event."""
    if state.phase is not Phase.AGGREGATING:
        return None
    return next((effect for effect in effects if isinstance(effect, ev.Average)), before)


def first_state(record: RunRecord, spec: RunSpec, first: VersionRecord) -> Run:
    """Returns a run's state before the first event. `first` is the row of model version 0."""
    return Run(
        id=record.id,
        seed=spec.seed,
        rounds=spec.rounds,
        policy=spec.round,
        named_groups=len(spec.groups.train) + len(spec.groups.held_out),
        model_digest=first.digest,
        aggregation=spec.aggregation,
        limits_members=spec.limits_members,
        rewards=None if spec.rewards is None else spec.rewards.aggregation,
        private=spec.private_rounds,
        gives_up_small_sums=spec.gives_up_small_sums,
        closes=spec.closes,
    )
