"""Attacks on one round: on a plain update, on a masked one, on the coordinator's whole disk, and on sums.

The attack is the one that needs no seed: the attacker adds what it takes for the update of the victim to the base model, and
predicts. Its prior is the same attack with the update of another member in place of the victim's. A gain above the prior is
what the update says about its owner. The masked files come from a round of the real service.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leak.setting import Flat, Round, distance, predicted, trained_questions
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.predictor.data import GroupData
from pluralllm.common.private_rounds.dealing import pair_key
from pluralllm.common.private_rounds.masks import add_masks, opposite, pair_key_with_sign, self_stream_key
from pluralllm.common.private_rounds.transcript import Transcript
from pluralllm.common.weights.update_format import TAIL, update_format
from pluralllm.common.words.spec import RunSpec

CHANCE = 0.02  # a gain of at most so much is chance
DEVIATIONS = 4  # of the correlation of unrelated numbers, which is 1 / sqrt(number of values)
OTHERS = 2  # members whose updates are tried in place of the victim's, for the prior
NEEDLE_BYTES = 64

Numbers = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Seen:
    """The update of each member, by name, as an attacker sees it."""

    kind: str
    updates: Mapping[str, Flat]
    is_sum: bool = False  # a sum shows what it shows: it is reported, not judged


def leaks(spec: RunSpec, groups: Mapping[str, GroupData], attacked: Round, seen: Seen) -> dict[str, float | str]:
    """Returns mean distance, prior and gain over all victims, and the correlation of what is seen with the true update.

    The distances are over the questions that each group trained on. The correlation is the largest of all victims, in absolute
    value, beside the one that unrelated numbers have at most.
    """
    names = sorted(groups)
    reached, priors, bases, correlations = [], [], [], []
    for place, name in enumerate(names):
        data, trained = groups[name], trained_questions(spec, groups[name])

        def missed(update: Flat, data: GroupData = data, trained: Sequence[int] = trained) -> float:
            return distance(data, predicted(spec, attacked.base + update, data), trained)

        reached.append(missed(seen.updates[name]))
        others = [names[(place + step) % len(names)] for step in range(1, OTHERS + 1)]
        priors.append(float(np.mean([missed(seen.updates[other]) for other in others])))
        bases.append(missed(np.zeros_like(attacked.base)))
        correlations.append(abs(float(np.corrcoef(seen.updates[name], attacked.deltas[name])[0, 1])))
    limit = DEVIATIONS / float(np.sqrt(attacked.base.size))
    gains = np.array(priors) - np.array(reached)
    is_chance = float(gains.mean()) <= CHANCE and max(correlations) <= limit
    return {
        "kind": seen.kind,
        "distance": float(np.mean(reached)),
        "prior": float(np.mean(priors)),
        "base": float(np.mean(bases)),
        "gain": float(gains.mean()),
        "largest_gain": float(gains.max()),
        "correlation": max(correlations),
        "correlation_of_chance": limit,
        "verdict": "reported" if seen.is_sum else "at chance" if is_chance else "not at chance",
    }


def in_plain(attacked: Round) -> Seen:
    """Returns what the coordinator of plain rounds reads: each update. It is the positive control."""
    return Seen("one plain update", attacked.deltas)


def in_sums(attacked: Round, size: int) -> Seen:
    """Returns what a sum shows: for each victim the mean of its update and of the next ones in the order of names."""
    names = sorted(attacked.deltas)
    means = {}
    for place, name in enumerate(names):
        members = [names[(place + step) % len(names)] for step in range(size)]
        means[name] = np.mean([attacked.deltas[member] for member in members], axis=0).astype(np.float32)
    return Seen(f"the mean of {size}", means, is_sum=True)


def in_masks(numbers: Mapping[str, Numbers], attacked: Round, kind: str) -> Seen:
    """Returns what masked numbers look like as updates: scaled to the usual norm of an update, which the attacker knows.

    numbers: without the tail, by member.
    """
    usual = float(np.median([np.linalg.norm(delta) for delta in attacked.deltas.values()]))
    made = {}
    for name, masked in numbers.items():
        values = masked.view(np.int32).astype(np.float64)
        made[name] = (values * (usual / np.linalg.norm(values))).astype(np.float32)
    return Seen(kind, made)


# The coordinator's disk


def files_in(state: Path) -> Iterator[Path]:
    """Yields every file of a coordinator's state, the database included."""
    return (path for path in sorted(state.rglob("*")) if path.is_file())


def holds(state: Path, update: Flat) -> bool:
    """Returns whether a file of the state holds a piece of an update in plain."""
    middle = update.size // 2
    needle = update[middle : middle + NEEDLE_BYTES // 4].astype("<f4").tobytes()
    return any(needle in path.read_bytes() for path in files_in(state))


def transcript_in(state: Path) -> Transcript:
    """Returns the transcript of the only private round of a state. Raises StopIteration if there is none."""

    def found() -> Iterator[Transcript]:
        for path in files_in(state):
            body = path.read_bytes()
            if b'"own_masks"' in body and body.startswith(b"{"):
                try:
                    yield Transcript.from_json(body)
                except InvalidArgument:
                    continue

    return next(found())


def masked_in(state: Path, spec: RunSpec, transcript: Transcript) -> dict[str, Numbers]:
    """Returns the masked numbers of each update of a transcript, tail first, from the files of a state."""
    files = {path.name: path for path in files_in(state)}
    header = len(update_format(layout_for(spec), "ring32").header)
    return {
        update.name: np.frombuffer(files[update.digest.hex()].read_bytes(), "<u4", offset=header)
        for update in transcript.updates
    }


def stripped(transcript: Transcript, name: str, numbers: Numbers) -> Numbers:
    """Returns a member's masked numbers without every stream that the transcript gives away, tail first.

    Those are the member's own stream, and the streams that it shares with dealers whose updates are not in the sum.
    """
    fixed, opened = transcript.fixed, transcript.opened()
    index = fixed.index(name)
    streams = [(self_stream_key(opened.own[name], fixed.dealers_sha256, index), 1)]
    for outsider, mask in opened.masks.items():
        half, received = opened.halves[outsider, name], pair_key(mask, fixed.members_sha256, outsider, name)
        streams.append(pair_key_with_sign(half, received, fixed.dealers_sha256, index, fixed.index(outsider)))
    left = numbers.astype(np.uint32)
    add_masks(left, 0, opposite(streams))
    return left


def without_tail(numbers: Mapping[str, Numbers]) -> dict[str, Numbers]:
    return {name: one[TAIL:] for name, one in numbers.items()}
