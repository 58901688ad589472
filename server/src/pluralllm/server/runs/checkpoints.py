"""The state of a run at the end of a round as one row, so that a start does not replay the whole event log.

The event log is the truth. A checkpoint is written in the transaction that ends a round. A start reads it, checks its hash and
replays the events after it. A checkpoint of another release's format is left out: the log is replayed from its first event. The
command `verify` always replays from the first event, and compares.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Self

from pydantic import TypeAdapter, ValidationError

from pluralllm.common.errors.tree import Corrupt
from pluralllm.common.words.ids import ClientId, Digest, RunId
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Run
from pluralllm.server.storage.store import Checkpoint

FORMAT = 8  # of the content. A test fails if the content changes and this number does not


@dataclass(slots=True)
class Remembered:
    """The facts that a run remembers of its members besides the round machine's state."""

    examples: dict[ClientId, int] = field(default_factory=dict)  # in each client's first update
    noise: dict[ClientId, NoiseStatement | None] = field(default_factory=dict)  # the weakest statement of each client

    def note(self, event: ev.Event, effects: tuple[ev.Effect, ...]) -> None:
        """Notes what an event of the run tells of a member whose update was accepted."""
        for effect in effects:
            if isinstance(effect, ev.RecordReceipt) and isinstance(event, ev.UpdateArrived):
                client = effect.receipt.client
                self.examples.setdefault(client, effect.receipt.examples)
                before = self.noise.get(client, event.noise)
                self.noise[client] = None if before is None or event.noise is None else before.weaker(event.noise)

    def copy(self) -> Self:
        return type(self)(dict(self.examples), dict(self.noise))


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a checkpoint."""

    state: Run
    updated_s: float  # time of the last event
    remembered: Remembered


CONTENT = TypeAdapter(Content)


def checkpoint_of(run: RunId, sequence: int, content: Content) -> Checkpoint:
    """Returns the row. sequence: number of the last event that the content has seen."""
    text = CONTENT.dump_json(content).decode()
    return Checkpoint(run, sequence, FORMAT, text, Digest(hashlib.sha256(text.encode()).hexdigest()))


def content_of(checkpoint: Checkpoint) -> Content | None:
    """Returns the content of a row; None if the row is of another release's format.

    Raises Corrupt if the row is not what was written.
    """
    sha256 = hashlib.sha256(checkpoint.content.encode()).hexdigest()
    what = f"the checkpoint of run {checkpoint.run}"
    if sha256 != checkpoint.sha256:
        raise Corrupt(what=what, expected=checkpoint.sha256, got=sha256)
    if checkpoint.format != FORMAT:
        return None
    try:
        content = CONTENT.validate_json(checkpoint.content)
    except ValidationError as error:
        raise Corrupt(what=what, expected=f"a state of format {FORMAT}", got="another content") from error
    if content.state.id != checkpoint.run:
        raise Corrupt(what=what, expected=checkpoint.run, got=content.state.id)
    return content
