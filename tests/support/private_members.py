"""Members of a private round for tests: fixed keys and secrets, so that a failure repeats itself."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from numpy.typing import NDArray

from pluralllm.common.private_rounds.dealing import (
    BoxOpener,
    HeldShares,
    OpenedBox,
    RoundSecrets,
    deal,
    pair_key,
    revealed_values,
)
from pluralllm.common.private_rounds.masks import add_masks, masking_keys
from pluralllm.common.private_rounds.messages import (
    Confirmation,
    Keys,
    Reveal,
    RoundMember,
    Shares,
    UpdateStatement,
    digest_of_members,
)
from pluralllm.common.private_rounds.peer_keys import public_der
from pluralllm.common.private_rounds.round_sum import FixedRound
from pluralllm.common.private_rounds.statements import PrivateKey, RoundTerms, dealers_digest

NAMES = ("ann", "bob", "cleo", "dora", "emil", "fay", "gus", "hana")


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


TERMS = RoundTerms(
    federation="values",
    run="first",
    round=7,
    spec_sha256=digest("spec"),
    base_version=6,
    base_digest=digest("base"),
    base_record_sha256=digest("record"),
    roster_head=digest("roster"),
    places=8,
    colluders=1,
)


@cache
def member_key(name: str) -> PrivateKey:
    """Returns the peer key of a member, always the same one."""
    number = int.from_bytes(digest(f"peer key of {name}"), "big") >> 1
    return ec.derive_private_key(number, ec.SECP256R1())


def numbers(seed: str) -> Callable[[int], int]:
    """Returns a function in place of secrets.randbelow that gives the same numbers at each run of a test."""
    return random.Random(seed).randrange


@dataclass(frozen=True)
class Person:
    """A member with all its secrets, as its own client has them."""

    name: str
    key: PrivateKey
    secrets: RoundSecrets
    keys: Keys

    @property
    def member(self) -> RoundMember:
        return RoundMember(self.name, public_der(self.key), self.keys)


@cache
def person(name: str, terms: RoundTerms = TERMS) -> Person:
    secrets, key = RoundSecrets.of(digest(f"rk of {name}"), terms.sha256), member_key(name)
    keys = secrets.keys(name, checked=True).signed(key, terms.sha256, name)
    return Person(name, key, secrets, keys)


@dataclass(frozen=True, eq=False)  # hashed as an object, so that what a test asks twice is computed once
class Dealt:
    """A round after SHARES: its members, their boxes and the shares that each holds."""

    people: tuple[Person, ...]
    r1: bytes
    threshold: int
    shares: dict[str, Shares]
    own: dict[str, HeldShares]  # a dealer's own two shares

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.people)

    @property
    def members(self) -> tuple[RoundMember, ...]:
        return tuple(one.member for one in self.people)

    def opener(self, name: str) -> BoxOpener:
        return BoxOpener(self.people[self.names.index(name)].secrets, self.r1, name)


@cache
def dealt_round(size: int, threshold: int, least: int = 2, terms: RoundTerms = TERMS) -> Dealt:
    """Returns a round of the first `size` names, in which all have dealt."""
    people = tuple(person(name, terms) for name in NAMES[:size])
    members = tuple(one.member for one in people)
    r1 = digest_of_members(terms.sha256, members)
    shares, own = {}, {}
    for one in people:
        shares[one.name], own[one.name] = deal(
            *(one.secrets, one.key, r1, one.name, members),
            threshold=threshold,
            least=least,
            random_below=numbers(one.name),
        )
    return Dealt(people, r1, threshold, shares, own)


@cache
def held_shares(dealt: Dealt, holder: str, dealer: str) -> OpenedBox:
    """Returns what a holder has of a dealer: its shares and the dealer's half of their pair's key (none of its own)."""
    if holder == dealer:
        return OpenedBox(dealt.own[holder], b"")
    index = dealt.names.index(holder) + 1
    spki = dealt.members[dealt.names.index(dealer)].peer_key_der
    return dealt.opener(holder).opened(dealer, spki, dealt.shares[dealer].box_of(index), index)


@dataclass(frozen=True)
class Played:
    """A round that honest members have played to its end."""

    dealt: Dealt
    fixed: FixedRound
    masked: dict[str, NDArray[np.uint32]]
    confirmations: dict[str, Confirmation]
    reveals: dict[str, Reveal]


def masked_by(dealt: Dealt, name: str, dealers: tuple[str, ...], plain: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Returns one member's numbers, masked for these dealers."""
    r2 = dealers_digest(dealt.r1, dealers)
    secrets = dealt.people[dealt.names.index(name)].secrets
    halves = {
        dealt.names.index(other) + 1: (
            pair_key(secrets.mask, dealt.r1, name, other),
            held_shares(dealt, name, other).pair_key,
        )
        for other in dealers
        if other != name
    }
    values = plain.copy()
    add_masks(values, 0, masking_keys(secrets.own, halves, r2, dealt.names.index(name) + 1))
    return values


def played_round(
    dealt: Dealt,
    dealers: tuple[str, ...],
    plain: dict[str, NDArray[np.uint32]],
    holders: tuple[str, ...],
    terms: RoundTerms = TERMS,
) -> Played:
    """Plays a round. plain: the numbers of each member whose update is in the sum. holders: who confirm and reveal."""
    r2 = dealers_digest(dealt.r1, dealers)
    masked = {name: masked_by(dealt, name, dealers, plain[name]) for name in sorted(plain)}
    updates = tuple(
        UpdateStatement(name, hashlib.sha256(values.tobytes()).digest()).signed(member_key(name), r2)
        for name, values in masked.items()
    )
    fixed = FixedRound(terms, dealt.members, dealers, updates)
    confirmations = {name: Confirmation(fixed.sum_sha256).signed(member_key(name)) for name in holders}
    reveals = {}
    for name in holders:
        held = {dealer: held_shares(dealt, name, dealer).held for dealer in dealers}
        values = revealed_values(held, dealers, frozenset(plain), dealt.names)
        reveals[name] = Reveal.of(fixed.sum_sha256, values).signed(member_key(name))
    return Played(dealt, fixed, masked, confirmations, reveals)
