"""Attack 7 of the design: a client believes no roster that does not continue its own, or that has another key of its own."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.process_harness import process_spec

from pluralllm.client.link.tasks import RosterPage
from pluralllm.client.private_rounds.pins import load_pins, save_pins
from pluralllm.client.private_rounds.roster_watch import FILE, RosterWatch, read_roster
from pluralllm.common.errors.private_rounds import RosterDiverged
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.private_rounds.peer_keys import fingerprint, is_proven, public_der
from pluralllm.common.private_rounds.roster import Roster, RosterChange, RosterEntry
from pluralllm.common.trust.certificates import new_key
from pluralllm.common.words.private_rounds import PrivateRounds

PLAIN = process_spec(round={"min_clients": 4, "target_clients": 4}, aggregation={"max_examples": 1_024})
PRIVATE = PLAIN.model_copy(update={"private_rounds": PrivateRounds()})
KEY = new_key()
OWN = fingerprint(public_der(KEY))
ADDED, REMOVED, REPLACED = RosterChange


def entries(*names: str) -> list[RosterEntry]:
    """Returns a roster to which these members were added in this order; ann is the client with the key KEY."""
    keys = {"ann": OWN}
    return [
        RosterEntry(at, name, "G", keys.get(name, fingerprint(name.encode())), ADDED)
        for at, name in enumerate(names, 1)
    ]


class Coordinator:
    """A coordinator that shows a roster of entries, in pages of at most `size`."""

    def __init__(self, shown: Sequence[RosterEntry], size: int = 1000) -> None:
        self.shown, self.size, self.calls = list(shown), size, 0

    @property
    def head(self) -> bytes:
        head = b""
        for entry in self.shown:
            head = entry.head_after(head)
        return head

    async def fetch(self, after: int) -> RosterPage:
        self.calls += 1
        return RosterPage(tuple(self.shown[after : after + self.size]), self.head)


class Client:
    """The client ann, whose state directory outlives its processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def follow(self, coordinator: Coordinator, head: bytes | None = b"", **more: Any) -> Roster:
        """Follows a coordinator's roster in a new process. head: the stated one, if it is not the coordinator's."""
        watch = RosterWatch(self.folder, "ann", KEY, coordinator.fetch, **more)
        return await watch.follow(coordinator.head if head == b"" else head)

    async def refused(self, coordinator: Coordinator, problem: str, head: bytes | None = b"") -> None:
        before, _ = read_roster(self.folder)
        with pytest.raises(RosterDiverged, match=problem):
            await self.follow(coordinator, head)
        after, seen = read_roster(self.folder)
        assert after == before
        assert problem in seen.complaint
        (self.folder / FILE).unlink(missing_ok=True)


@pytest.fixture
async def ann(tmp_path: Path) -> Client:
    """A client that has seen a roster of ann and ben."""
    client = Client(tmp_path)
    await client.follow(Coordinator(entries("ann", "ben")))
    return client


async def test_a_roster_that_grows_is_followed_in_pages_and_kept(tmp_path: Path) -> None:
    client, names = Client(tmp_path), ("ann", "ben", "cat", "dan", "eve")
    first = await client.follow(Coordinator(entries(*names[:2])))
    assert first.sequence == 2
    longer = Coordinator(entries(*names), size=2)
    assert (await client.follow(longer)).head == longer.head == read_roster(tmp_path)[0].head
    assert longer.calls == 2
    assert (await client.follow(longer)).fingerprint_of("ann") == OWN
    assert longer.calls == 2  # nothing new


async def test_a_head_that_the_roster_has_passed_meanwhile_is_no_contradiction(ann: Client) -> None:
    longer = Coordinator(entries("ann", "ben", "cat"))
    for stated in (Roster().extended(entries("ann")).head, longer.head):
        assert (await ann.follow(longer, stated)).sequence == 3


async def test_two_that_follow_at_the_same_time_find_no_contradiction(tmp_path: Path) -> None:
    coordinator, asked, go = Coordinator(entries("ann", "ben", "cat")), asyncio.Event(), asyncio.Event()

    async def slowly(after: int) -> RosterPage:
        asked.set()
        await go.wait()
        return await coordinator.fetch(after)

    watch = RosterWatch(tmp_path, "ann", KEY, slowly)
    async with asyncio.timeout(10):
        following = [asyncio.create_task(watch.follow(coordinator.head)) for _ in range(2)]
        await asked.wait()
        watch.check(PRIVATE)  # a task that begins meanwhile
        go.set()
        rosters = await asyncio.gather(*following)
    assert [roster.head for roster in rosters] == [coordinator.head] * 2
    watch.check(PRIVATE)
    assert (watch.roster.sequence, coordinator.calls) == (3, 1), "the second one found nothing new"


async def test_a_command_that_follows_beside_the_daemon_is_no_contradiction(ann: Client) -> None:
    coordinator = Coordinator(entries("ann", "ben", "cat"))

    async def meanwhile(after: int) -> RosterPage:
        await ann.follow(coordinator)
        watch.check(PRIVATE)
        return await coordinator.fetch(after)

    watch = RosterWatch(ann.folder, "ann", KEY, meanwhile)
    assert (await watch.follow(coordinator.head)).sequence == 3
    watch.check(PRIVATE)
    assert (await watch.follow(coordinator.head)).sequence == 3


@pytest.mark.parametrize(
    ("beside", "length", "complaint"),
    [
        (["ann", "ben", "cat", "dan"], 4, ""),
        (["ann", "ben", "eve"], 3, "two rosters that do not agree"),
        (["ann"], 3, ""),
    ],
    ids=["longer", "another", "shorter"],
)
async def test_what_a_command_has_seen_meanwhile_is_not_lost(
    tmp_path: Path, beside: list[str], length: int, complaint: str
) -> None:
    coordinator, client = Coordinator(entries("ann", "ben", "cat")), Client(tmp_path)

    async def meanwhile(after: int) -> RosterPage:
        await client.follow(Coordinator(entries(*beside)))
        return await coordinator.fetch(after)

    await RosterWatch(tmp_path, "ann", KEY, meanwhile).follow(coordinator.head)
    roster, seen = read_roster(tmp_path)
    assert (roster.sequence, complaint in seen.complaint, bool(seen.complaint)) == (length, True, bool(complaint))


async def test_a_complaint_of_a_command_outlives_what_the_daemon_writes(tmp_path: Path, ann: Client) -> None:
    longer = Coordinator(entries("ann", "ben", "cat"))

    async def meanwhile(after: int) -> RosterPage:
        with pytest.raises(RosterDiverged):
            await ann.follow(Coordinator(entries("ann")))
        return await longer.fetch(after)

    watch = RosterWatch(tmp_path, "ann", KEY, meanwhile)
    assert (await watch.follow(longer.head)).sequence == 3
    with pytest.raises(RosterDiverged, match="shows none any more"):
        await watch.follow(None)
    with pytest.raises(RosterDiverged, match="does not continue the 2 entries"):
        watch.check(PRIVATE)  # the first complaint is the evidence


async def test_an_older_roster_is_refused(ann: Client) -> None:
    await ann.refused(Coordinator(entries("ann")), "does not continue the 2 entries seen before")


async def test_no_roster_where_there_was_one_is_refused(ann: Client) -> None:
    await ann.refused(Coordinator([]), "does not continue the 2 entries seen before", Coordinator(entries("ann")).head)


async def test_a_coordinator_that_states_no_head_any_more_is_refused(ann: Client) -> None:
    await ann.refused(Coordinator(entries("ann", "ben")), "shows none any more", None)


async def test_another_history_is_refused_even_if_it_is_longer(ann: Client) -> None:
    await ann.refused(Coordinator(entries("ann", "dan", "cat")), "does not continue the 2 entries seen before")


async def test_a_stated_head_that_is_in_no_roster_is_refused(ann: Client) -> None:
    other = Coordinator(entries("ann", "ben", "dan")).head
    await ann.refused(Coordinator(entries("ann", "ben", "cat")), "head that is not in the roster", other)


async def test_two_heads_shown_to_two_clients_differ_and_neither_client_changes_sides(tmp_path: Path) -> None:
    views = [Coordinator(entries("ann", name)) for name in ("ben", "mallory")]
    clients = [Client(tmp_path / "first"), Client(tmp_path / "second")]
    for client, view in zip(clients, views, strict=True):
        client.folder.mkdir()
        await client.follow(view)
    heads = {read_roster(client.folder)[0].head for client in clients}
    assert len(heads) == 2  # the partners compare these, and the terms of each round name them
    await clients[0].refused(views[1], "does not continue")


async def test_a_roster_with_another_key_of_this_client_is_refused(tmp_path: Path) -> None:
    swapped = [replace(entries("ann")[0], fingerprint="f" * 64)]
    await Client(tmp_path).refused(Coordinator(swapped), "it gives ann, this client, the key f")


async def test_a_key_of_this_client_that_was_replaced_behind_its_back_is_refused(ann: Client) -> None:
    shown = entries("ann", "ben")
    removed = replace(shown[0], sequence=3, change=REMOVED)
    assert (await ann.follow(Coordinator([*shown, removed]))).fingerprint_of(
        "ann"
    ) is None  # an administrator may reset it
    stolen = replace(removed, sequence=4, fingerprint="f" * 64, change=REPLACED)
    await ann.refused(Coordinator([*shown, removed, stolen]), "it gives ann, this client, the key f")


async def test_one_key_of_two_members_is_refused(ann: Client) -> None:
    twice = replace(entries("ann", "ben", "cat")[2], fingerprint=entries("ann", "ben")[1].fingerprint)
    await ann.refused(Coordinator([*entries("ann", "ben"), twice]), "gives cat the key of ben")


async def test_an_accepted_key_that_is_not_in_the_roster_is_refused(tmp_path: Path) -> None:
    watch = RosterWatch(tmp_path, "ann", KEY, (others := Coordinator(entries("ben"))).fetch)
    with capture_logs() as lines:
        await watch.look(others.head, is_registered=True)
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["roster.diverged"]
    with pytest.raises(RosterDiverged, match="no key of ann, this client, which was accepted"):
        watch.check(PRIVATE)


async def test_a_complaint_outlives_the_process_and_a_true_roster_until_the_owner_moves_the_file(ann: Client) -> None:
    true = Coordinator(entries("ann", "ben", "cat"))
    watch = RosterWatch(ann.folder, "ann", KEY, Coordinator(entries("ann")).fetch)
    watch.check(PRIVATE)
    await watch.look(Coordinator(entries("ann")).head, is_registered=True)
    again = RosterWatch(ann.folder, "ann", KEY, true.fetch)
    await again.look(true.head, is_registered=True)
    for one in (watch, again):
        with pytest.raises(RosterDiverged, match=r"does not continue .* \(seen on 20"):
            one.check(PRIVATE)
        one.check(PLAIN)  # the client goes on with plain rounds, if its policy allows them
    (ann.folder / FILE).unlink()
    again.check(PRIVATE)


async def test_a_coordinator_without_a_roster_is_no_reason_to_complain(tmp_path: Path) -> None:
    watch = RosterWatch(tmp_path, "ann", KEY, Coordinator([]).fetch)
    await watch.look(None, is_registered=True)
    watch.check(PRIVATE)
    assert not (tmp_path / FILE).exists()


async def test_keys_are_pinned_at_first_sight_only_if_the_policy_says_so(tmp_path: Path) -> None:
    client, file, shown = Client(tmp_path), tmp_path / "peers.toml", entries("ann", "ben", "cat")
    await client.follow(Coordinator(shown[:2]))
    assert not file.exists()
    save_pins(file, {"cat": "0" * 64})
    await client.follow(Coordinator(shown), first_use_pins=file)
    assert load_pins(file) == {"ben": shown[1].fingerprint, "cat": "0" * 64}  # a pin is never replaced


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    for content in ("{", '{"entries": [1]}', '{"entries": [], "complaint": 3}'):
        (tmp_path / FILE).write_text(content)
        with pytest.raises(InvalidConfig, match=r"(?s)roster\.json.*damaged"):
            read_roster(tmp_path)


def test_the_claim_in_plain_text_is_proven_and_not_endorsed(tmp_path: Path) -> None:
    watch = RosterWatch.of(tmp_path, "ann", tmp_path / "identity", Coordinator([]).fetch)
    claim = watch.claim(None)
    assert claim.endorsement == b""
    assert is_proven(claim.key_der, claim.proof, "", "ann")
    again = RosterWatch.of(tmp_path, "ann", tmp_path / "identity", Coordinator([]).fetch)
    assert again.claim(None).key_der == claim.key_der  # the key is made once
    assert (tmp_path / "identity" / "peer-key.pem").stat().st_mode & 0o777 == 0o600


def test_the_pins_of_a_client_always_have_its_own_key(tmp_path: Path) -> None:
    watch = RosterWatch(tmp_path, "ann", KEY, Coordinator([]).fetch)
    assert watch.with_own({"ben": "0" * 64, "ann": "1" * 64}) == {"ben": "0" * 64, "ann": OWN}
