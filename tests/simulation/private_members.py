"""Members of simulated private rounds: honest ones with a notebook, and liars.

The protocol is the real one; its cryptography is arithmetic on small numbers. A number that follows from a secret by `prf` stands
for a key, a commitment or a digest, and a share is the value of a polynomial modulo the prime P. A box is sealed in so far as
only its member, or who has rebuilt that member's mask key, reads it.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

from pluralllm.common.words.ids import ClientId, Digest
from pluralllm.server.rounds.events import RoundStep

P = 2**61 - 1
RING = 2**32
VALUES = (0, 1)  # positions in an update: its value, and a check word that counts the updates of a sum


class Lie(StrEnum):
    """The lies that a lying member tells in a round."""

    TWO_KEYS = "sends two different keys"
    BAD_BOX = "deals a box that does not open"
    NO_POLYNOMIAL = "deals shares that give no secret"
    WRONG_PAIR_KEY = "deals pair keys that do not follow from its mask key"
    FALSE_COMPLAINT = "complains of a good box"
    WRONG_MASK = "masks wrongly"
    TWO_UPDATES = "sends two updates"
    BAD_SHARES = "reveals wrong shares"
    BOTH_KINDS = "reveals shares of both kinds"
    SILENT = "sends no shares and no update"


@dataclass(frozen=True, slots=True)
class Box:
    """The content of what a dealer deals to one member, and the commitments that everybody reads."""

    self_share: int
    mask_share: int
    pair_key: int
    commitments: tuple[int, int, int]

    @property
    def is_good(self) -> bool:
        return self.commitments == tuple(commitment(part) for part in (self.self_share, self.mask_share, self.pair_key))


@dataclass(frozen=True)
class Message:
    """A message on its way from a member to the coordinator."""

    round: int
    step: RoundStep
    client: ClientId
    # What the message is about: the terms' members, dealers or sum, as a number; of keys: the mask key's public half.
    about: int
    commitment: int = 0  # of keys: to the secret of the own mask
    boxes: Mapping[ClientId, Box] = field(default_factory=dict)
    accused: ClientId | None = None
    masked: tuple[int, ...] = ()
    shares: Mapping[ClientId, tuple[str, int]] = field(
        default_factory=dict
    )  # by dealer: "self" or "mask", and the share

    @cached_property
    def body(self) -> bytes:
        return repr(self).encode()

    @cached_property
    def digest(self) -> Digest:
        return Digest(hashlib.sha256(self.body).hexdigest())


@dataclass(frozen=True)
class View:
    """The part of a round that the coordinator shows to its members."""

    round: int
    threshold: int
    keys: Mapping[ClientId, Message]
    dealers: Mapping[ClientId, Message]
    updates: Mapping[ClientId, Digest]
    confirmations: Mapping[ClientId, Message]

    @cached_property
    def members(self) -> int:
        """Stands for R1."""
        keys = (
            part
            for name in sorted(self.keys)
            for part in (number(name), self.keys[name].about, self.keys[name].commitment)
        )
        return prf(self.round, *keys)

    @cached_property
    def dealt(self) -> int:
        """Stands for R2."""
        return prf(self.members, *map(number, sorted(self.dealers)))

    @cached_property
    def sum(self) -> int:
        """Stands for R3."""
        return prf(
            self.dealt, *(part for name in sorted(self.updates) for part in (number(name), int(self.updates[name], 16)))
        )


def number(client: ClientId) -> int:
    return int(client[1:])


def prf(*parts: int) -> int:
    """Returns a number below P that follows from the parts, in every process."""
    return hash(parts) % P


def commitment(secret: int) -> int:
    return prf(secret, 3)


def public(mask: int) -> int:
    return prf(mask, 1)


def pair_key(mask: int, dealer: ClientId, peer: ClientId, members: int) -> int:
    return prf(mask, number(dealer), number(peer), members)


def split(secret: int, threshold: int, holders: Sequence[ClientId]) -> dict[ClientId, int]:
    """Returns each holder's share."""
    coefficients = [prf(secret, position) for position in range(10, 9 + threshold)]
    shares = {}
    for holder in holders:
        share = 0
        for coefficient in reversed(coefficients):
            share = (share + coefficient) * (number(holder) + 1) % P
        shares[holder] = (share + secret) % P
    return shares


def combine(shares: Mapping[ClientId, int]) -> int:
    """Returns the secret that the shares give."""
    secret = 0
    for holder, share in shares.items():
        above = below = 1
        for other in shares:
            if other != holder:
                above = above * (number(other) + 1) % P
                below = below * (number(other) - number(holder)) % P
        secret += share * above * pow(below, -1, P)
    return secret % P


def self_stream(secret: int, dealt: int, position: int) -> int:
    return prf(secret, dealt, position) % RING


def pair_stream(low: int, high: int, dealt: int, position: int) -> int:
    """Returns one value of the stream of two members. low, high: the keys that the first and the second of them has dealt."""
    return prf(low, high, dealt, position) % RING


@dataclass(slots=True)
class Notebook:
    """The notes that a member has written down about a round before it spoke."""

    secret: int
    value: int  # of its update
    keys: Message | None = None
    shares: Message | None = None
    complaint: Message | None = None
    update: Message | None = None
    sum: int | None = None
    confirmation: Message | None = None
    reveal: Message | None = None

    @property
    def mask(self) -> int:
        return prf(self.secret, 100)

    @property
    def own(self) -> int:
        return prf(self.secret, 200)


class Member:
    """A client that takes part in private rounds. `lies` are those that it tells in the open round."""

    def __init__(self, name: ClientId, draw: random.Random) -> None:
        self.name, self._draw = name, draw
        self.notebooks: dict[int, Notebook] = {}
        self.lost: set[int] = set()  # rounds whose notebook is lost
        self.lies: frozenset[Lie] = frozenset()

    def notebook(self, number_of_round: int) -> Notebook:
        if number_of_round not in self.notebooks:
            drawn = self._draw
            self.notebooks[number_of_round] = Notebook(drawn.randrange(P), drawn.randrange(RING))
        return self.notebooks[number_of_round]

    def lose_notebook(self, number_of_round: int) -> None:
        if self.notebooks.pop(number_of_round, None) is not None:
            self.lost.add(number_of_round)

    def keys(self, number_of_round: int) -> list[Message]:
        book = self.notebook(number_of_round)
        if book.keys is None:
            book.keys = self._keys_of(number_of_round, book)
        if Lie.TWO_KEYS not in self.lies:
            return [book.keys]
        other = Notebook(prf(book.secret, 7), 0)
        return self._draw.sample([book.keys, self._keys_of(number_of_round, other)], 2)

    def _keys_of(self, number_of_round: int, book: Notebook) -> Message:
        return Message(number_of_round, RoundStep.KEYS, self.name, public(book.mask), commitment(book.own))

    def deal(self, view: View) -> list[Message]:
        """Deals its shares, if the members' keys have its own among them."""
        book = self.notebook(view.round)
        if Lie.SILENT in self.lies or book.keys != view.keys.get(self.name):
            return []
        if book.shares is None:
            book.shares = Message(view.round, RoundStep.SHARES, self.name, view.members, boxes=self._boxes(view, book))
        return [book.shares]

    def _boxes(self, view: View, book: Notebook) -> dict[ClientId, Box]:
        own, mask = (split(secret, view.threshold, sorted(view.keys)) for secret in (book.own, book.mask))
        boxes = {}
        for peer in sorted(view.keys):
            parts = (own[peer], mask[peer], pair_key(book.mask, self.name, peer, view.members))
            if Lie.NO_POLYNOMIAL in self.lies:
                parts = (self._draw.randrange(P), self._draw.randrange(P), parts[2])
            if Lie.WRONG_PAIR_KEY in self.lies:
                parts = (*parts[:2], prf(parts[2], 8))
            boxes[peer] = Box(*parts, (commitment(parts[0]), commitment(parts[1]), commitment(parts[2])))
        if Lie.BAD_BOX in self.lies:
            victim = self._draw.choice([peer for peer in boxes if peer != self.name])
            boxes[victim] = replace(boxes[victim], self_share=boxes[victim].self_share + 1)
        return boxes

    def train(self, view: View) -> list[Message]:
        """Complains of the first bad box, or else masks its update and sends it."""
        book = self.notebook(view.round)
        if book.shares is None or book.shares != view.dealers.get(self.name):
            return []
        peers = [dealer for dealer in sorted(view.dealers) if dealer != self.name]
        if book.complaint is None and book.update is None:
            bad = [dealer for dealer in peers if not view.dealers[dealer].boxes[self.name].is_good]
            if Lie.FALSE_COMPLAINT in self.lies and not bad:
                bad = [self._draw.choice(peers)]
            if bad:
                book.complaint = Message(view.round, RoundStep.COMPLAINT, self.name, view.dealt, accused=bad[0])
        if book.complaint is not None:
            return [book.complaint]
        if book.update is None:
            wrong = Lie.WRONG_MASK in self.lies
            masked = tuple((self._masked(view, book, position) + wrong) % RING for position in VALUES)
            book.update = Message(view.round, RoundStep.UPDATE, self.name, view.dealt, masked=masked)
        if Lie.TWO_UPDATES not in self.lies:
            return [] if Lie.SILENT in self.lies else [book.update]
        other = Message(view.round, RoundStep.UPDATE, self.name, view.dealt, masked=(1, 2))
        return self._draw.sample([book.update, other], 2)

    def _masked(self, view: View, book: Notebook, position: int) -> int:
        value = (book.value, 1)[position] + self_stream(book.own, view.dealt, position)
        assert book.shares is not None
        for peer in view.dealers:
            ours, theirs = book.shares.boxes.get(peer), view.dealers[peer].boxes[self.name].pair_key
            if peer == self.name or ours is None:
                continue
            if self.name < peer:
                value += pair_stream(ours.pair_key, theirs, view.dealt, position)
            else:
                value -= pair_stream(theirs, ours.pair_key, view.dealt, position)
        return value

    def confirm(self, view: View) -> list[Message]:
        """Signs the sum. An honest member signs one sum in a round, and only if it is of enough dealers."""
        book = self.notebook(view.round)
        if book.shares is None or book.shares != view.dealers.get(self.name):
            return []
        if book.confirmation is None:
            self._note_sum(view, book)
            book.confirmation = Message(view.round, RoundStep.CONFIRMATION, self.name, view.sum)
        assert book.confirmation.about == view.sum, "a second sum was asked for"
        return [book.confirmation]

    def _note_sum(self, view: View, book: Notebook) -> None:
        assert book.sum in (None, view.sum), "a second sum was asked for"
        assert set(view.updates) <= set(view.dealers)
        assert len(view.updates) >= view.threshold
        listed = view.updates.get(self.name)
        assert self.lies or listed is None or (book.update is not None and listed == book.update.digest)
        assert listed is None or book.complaint is None
        book.sum = view.sum

    def reveal(self, view: View) -> list[Message]:
        """Reveals one share of each dealer: of its own mask if its update is in the sum, else of its mask key."""
        book = self.notebook(view.round)
        if book.shares is None or book.shares != view.dealers.get(self.name):
            return []
        signed = [message for message in view.confirmations.values() if message.about == view.sum]
        assert len(signed) >= view.threshold, "asked to reveal before enough have confirmed"
        self._note_sum(view, book)
        accused = None if book.complaint is None else book.complaint.accused  # of its secret this member has no share
        boxes = {dealer: said.boxes[self.name] for dealer, said in view.dealers.items() if dealer != accused}
        if book.reveal is None:
            shares = {dealer: self._share(dealer in view.updates, box) for dealer, box in boxes.items()}
            book.reveal = Message(view.round, RoundStep.REVEAL, self.name, view.sum, shares=shares)
            if Lie.BAD_SHARES in self.lies:
                shares = {dealer: (kind, share + 1) for dealer, (kind, share) in shares.items()}
                book.reveal = Message(view.round, RoundStep.REVEAL, self.name, view.sum, shares=shares)
        if Lie.BOTH_KINDS not in self.lies:
            return [book.reveal]
        others = {dealer: self._share(dealer not in view.updates, box) for dealer, box in boxes.items()}
        return [book.reveal, Message(view.round, RoundStep.REVEAL, self.name, view.sum, shares=others)]

    def _share(self, is_in_sum: bool, box: Box) -> tuple[str, int]:
        return ("self", box.self_share) if is_in_sum else ("mask", box.mask_share)
