"""Attack 7 over the network: a coordinator that swaps keys, goes back, or shows two rosters, and members that notice it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.coordinator_harness import Served, serving
from typer.testing import CliRunner

from pluralllm.client import peers_view
from pluralllm.client.__main__ import app
from pluralllm.client.link.tasks import Greeting, Introduction
from pluralllm.client.link.transport import Transport
from pluralllm.client.private_rounds.pins import load_pins
from pluralllm.client.private_rounds.roster_watch import FILE, RosterWatch
from pluralllm.common.errors.private_rounds import PeerKeyDiffers, RosterDiverged
from pluralllm.common.private_rounds.peer_keys import fingerprint, public_der
from pluralllm.common.private_rounds.roster import Roster, RosterChange, RosterEntry
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.trust.certificates import new_key
from pluralllm.common.trust.identity import Identity, load_identity
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.members.access import Principal
from pluralllm.server.storage.membership import RosterRow

ROOT = Principal(ClientId("admin"), MemberRole.ADMIN)


class Member:
    """One client with its identity, its peer key and the roster that it has seen."""

    def __init__(self, identity: Identity, state: Path) -> None:
        self.identity, self.state = identity, state
        self.transport = Transport.of_member(identity)
        name = identity.membership.name
        self.watch = RosterWatch.of(state, name, identity.folder, self.transport.roster)

    async def hello(self) -> Greeting:
        claim = self.watch.claim(self.identity)
        said = Introduction(self.identity.membership.group, GroupRole.TRAIN, 50, peer_key=claim)
        return await self.transport.hello(said)

    async def connect(self) -> bytes:
        """Says Hello and follows the roster. Returns the roster's head."""
        greeting = await self.hello()
        return (await self.watch.follow(greeting.roster_head, is_registered=True)).head


class Federation:
    """A coordinator with the members ann and ben, who have seen one roster."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.served, self.folder = served, folder
        self.log = served.registry.roster

    async def member(self, name: str) -> Member:
        await self.served.member(name, MemberRole.CLIENT)
        identity = load_identity(self.served.identities / name, "").at(self.served.address)
        (state := self.folder / name).mkdir(exist_ok=True)
        return Member(identity, state)

    def show(self, entries: Sequence[RosterEntry]) -> None:
        """Lets the coordinator show another roster than the one that it has stored."""
        self.log._rows, self.log._roster = [], Roster()
        self.log.note([RosterRow(entry, b"", b"") for entry in entries])


@pytest.fixture
async def federation(tmp_path: Path) -> AsyncIterator[Federation]:
    async with serving(tmp_path / "state", SystemClock()) as served:
        yield Federation(served, tmp_path)


async def test_members_see_one_roster_and_pin_by_its_digest(federation: Federation) -> None:
    ann, ben = await federation.member("ann"), await federation.member("ben")
    await ann.connect()
    heads = {await ben.connect(), await ann.connect(), federation.log.head}
    assert len(heads) == 1
    (digest,) = (head.hex() for head in heads)
    command = ["peers", "pin", "--roster", digest, "--names", "ann,ben", "--state-dir", str(ann.state)]
    pinned = CliRunner().invoke(app, command)
    assert pinned.exit_code == 0, pinned.output
    own = [fingerprint(public_der(member.watch.key)) for member in (ann, ben)]
    assert load_pins(ann.state / "peers.toml") == dict(zip(("ann", "ben"), own, strict=True))


async def test_the_command_asks_the_coordinator_for_the_newest_roster(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await federation.member("ann")
    await ann.connect()
    await (await federation.member("ben")).connect()
    folder, address = str(ann.identity.folder), federation.served.address
    monkeypatch.setenv("PLURALLLM_CLIENT_IDENTITY", folder)
    monkeypatch.setenv("PLURALLLM_CLIENT_COORDINATOR", address)
    # A log that is configured for good would hide the lines that later tests of this process look for.
    monkeypatch.setattr(peers_view, "configure_logs", lambda **_: None)
    command = ["peers", "--state-dir", str(ann.state), "--json"]
    shown = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert shown.exit_code == 0, shown.output
    assert federation.log.head.hex() in shown.output


async def test_another_key_of_a_member_is_refused_by_the_coordinator_until_a_reset(federation: Federation) -> None:
    ann = await federation.member("ann")
    await ann.connect()
    ann.watch.key = new_key()
    with pytest.raises(PeerKeyDiffers, match="pluralllm members reset-peer-key ann"):
        await ann.hello()
    await federation.log.reset(ROOT, ClientId("ann"))
    greeting = await ann.hello()
    assert greeting.roster_head == federation.log.head
    assert federation.log.entries(0, 9)[-1].change is RosterChange.REPLACED


async def test_a_coordinator_that_shows_an_older_roster_or_another_key_of_ones_own_is_noticed(
    federation: Federation,
) -> None:
    ann, ben = await federation.member("ann"), await federation.member("ben")
    await ann.connect()
    await ben.connect()
    true = federation.log.entries(0, 9)
    federation.show(true[:1])
    with pytest.raises(RosterDiverged, match="does not continue the 2 entries"):
        await ben.watch.follow(federation.log.head)
    federation.show([replace(true[0], fingerprint="f" * 64), true[1]])
    ann.state.joinpath(FILE).unlink()  # even a client that has forgotten the roster knows its own key
    with pytest.raises(RosterDiverged, match="gives ann, this client, the key fff"):
        await ann.watch.follow(federation.log.head)


async def test_two_rosters_for_two_members_give_two_digests(federation: Federation) -> None:
    ann, ben = await federation.member("ann"), await federation.member("ben")
    await ann.connect()
    first = federation.log.head
    federation.show([RosterEntry(1, "mallory", "M", "f" * 64, RosterChange.ADDED)])
    second = await ben.connect()
    assert first != second  # the partners read these out; the terms of a round name them, too
    with pytest.raises(RosterDiverged, match="does not continue"):
        await ann.watch.follow(federation.log.head)
