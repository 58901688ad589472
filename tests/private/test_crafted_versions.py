"""Attack 9 by invented members: a coordinator makes whole rounds by itself, so that a crafted version is a true sum."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from private.evil_coordinator import Coordinator, new_round, pins_of
from private.test_service import LAYOUT, SPEC, SmallClient
from support.private_members import NAMES, member_key
from support.tasks import task_of

from pluralllm.client.keeping.record_chain import SeenRun, SeenVersion
from pluralllm.client.link.tasks import SignedRecord, Task
from pluralllm.client.private_rounds.pins import save_pins
from pluralllm.client.private_rounds.verification import Knowledge, Verification
from pluralllm.common.errors.private_rounds import AggregateDiffers
from pluralllm.common.private_rounds.messages import Confirmation, Reveal
from pluralllm.common.private_rounds.peer_keys import fingerprint, public_der
from pluralllm.common.private_rounds.roster import Roster, RosterChange, RosterEntry
from pluralllm.common.private_rounds.round_sum import leftover_streams, open_round
from pluralllm.common.private_rounds.round_terms import terms_of
from pluralllm.common.private_rounds.sum_files import sum_of, write_from_sum
from pluralllm.common.private_rounds.transcript import Transcript
from pluralllm.common.trust.version_record import VersionRecord, record_sha256
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.weights.layout import write_weights
from pluralllm.common.weights.server_optimizer import server_optimizer
from pluralllm.common.weights.stored_weights import StoredWeights
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId

RUN = RunId("r")
VICTIM = "zoe"
SIZE = 4
TASK = task_of(SPEC, round_number=3)


def key_of(name: str) -> str:
    return fingerprint(public_der(member_key(name)))


def roster_of(keys: Mapping[str, str], later: Iterable[RosterEntry] = ()) -> Roster:
    """Returns a roster with these keys, by name, and what came later."""
    entries = [
        RosterEntry(number, name, "G", key, RosterChange.ADDED) for number, (name, key) in enumerate(keys.items(), 1)
    ]
    return Roster().extended((*entries, *later))


@dataclass
class Lies:
    """All that a coordinator shows of a run: a crafted version 1, and version 2 as the sum of a round that it has made up."""

    files: Mapping[Digest, bytes]
    records: tuple[VersionRecord, ...]
    transcript: bytes
    masked: Mapping[str, bytes]

    async def version_records(self, run: RunId, first: int, last: int) -> list[SignedRecord]:
        return [SignedRecord(record, b"") for record in self.records if first <= record.version <= last]

    async def fetch_model(self, run: RunId, version: int, digest: Digest, most: int, path: Path) -> None:
        path.write_bytes(self.files[digest])  # noqa: ASYNC240

    @property
    def calls(self) -> Any:
        async def transcript(run: RunId, number: int, most: int) -> bytes:
            return self.transcript

        async def masked(run: RunId, number: int, name: str, size: int) -> bytes:
            return self.masked[name]

        return SimpleNamespace(transcript=transcript, masked=masked)

    @property
    def task(self) -> Task:
        newest = self.records[-1]
        return replace(
            TASK, base_version=newest.version, base_digest=newest.digest, base_record_sha256=record_sha256(newest)
        )

    def victim(
        self,
        folder: Path,
        pinned: Mapping[str, str],
        roster: Roster,
        colluders: int = 1,
        name: str = VICTIM,
        own: str = "",
    ) -> Verification:
        """Returns the check of a client that has seen these records. own: its own key; empty for that of VICTIM."""
        folder.mkdir()
        save_pins(folder / "peers.toml", pinned)
        versions = {
            record.version: SeenVersion(record_sha256(record), record.digest, record.round, len(record.updates))
            for record in self.records
        }
        history: Any = SimpleNamespace(
            seen=lambda run: SeenRun(versions), updates_of=lambda run, version: len(self.records[version].updates)
        )

        async def follow(head: bytes) -> Roster:
            return roster

        key = own or key_of(VICTIM)
        peers: Any = SimpleNamespace(name=name, follow=follow, with_own=lambda pins: {**pins, name: key})
        check = Verification(
            Knowledge(folder, "values", history, peers, folder / "peers.toml", colluders, 1.0), cast(Any, self)
        )
        check._calls = self.calls
        return check


def made_up(folder: Path, names: tuple[str, ...] = NAMES[:SIZE]) -> Lies:
    """Plays a round of members on a crafted version 1."""
    folder.mkdir()
    values = np.random.default_rng(7).normal(0, 5, LAYOUT.values).astype(np.float32)
    base = write_weights(folder / "crafted", LAYOUT, [values])
    zero = VersionRecord(RUN, ModelVersion(0), RoundNumber(0), Digest("0" * 64), TASK.spec_sha256, "", (), 0.0)
    crafted = replace(
        zero, version=ModelVersion(1), round=RoundNumber(1), digest=base.digest, parent_sha256=record_sha256(zero)
    )
    terms = terms_of(
        SPEC,
        federation="values",
        run=RUN,
        number=RoundNumber(2),
        spec_sha256=TASK.spec_sha256,
        base_version=crafted.version,
        base_digest=crafted.digest,
        base_record_sha256=record_sha256(crafted),
        roster_head=bytes(32),
    )
    coordinator = new_round(folder / "clients", len(names), terms=terms, hidden_among=2)
    for client in coordinator.clients.values():
        client.__class__ = SmallClient
    assert coordinator.run() == {}
    return published(folder, coordinator, zero, crafted)


def published(folder: Path, coordinator: Coordinator, zero: VersionRecord, crafted: VersionRecord) -> Lies:
    """Returns what a coordinator shows after a round on version 1."""
    fixed = coordinator.fixed
    opened = open_round(fixed, coordinator.dealt, coordinator.latest(Reveal))
    updates = []
    for name in fixed.in_sum:
        (folder / name).write_bytes(coordinator.masked[name])
        updates.append(StoredWeights(folder / name, manifest_of(folder / name).digest))
    summed = sum_of(SPEC, fixed, leftover_streams(fixed, opened), updates)
    base, optimizer = StoredWeights(folder / "crafted", crafted.digest), server_optimizer(SPEC.aggregation)
    (made,), tail = write_from_sum(base, (), summed, LAYOUT, optimizer, [folder / "next"])
    transcript = Transcript.of(fixed, opened, coordinator.dealt, coordinator.latest(Confirmation), tail)
    (folder / "transcript").write_bytes(transcript.to_json())
    newest = replace(
        crafted,
        version=ModelVersion(2),
        round=RoundNumber(2),
        digest=made.digest,
        parent_sha256=record_sha256(crafted),
        updates=tuple((ClientId(one.name), Digest(one.digest.hex()), 1) for one in fixed.updates),
        transcript=manifest_of(folder / "transcript").digest,
    )
    files = {crafted.digest: (folder / "crafted").read_bytes()}
    return Lies(files, (zero, crafted, newest), transcript.to_json(), coordinator.masked)


@pytest.fixture(scope="module")
def lies(tmp_path_factory: pytest.TempPathFactory) -> Lies:
    return made_up(tmp_path_factory.mktemp("lies") / "r")


async def test_9_a_version_that_only_strangers_have_summed_does_not_count_as_checked(
    tmp_path: Path, lies: Lies
) -> None:
    """The last step is a true sum, and the version before it is crafted: no honest member has looked at it."""
    invented = pins_of(NAMES[:SIZE])
    stranger = lies.victim(tmp_path / "stranger", pins_of(("hana", "gus", "fay")), roster_of(invented))
    assert not await stranger.is_checked(lies.task, SPEC)
    assert not (tmp_path / "stranger" / "evidence").exists(), "it is no lie that can be proven"
    few = lies.victim(tmp_path / "few", pins_of(("ann", "hana")), roster_of(invented))
    assert not await few.is_checked(lies.task, SPEC), "one of them may collude"
    known = lies.victim(tmp_path / "known", pins_of(("ann", "bob")), roster_of(invented))
    assert await known.is_checked(lies.task, SPEC), "one of two is honest, and has checked version 1 before it masked"
    alone = lies.victim(tmp_path / "alone", pins_of(("ann",)), roster_of(invented), colluders=0)
    assert await alone.is_checked(lies.task, SPEC)
    itself = lies.victim(tmp_path / "itself", {}, roster_of(invented), name="ann", own=invented["ann"])
    assert await itself.is_checked(lies.task, SPEC), "it has masked for this base version itself"


async def test_9_a_round_that_names_the_client_itself_with_another_key_is_a_lie_that_is_kept(
    tmp_path: Path, lies: Lies
) -> None:
    true = roster_of({**pins_of(NAMES[:SIZE]), "ann": key_of(VICTIM)})
    ann = lies.victim(tmp_path / "ann", pins_of(("bob", "cleo", "dora")), true, name="ann")
    with pytest.raises(AggregateDiffers, match="ann"):
        await ann.is_checked(lies.task, SPEC)
    assert (tmp_path / "ann" / "evidence" / "r.2" / "transcript.json").is_file()


async def test_9_a_member_with_another_key_than_the_pinned_one_is_a_lie_unless_it_had_that_key_once(
    tmp_path: Path, lies: Lies
) -> None:
    """A partner that has got a new key, and was pinned again, must not make the versions before look crafted."""
    first, new = pins_of(NAMES[:SIZE]), key_of("hana")
    later = (
        RosterEntry(SIZE + 1, "bob", "G", first["bob"], RosterChange.REMOVED),
        RosterEntry(SIZE + 2, "bob", "G", new, RosterChange.REPLACED),
    )
    pinned = {**pins_of(("ann", "cleo")), "bob": new}
    renewed = lies.victim(tmp_path / "renewed", pinned, roster_of(first, later))
    assert await renewed.is_checked(lies.task, SPEC)
    few = lies.victim(tmp_path / "few", {"ann": first["ann"], "bob": new}, roster_of(first, later))
    assert not await few.is_checked(lies.task, SPEC), "with its earlier key, bob counts as a stranger"
    forged = lies.victim(tmp_path / "forged", pinned, roster_of({**first, "bob": new}))
    with pytest.raises(AggregateDiffers, match="bob"):
        await forged.is_checked(lies.task, SPEC)
