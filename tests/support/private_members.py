"""Members of a private round for tests: fixed keys and secrets, so that a failure repeats itself."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from cryptography.hazmat.primitives.asymmetric import ec

from pluralllm.common.private_rounds.dealing import BoxOpener, HeldShares, RoundSecrets, deal
from pluralllm.common.private_rounds.messages import Keys, RoundMember, Shares, digest_of_members
from pluralllm.common.private_rounds.peer_keys import public_der
from pluralllm.common.private_rounds.statements import PrivateKey, RoundTerms

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


@dataclass(frozen=True)
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


def dealt_round(size: int, threshold: int, least: int = 2) -> Dealt:
    """Returns a round of the first `size` names, in which all have dealt."""
    people = tuple(person(name) for name in NAMES[:size])
    members = tuple(one.member for one in people)
    r1 = digest_of_members(TERMS.sha256, members)
    shares, own = {}, {}
    for one in people:
        shares[one.name], own[one.name] = deal(
            *(one.secrets, one.key, r1, one.name, members),
            threshold=threshold,
            least=least,
            random_below=numbers(one.name),
        )
    return Dealt(people, r1, threshold, shares, own)
