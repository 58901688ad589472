"""A coordinator that presents version records, honestly or not, to the functions with which a client follows its history."""

import dataclasses
import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from support.coordinator_harness import small_spec
from support.tasks import task_of

from pluralllm.client.link.tasks import SignedRecord, Task
from pluralllm.common.trust.certificates import new_key
from pluralllm.common.trust.record_signatures import RecordSigner, RecordVerifier
from pluralllm.common.trust.version_record import VersionRecord, record_sha256
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.names import TaskKind

FEDERATION = "fed"
RUN, SPEC = RunId("r"), small_spec(rounds=20)
SIGNER = RecordSigner(FEDERATION, new_key())
STRANGER = RecordSigner(FEDERATION, new_key())
VERIFIER = RecordVerifier(FEDERATION, SIGNER.public_der)
CLIENT = ClientId("ann")
OTHERS = (ClientId("ben"), ClientId("cleo"), ClientId("dora"))


def digest(*what: object) -> Digest:
    return Digest(hashlib.sha256(repr(what).encode()).hexdigest())


def own_update(number: int) -> tuple[Digest, int]:
    """Returns digest and examples of the update that the client sends in a round."""
    return digest("update", CLIENT, number), 50


def chain_of(length: int, label: object = "true", base: Sequence[VersionRecord] = ()) -> list[VersionRecord]:
    """Returns the records of versions 0 to `length` of a run in which every client takes part in each round.

    label: makes the models different from those of another chain. base: the first records, if they are not to be made.
    """
    records = list(base)
    while len(records) <= length:
        number = len(records)
        updates = [(name, digest("update", name, number), 40) for name in OTHERS] if number else []
        updates = [(CLIENT, *own_update(number)), *updates] if number else []
        parent = record_sha256(records[-1]) if records else ""
        records.append(
            VersionRecord(
                run=RUN,
                version=ModelVersion(number),
                round=RoundNumber(number),
                digest=digest("model", label, number),
                spec_sha256=SPEC.sha256(),
                parent_sha256=parent,
                updates=tuple(updates),
                created_s=0.0,
            )
        )
    return records


def rechained(records: Sequence[VersionRecord]) -> list[VersionRecord]:
    """Returns the records with the hashes of their parents computed anew, so that they are a chain again."""
    chain: list[VersionRecord] = []
    for record in records:
        chain.append(replace(record, parent_sha256=record_sha256(chain[-1])) if chain else record)
    return chain


def train_task(record: VersionRecord, **changes: Any) -> Task:
    """Returns the task of the round after a version, as a coordinator with this record states it."""
    values: dict[str, Any] = {
        "round_number": record.version + 1,
        "base_version": record.version,
        "base_digest": record.digest,
        "base_record_sha256": record_sha256(record),
    }
    return task_of(SPEC, TaskKind.TRAIN, **{**values, **changes})


@dataclass
class Presented:
    """The task and the records that a coordinator presents to one client, and the calls that the client made for records."""

    task: Task
    records: list[VersionRecord]
    sign: Callable[[VersionRecord], bytes] = lambda record: SIGNER.of_version(RUN, record_sha256(record))
    page: int = 4  # records in one answer
    calls: list[tuple[int, int]] = field(default_factory=list)

    async def fetch(self, run: RunId, first: ModelVersion, last: ModelVersion) -> list[SignedRecord]:
        """Answers ListVersionRecords."""
        assert run == RUN
        self.calls.append((first, last))
        return [SignedRecord(record, self.sign(record)) for record in self.records[first : last + 1][: self.page]]


def honest(length: int) -> Presented:
    """Returns what an honest coordinator presents for the round after version `length`."""
    records = chain_of(length)
    return Presented(train_task(records[-1]), records)


def _another_digest(at: int, _: int, rng: random.Random) -> Presented:
    """The client gets other weights, under the true record's hash."""
    shown = honest(at)
    return replace(shown, task=dataclasses.replace(shown.task, base_digest=digest("forged", rng.random())))


def _another_record(at: int, _: int, rng: random.Random) -> Presented:
    """The client gets other weights and a record that names them, under the hash of the true record."""
    shown = honest(at)
    forged = replace(shown.records[-1], digest=digest("forged", rng.random()))
    return replace(
        shown, task=dataclasses.replace(shown.task, base_digest=forged.digest), records=[*shown.records[:-1], forged]
    )


def _another_base(at: int, seen: int, rng: random.Random) -> Presented:
    """The client alone gets another chain, well signed, that branches off before the newest version that it has seen.

    A client that has seen no version cannot notice this alone: it compares its head with others.
    """
    cut = rng.randrange(max(seen, 0) + 1)
    records = chain_of(at, rng.random(), chain_of(at)[:cut])
    return Presented(train_task(records[-1]), records)


def _own_update_left_out(at: int, _: int, rng: random.Random) -> Presented:
    """A version lacks the client's acknowledged update; all that follows is well signed."""
    records = chain_of(at)
    cut = rng.randrange(1, at + 1)
    records[cut] = replace(records[cut], updates=records[cut].updates[1:])
    records = rechained(records)
    return Presented(train_task(records[-1]), records)


def _own_update_changed(at: int, _: int, rng: random.Random) -> Presented:
    """A version has another update in the client's name, or the same with another number of examples."""
    records = chain_of(at)
    cut = rng.randrange(1, at + 1)
    changed, examples = rng.choice([(digest("forged"), 50), (own_update(cut)[0], rng.randrange(51, 9999))])
    records[cut] = replace(records[cut], updates=((CLIENT, changed, examples), *records[cut].updates[1:]))
    records = rechained(records)
    return Presented(train_task(records[-1]), records)


def _gap(at: int, _: int, rng: random.Random) -> Presented:
    """A record is missing: the answer ends before it, or the next record is in its place."""
    shown = honest(at)
    cut = rng.randrange(at + 1)
    ends = rng.random() < 0.5
    return replace(shown, records=shown.records[:cut] if ends else shown.records[:cut] + shown.records[cut + 1 :])


def _mixed(at: int, seen: int, rng: random.Random) -> Presented:
    """One record belongs to another chain. Each is well signed, but the record after it follows the true one."""
    shown = honest(at)
    cut = rng.randrange(seen + 1, at + 1)
    shown.records[cut] = replace(shown.records[cut], digest=digest("forged", rng.random()))
    return shown


def _replay(at: int, seen: int, rng: random.Random) -> Presented:
    """An older version is the base of a later round: in place of a later version, or, if a later one has been seen, as itself.

    A client that has seen no later version cannot notice the second yet; it does when it sees the later version.
    """
    shown = honest(at)
    old = shown.records[rng.randrange(at)]
    task = dataclasses.replace(shown.task, base_digest=old.digest, base_record_sha256=record_sha256(old))
    if old.version < seen:
        task = dataclasses.replace(task, base_version=old.version, round=RoundNumber(rng.choice([at + 1, at + 9])))
    return replace(shown, task=task)


def _unsigned(at: int, _: int, rng: random.Random) -> Presented:
    """A forged chain has no signature, or that of the true records."""
    records = chain_of(at, rng.random())
    true = chain_of(at)
    sign = rng.choice([lambda _: b"", lambda record: SIGNER.of_version(RUN, record_sha256(true[record.version]))])
    return Presented(train_task(records[-1]), records, sign)


def _signed_by_another(at: int, _: int, rng: random.Random) -> Presented:
    """A forged chain is signed with another key, for another run or for another federation."""
    records = chain_of(at, rng.random())
    other = RecordSigner("other", SIGNER._key)
    sign = rng.choice(
        [
            lambda record: STRANGER.of_version(RUN, record_sha256(record)),
            lambda record: SIGNER.of_version(RunId("s"), record_sha256(record)),
            lambda record: other.of_version(RUN, record_sha256(record)),
            lambda record: SIGNER.of_audit_head(record.version, record_sha256(record)),
        ]
    )
    return Presented(train_task(records[-1]), records, sign)


def _another_spec(at: int, _: int, rng: random.Random) -> Presented:
    """A chain of another run spec."""
    records = [replace(record, spec_sha256=digest("spec", rng.random())) for record in chain_of(at)]
    return Presented(train_task(rechained(records)[-1]), rechained(records))


def _malformed(at: int, _: int, rng: random.Random) -> Presented:
    """A record that no coordinator would make."""
    records = chain_of(at)
    last = records[-1]
    twice = (*last.updates[:1], *last.updates)
    changes: dict[str, Any] = rng.choice(
        [
            {"digest": Digest("../../evil")},
            {"digest": Digest(last.digest.upper())},
            {"updates": ()},
            {"updates": last.updates[::-1]},
            {"updates": twice},
            {"updates": (*last.updates[:-1], (ClientId("Zo\u00eb"), digest("x"), 5))},
            {"updates": (*last.updates[:-1], (OTHERS[-1], digest("x"), rng.choice([0, -5])))},
            {"weights": (rng.choice([float("nan"), float("inf"), -1.0]), 0.1, 0.1, 0.1)},
            {"weights": (0.5, 0.5)},
            {"scales": (1.0, 1.0, 1.0, rng.choice([1.5, float("nan"), -0.1]))},
            {"moments": (Digest("x"),)},
            {"round": RoundNumber(rng.choice([0, -1, at + 1, at - 1]))},
            {"version": ModelVersion(at + rng.choice([1, -1, 5]))},
            {"parent_sha256": rng.choice(["", "x", "0" * 64])},
        ]
    )
    records[-1] = replace(last, **changes)
    task = train_task(last, base_digest=records[-1].digest, base_record_sha256=record_sha256(records[-1]))
    return Presented(task, records)


def _too_far(at: int, _: int, rng: random.Random) -> Presented:
    """A version with a number that no round can have reached, or below 0."""
    shown = honest(at)
    version = rng.choice([-1, at + 2, SPEC.rounds + 1, 10**9])
    number = RoundNumber(rng.choice([at + 1, 10**9]) if version > SPEC.rounds else at + 1)
    return replace(shown, task=dataclasses.replace(shown.task, base_version=ModelVersion(version), round=number))


# Each makes a forgery of version `at` for a client that has seen the versions up to `seen`.
FORGERIES: dict[str, Callable[[int, int, random.Random], Presented]] = {
    "wrong digest": _another_digest,
    "wrong record": _another_record,
    "other base for one client": _another_base,
    "own update left out": _own_update_left_out,
    "own update changed": _own_update_changed,
    "gap": _gap,
    "mixed chains": _mixed,
    "replay": _replay,
    "unsigned": _unsigned,
    "signed by another": _signed_by_another,
    "other spec": _another_spec,
    "malformed": _malformed,
    "too far": _too_far,
}
