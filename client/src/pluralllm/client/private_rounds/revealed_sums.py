"""The sums that this client has revealed, by base version and over all runs: two sums must not differ by a few members.

The difference of two sums is exact, and so is what several sums give together. Two runs of one spec, or a round that was
abandoned and repeated without one member, would else show the update of the members in which the sums differ. The same holds for
the scores of the members that add one: a coordinator that asks for a member's score between two rounds would see it as the
difference of the two sums of scores. The file is beside the history, and only grows.
"""

import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pluralllm.client.private_rounds.membership import Myself
from pluralllm.common.errors.private_rounds import SumsTooClose
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.private_rounds.thresholds import is_far_enough
from pluralllm.common.process.files import RESTORE, create_file, damaged, storage_errors, sync_directory

FILE = "revealed_sums.jsonl"


class RevealedSum(BaseModel):
    """A sum that this client has revealed its shares for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str  # digest of the model that its updates start from
    run: str
    round: int
    names: tuple[str, ...]  # of the members whose updates are in the sum, sorted
    scores: tuple[str, ...] = ()  # of those of them whose scores are in it, sorted


_SUM = TypeAdapter(RevealedSum)


class RevealedSums:
    """The file of the revealed sums, in the folder of the history."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def check(self, me: Myself, names: Collection[str], scores: Collection[str] = ()) -> None:
        """Checks that a sum may be revealed after those that were revealed on the same base version.

        me: with the terms of the sum's round. names: of the members whose updates are in the sum. scores: of those of them whose
        scores are in it.
        Raises SumsTooClose if the sum has other members than an earlier one, or other scores, and too few pinned members among
        those in which they differ, or if three or more sums together might tell about fewer; InvalidConfig if the file is
        damaged.
        """
        base = me.terms.base_digest.hex()
        earlier = list(self._on(base))
        parts = [
            *_told_apart(frozenset(names), {frozenset(one.names) for one in earlier}),
            *_told_apart(frozenset(scores), {frozenset(one.scores) for one in earlier}),
        ]
        fewest = min((sum(name == me.name or name in me.pins for name in part) for part in parts), default=None)
        if fewest is not None and not is_far_enough(
            pinned_in_difference=fewest, colluders=me.colluders, hidden_among=me.hidden_among
        ):
            raise SumsTooClose(base=base, trusted=max(0, fewest - me.colluders), needed=me.hidden_among)

    def note(self, me: Myself, names: Collection[str], scores: Collection[str] = ()) -> None:
        """Adds a sum. It is durable when the method returns. Call this before the shares leave. Raises StorageFull."""
        terms = me.terms
        new = RevealedSum(
            base=terms.base_digest.hex(),
            run=terms.run,
            round=terms.round,
            names=tuple(sorted(names)),
            scores=tuple(sorted(scores)),
        )
        if new in self._on(new.base):
            return
        with storage_errors("the list of revealed sums"):
            create_file(self._path)
            with self._path.open("r+b") as file:
                end = file.read().rfind(b"\n") + 1
                file.truncate(end)  # the rest of a line whose writing was interrupted
                file.seek(end)
                file.write(json.dumps(new.model_dump(mode="json"), separators=(",", ":")).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            sync_directory(self._path.parent)

    def _on(self, base: str) -> Iterator[RevealedSum]:
        """Yields the sums on a base version. Raises InvalidConfig if the file is damaged, because a lost line would be unsafe."""
        if not self._path.exists():
            return
        content = self._path.read_bytes()
        for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines()):
            try:
                one = _SUM.validate_json(line)
            except ValidationError as error:
                raise self._damaged(number) from error
            if one.base == base:
                yield one

    def _damaged(self, number: int) -> InvalidConfig:
        return damaged(self._path, f"line {number + 1} is no sum", RESTORE)


def _told_apart(new: frozenset[str], earlier: set[frozenset[str]]) -> list[frozenset[str]]:
    """Returns the members that a new sum and earlier ones might tell about, in parts none of which may be small.

    Those are the members in which two sums differ. From three sums on, they are the classes of members that are in the same ones
    of the sums as well: nobody can tell the members of a class apart by adding and subtracting the sums.
    """
    parts = [new ^ one for one in earlier if one != new]
    if new in earlier or len(earlier) < 2:
        return parts
    classes = defaultdict[tuple[bool, ...], set[str]](set)
    for name in new.union(*earlier):
        classes[tuple(name in one for one in (new, *earlier))].add(name)
    return [*parts, *(frozenset(names) for names in classes.values())]
