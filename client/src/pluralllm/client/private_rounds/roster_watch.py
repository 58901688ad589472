"""The roster of peer keys, as this client has seen it. A later roster must continue it, and must have this client's own key.

A roster that does not is a lie of the coordinator, or comes from an old backup of its database. The client then takes part in no
private round until its owner has compared the roster with the other partners and has moved the file away.
"""

import asyncio
import datetime
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog

from pluralllm.client.link.tasks import RosterPage
from pluralllm.client.private_rounds.pins import load_pins, save_pins
from pluralllm.common.errors.private_rounds import RosterDiverged
from pluralllm.common.private_rounds.peer_keys import PeerKeyClaim, claim_of, fingerprint, public_der
from pluralllm.common.private_rounds.roster import FIRST_HEAD, Roster, RosterEntry
from pluralllm.common.process.files import damaged, read_state_as, write_durably
from pluralllm.common.process.threads import to_its_end
from pluralllm.common.trust.certificates import PrivateKey, key_from_pem
from pluralllm.common.trust.identity import Identity, peer_key
from pluralllm.common.words.spec import RunSpec

log = structlog.get_logger()

FILE = "roster.json"  # in the state directory
MAX_ENTRIES = 100_000
MEND = "restore it from a backup. Without it the next roster is compared with nothing but the pins"

FetchRoster = Callable[[int], Awaitable[RosterPage]]  # the sequence number after which entries are wanted


@dataclass(frozen=True, slots=True)
class SeenRoster:
    """The content of the file: all entries, and the complaint about a roster that does not continue them."""

    entries: tuple[RosterEntry, ...] = ()
    complaint: str = ""  # empty if there is none
    complained: str = ""  # UTC, RFC 3339


def read_roster(state: Path) -> tuple[Roster, SeenRoster]:
    """Returns the newest roster that this client has seen, and the content of its file. state: the state directory.

    Raises InvalidConfig if the file is damaged.
    """
    path = state / FILE
    if not path.is_file():
        return Roster(), SeenRoster()
    seen = read_state_as(path, SeenRoster, MEND)
    try:
        return Roster().extended(seen.entries), seen
    except RosterDiverged as error:
        raise damaged(path, error.problem, MEND) from error


class RosterWatch:
    """This client's peer key, and the roster that it has seen."""

    def __init__(
        self, state: Path, name: str, key: PrivateKey, fetch: FetchRoster, first_use_pins: Path | None = None
    ) -> None:
        """Reads the roster that an earlier process has seen.

        state: the state directory. name, key: this member and its peer key. fetch: asks the coordinator for entries.
        first_use_pins: the file to which each key that is seen first is added; None if only the partner pins.
        """
        self._state, self.name, self.key, self._fetch = state, name, key, fetch
        self._first_use_pins = first_use_pins
        self._following = asyncio.Lock()  # Hello, a round and the check of a version may follow at the same time
        self.roster, _ = read_roster(state)

    @classmethod
    def of(
        cls, state: Path, name: str, folder: Path, fetch: FetchRoster, first_use_pins: Path | None = None
    ) -> "RosterWatch":
        """Returns the watch of the member whose identity is in `folder`. Makes the peer key if there is none yet."""
        return cls(state, name, peer_key(folder), fetch, first_use_pins)

    def with_own(self, pins: Mapping[str, str]) -> dict[str, str]:
        """Returns the fingerprints of pinned members together with that of this client's own key."""
        return {**pins, self.name: fingerprint(public_der(self.key))}

    def claim(self, identity: Identity | None) -> PeerKeyClaim:
        """Returns the claim of the peer key, which Hello states. identity: with the present certificate; None in plain text."""
        if identity is None:
            return claim_of(self.key, "", self.name, None)
        return claim_of(self.key, identity.membership.federation, self.name, key_from_pem(identity.key_pem))

    def check(self, spec: RunSpec) -> None:
        """Raises RosterDiverged for a run with private rounds if this client has seen a roster that does not continue another."""
        if spec.private_rounds is None:
            return
        self.roster, seen = read_roster(self._state)  # the owner may have moved the file away
        if seen.complaint:
            raise RosterDiverged(problem=f"{seen.complaint} (seen on {seen.complained})")

    async def look(self, head: bytes | None, *, is_registered: bool) -> None:
        """Follows the roster, and complains in the log and in the file if it has diverged. The client goes on with its work.

        head: the one that the coordinator states; None if its release has no roster. is_registered: whether the coordinator has
        just accepted this client's key, so that the roster must have it.
        """
        if head is None and not self.roster.sequence:
            return
        try:
            await self.follow(head, is_registered=is_registered)
        except RosterDiverged as error:
            log.error(
                "roster.diverged", problem=error.problem, entries=self.roster.sequence, head=self.roster.head.hex()
            )

    async def follow(self, head: bytes | None, *, is_registered: bool = False) -> Roster:
        """Returns the roster with this head, or a later one, after fetching what is new and checking all of it.

        head: the one that the coordinator states; None if it states none any more.

        Raises RosterDiverged if the roster does not continue the one that this client has seen, or does not have this client's
        own key; the complaint stays in the file then. Raises the errors of the call.
        """
        async with self._following:
            old, seen = await asyncio.to_thread(read_roster, self._state)  # the owner may have changed the file
            try:
                entries = await self._new_entries(old, seen, head)
                roster = old.extended(entries)
                self._check_own_key(roster, is_registered=is_registered)
            except RosterDiverged as error:
                await to_its_end(self._write, seen.entries, error.problem)
                raise
            if entries:
                await to_its_end(self._write, (*seen.entries, *entries))
                log.info("roster.grown", entries=roster.sequence, members=len(roster.members), head=roster.head.hex())
            self.roster = roster
            if self._first_use_pins is not None:
                await to_its_end(self._pin_first_seen, roster, self._first_use_pins)
            return roster

    async def _new_entries(self, old: Roster, seen: SeenRoster, head: bytes | None) -> tuple[RosterEntry, ...]:
        """Fetches the entries after those that this client has seen. Raises RosterDiverged if they do not lead past `head`."""
        if head == old.head:
            return ()
        length = f"{old.sequence} entries"
        if head is None:
            raise RosterDiverged(problem=f"the coordinator shows none any more; this client has seen {length}")
        roster, entries, heads = old, list[RosterEntry](), _heads(seen.entries)
        while len(entries) < MAX_ENTRIES:
            page = await self._fetch(roster.sequence)
            for entry in page.entries:
                roster = roster.extended((entry,))
                heads.add(roster.head)
            entries += page.entries
            if page.head == roster.head or not page.entries:
                break
        if page.head != roster.head:
            raise RosterDiverged(problem=f"the coordinator's roster does not continue the {length} seen before")
        if head not in heads:
            raise RosterDiverged(problem="the coordinator has stated a head that is not in the roster that it shows")
        return tuple(entries)

    def _check_own_key(self, roster: Roster, *, is_registered: bool) -> None:
        """Raises RosterDiverged if this member has another key there, or none although the coordinator has accepted it."""
        own, present = fingerprint(public_der(self.key)), roster.fingerprint_of(self.name)
        if present not in (None, own):
            raise RosterDiverged(problem=f"it gives {self.name}, this client, the key {present} instead of its own")
        if present is None and is_registered:
            raise RosterDiverged(problem=f"it has no key of {self.name}, this client, which was accepted")

    def _pin_first_seen(self, roster: Roster, file: Path) -> None:
        pins = load_pins(file)
        news = {name: entry.fingerprint for name, entry in roster.members.items() if name not in (*pins, self.name)}
        if news:
            save_pins(file, pins | news)
            log.warning("peers.pinned_at_first_sight", names=sorted(news), file=str(file))

    def _write(self, entries: tuple[RosterEntry, ...], complaint: str = "") -> None:
        """Keeps entries and a complaint beside what a command of the owner may have written since this client read the file."""
        _, kept = read_roster(self._state)
        longer, shorter = sorted((entries, kept.entries), key=len, reverse=True)
        if longer[: len(shorter)] != shorter:
            longer, complaint = kept.entries, complaint or "the coordinator has shown two rosters that do not agree"
        if complaint and not kept.complaint:
            now = datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds")
            kept = replace(kept, complaint=complaint, complained=now)
        write_durably(self._state / FILE, json.dumps(asdict(replace(kept, entries=longer))).encode())


def _heads(entries: Iterable[RosterEntry]) -> set[bytes]:
    """Returns the head after each of the entries, and the one before the first."""
    heads = [FIRST_HEAD]
    for entry in entries:
        heads.append(entry.head_after(heads[-1]))
    return set(heads)
