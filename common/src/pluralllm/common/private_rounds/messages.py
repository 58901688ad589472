"""Messages of a private round, each with the statement that its signature covers.

A message checks the sizes of its fields when it is made and raises InvalidArgument; the signature is checked by `is_signed`
against what the reader knows of the round. `signed` returns a copy with the member's signature.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.private_rounds.field_checks import check_name, check_number, check_signature, check_size
from pluralllm.common.private_rounds.json_bodies import canonical, read_canonical
from pluralllm.common.private_rounds.peer_keys import check_public
from pluralllm.common.private_rounds.sealed_boxes import OVERHEAD_BYTES, PUBLIC_BYTES
from pluralllm.common.private_rounds.shamir import SHARE_BYTES, is_share
from pluralllm.common.private_rounds.statements import (
    CELL,
    HASH_BYTES,
    PrivateKey,
    enc,
    keys_digest,
    members_digest,
    sign,
    sum_digest,
    verify,
)

MIN_MEMBERS = 3
MOST_DEMAND = 3 * CELL  # of score_among: hidden_among, colluders and unpinned members of a round, each at most CELL
SHARE_BOX_BYTES = 2 * SHARE_BYTES + OVERHEAD_BYTES
PAIR_KEY_BYTES = 32
PAIR_BOX_BYTES = PAIR_KEY_BYTES + OVERHEAD_BYTES
MAX_BODY_BYTES = 512 * 1024  # a message of shares for 128 members has 450 KiB


class Body:
    """The canonical JSON form of a message; the class of a message adds its fields."""

    __slots__ = ()

    def to_json(self) -> bytes:
        """Returns the message's canonical JSON. Its SHA-256 names the message."""
        return canonical(self)

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Reads a message. Raises InvalidArgument for anything but the canonical JSON of a message of this class."""
        return read_canonical(cls, body, MAX_BODY_BYTES)


@dataclass(frozen=True, slots=True)
class Keys(Body):
    """A member's fresh public keys for one round, and the commitment to the secret of its own mask."""

    kind: ClassVar[str] = "keys"
    mask_public: bytes  # 1216 bytes
    box_public: bytes  # 1216 bytes
    commitment: bytes  # H("commitment", terms, name, b)
    checked: bool  # the member has computed the base version again from what is public
    signature: bytes = b""
    # Above 0, the member adds its score of the base version to its tail if enough others do: thresholds.adding_scores.
    score_among: int = 0

    def __post_init__(self) -> None:
        check_size("mask_public", self.mask_public, PUBLIC_BYTES)
        check_size("box_public", self.box_public, PUBLIC_BYTES)
        check_size("commitment", self.commitment, HASH_BYTES)
        check_signature(self.signature)
        check_number("score_among", self.score_among, 0, MOST_DEMAND)
        if self.mask_public == self.box_public:
            raise InvalidArgument(field="box_public", problem="is the same key as mask_public")

    @property
    def sha256(self) -> bytes:
        """The hash of the keys that R1 names."""
        return keys_digest(self.mask_public, self.box_public, self.commitment, self._flags)

    @property
    def _flags(self) -> int:
        """The two statements as one number: bit 0 is `checked`, the bits above are `score_among`."""
        return int(self.checked) + 2 * self.score_among

    def signed(self, key: PrivateKey, terms_sha256: bytes, name: str) -> "Keys":
        return replace(self, signature=sign(key, self.kind, *self._parts(terms_sha256, name)))

    def is_signed(self, spki_der: bytes, terms_sha256: bytes, name: str) -> bool:
        """Returns whether the member `name` has signed these keys for a round with these terms."""
        return verify(spki_der, self.signature, self.kind, *self._parts(terms_sha256, name))

    def _parts(self, terms_sha256: bytes, name: str) -> tuple[bytes | str | int, ...]:
        keys = (self.mask_public, self.box_public, self.commitment, self._flags)
        return (terms_sha256, name, *keys)


@dataclass(frozen=True, slots=True)
class RoundMember(Body):
    """A member of a round, as the coordinator passes it on to the other members."""

    name: str
    peer_key_der: bytes  # SubjectPublicKeyInfo
    keys: Keys

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_public(self.peer_key_der)


def check_members(members: Iterable[RoundMember]) -> tuple[str, ...]:
    """Checks that members can make a round: 3 to 128 of them, sorted by name, no key twice. Returns their names.

    The index of a member is 1 + the place of its name. Raises InvalidArgument. Signatures are not checked here.
    """
    listed = tuple(members)
    names = tuple(member.name for member in listed)
    check_number("members", len(names), MIN_MEMBERS, CELL)
    if list(names) != sorted(set(names)):
        raise InvalidArgument(field="members", problem="are not sorted by name, or one is there twice")
    if len({member.peer_key_der for member in listed}) != len(listed):
        raise InvalidArgument(field="members", problem="two members have one peer key")
    public = {key for member in listed for key in (member.keys.mask_public, member.keys.box_public)}
    if len(public) != 2 * len(listed):
        raise InvalidArgument(field="members", problem="one public key is there twice")
    return names


def digest_of_members(terms_sha256: bytes, members: Iterable[RoundMember]) -> bytes:
    """Returns R1 of members in any order."""
    return members_digest(terms_sha256, [(one.name, one.peer_key_der, one.keys.sha256) for one in members])


@dataclass(frozen=True, slots=True)
class Box(Body):
    """The shares and the pair key that a dealer u deals to a member v, sealed, with commitments to them.

    The dealer's own box (u = v) has commitments to its own two shares, and nothing that is sealed.
    """

    kind: ClassVar[str] = "box"
    index: int  # of v
    share_box: bytes  # shares of b and of m, 33 bytes each, sealed for v's box key; empty in the own box
    pair_box: bytes  # k_uv, sealed for v's mask key; empty in the own box
    self_commitment: bytes  # H("share", R1, u, v, "self", share of b)
    mask_commitment: bytes  # H("share", R1, u, v, "mask", share of m)
    pair_commitment: bytes  # H("pair", R1, u, v, k_uv); empty in the own box
    least: int  # fewest updates of a sum that u's update may be part of
    signature: bytes = b""

    def __post_init__(self) -> None:
        check_number("index", self.index, 1, CELL)
        check_size("share_box", self.share_box, 0 if self.is_own else SHARE_BOX_BYTES)
        check_size("pair_box", self.pair_box, 0 if self.is_own else PAIR_BOX_BYTES)
        check_size("pair_commitment", self.pair_commitment, 0 if self.is_own else HASH_BYTES)
        check_size("self_commitment", self.self_commitment, HASH_BYTES)
        check_size("mask_commitment", self.mask_commitment, HASH_BYTES)
        check_number("least", self.least, 1, CELL)
        check_signature(self.signature)

    @property
    def is_own(self) -> bool:
        """True for the box that a dealer deals to itself."""
        return not self.share_box

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the two sealed texts, which a complaint names."""
        return hashlib.sha256(self.share_box + self.pair_box).digest()

    @property
    def line(self) -> "BoxLine":
        """The box without its sealed texts."""
        return BoxLine(
            hashlib.sha256(self.share_box).digest(),
            hashlib.sha256(self.pair_box).digest(),
            self.self_commitment,
            self.mask_commitment,
            self.pair_commitment,
            self.least,
            self.signature,
        )

    def signed(self, key: PrivateKey, members_sha256: bytes, dealer: str, member: str) -> "Box":
        """Returns the box with the dealer's signature. members_sha256: R1."""
        parts = self.line.parts(members_sha256, dealer, member)
        return replace(self, signature=sign(key, self.kind, *parts))

    def is_signed(self, spki_der: bytes, members_sha256: bytes, dealer: str, member: str) -> bool:
        """Returns whether `dealer` has signed this box for `member` in the round of R1."""
        return self.line.is_signed(spki_der, members_sha256, dealer, member)


@dataclass(frozen=True, slots=True)
class BoxLine(Body):
    """A box without its sealed texts: enough to check the dealer's signature, a revealed share and an opened pair key."""

    share_box_sha256: bytes
    pair_box_sha256: bytes
    self_commitment: bytes
    mask_commitment: bytes
    pair_commitment: bytes
    least: int
    signature: bytes

    def __post_init__(self) -> None:
        for name in ("share_box_sha256", "pair_box_sha256", "self_commitment", "mask_commitment"):
            check_size(name, getattr(self, name), HASH_BYTES)
        check_size("pair_commitment", self.pair_commitment, 0, HASH_BYTES)
        check_number("least", self.least, 1, CELL)
        check_signature(self.signature)

    def parts(self, members_sha256: bytes, dealer: str, member: str) -> tuple[bytes | str | int, ...]:
        """Returns the parts of the dealer's statement."""
        sealed = (self.share_box_sha256, self.pair_box_sha256)
        commitments = (self.self_commitment, self.mask_commitment, self.pair_commitment)
        return (members_sha256, dealer, member, *sealed, *commitments, self.least)

    def is_signed(self, spki_der: bytes, members_sha256: bytes, dealer: str, member: str) -> bool:
        """Returns whether `dealer` has signed this box for `member` in the round of R1."""
        return verify(spki_der, self.signature, Box.kind, *self.parts(members_sha256, dealer, member))


@dataclass(frozen=True, slots=True)
class Shares(Body):
    """A dealer's boxes: one for each member of the round in the order of indices, the dealer's own included."""

    boxes: tuple[Box, ...]

    def __post_init__(self) -> None:
        check_number("boxes", len(self.boxes), MIN_MEMBERS, CELL)
        if [box.index for box in self.boxes] != list(range(1, len(self.boxes) + 1)):
            raise InvalidArgument(field="boxes", problem="are not one for each member, in the order of indices")
        if sum(box.is_own for box in self.boxes) != 1:
            raise InvalidArgument(field="boxes", problem="must have exactly one without sealed texts, the dealer's own")
        if len({box.least for box in self.boxes}) != 1:
            raise InvalidArgument(field="boxes", problem="must all have the same number `least`")

    @property
    def least(self) -> int:
        """Fewest updates of a sum that the dealer's update may be part of."""
        return self.boxes[0].least

    def box_of(self, index: int) -> Box:
        return self.boxes[index - 1]


def check_shares(shares: Shares, spki_der: bytes, members_sha256: bytes, dealer: str, names: tuple[str, ...]) -> None:
    """Checks that a dealer has signed a box for each member of the round. Raises InvalidArgument.

    spki_der: the dealer's peer key. members_sha256: R1. names: of all members, sorted.
    """
    if len(shares.boxes) != len(names) or not shares.box_of(names.index(dealer) + 1).is_own:
        raise InvalidArgument(field="boxes", problem="are not those of this dealer in this round")
    for name, box in zip(names, shares.boxes, strict=True):
        if not box.is_signed(spki_der, members_sha256, dealer, name):
            raise InvalidArgument(field="boxes", problem=f"the box for {name} is not signed by {dealer} for this round")


@dataclass(frozen=True, slots=True)
class Complaint(Body):
    """A member's statement that a box which a dealer has signed for it does not open, or holds other than it commits to."""

    kind: ClassVar[str] = "complaint"
    dealer: str
    box_sha256: bytes  # of the two sealed texts
    signature: bytes = b""

    def __post_init__(self) -> None:
        check_name("dealer", self.dealer)
        check_size("box_sha256", self.box_sha256, HASH_BYTES)
        check_signature(self.signature)

    def signed(self, key: PrivateKey, dealers_sha256: bytes, name: str) -> "Complaint":
        """Returns the complaint with the signature of the member `name`. dealers_sha256: R2."""
        return replace(self, signature=sign(key, self.kind, dealers_sha256, name, self.dealer, self.box_sha256))

    def is_signed(self, spki_der: bytes, dealers_sha256: bytes, name: str) -> bool:
        """Returns whether the member `name` has signed the complaint in the round of R2."""
        return verify(spki_der, self.signature, self.kind, dealers_sha256, name, self.dealer, self.box_sha256)


@dataclass(frozen=True, slots=True)
class UpdateStatement(Body):
    """A member's statement that a masked file is its update, masked for exactly the dealers of R2."""

    kind: ClassVar[str] = "update"
    name: str
    digest: bytes  # SHA-256 of the masked file
    signature: bytes = b""

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_size("digest", self.digest, HASH_BYTES)
        check_signature(self.signature)

    def signed(self, key: PrivateKey, dealers_sha256: bytes) -> "UpdateStatement":
        """Returns the statement with its member's signature. dealers_sha256: R2."""
        return replace(self, signature=sign(key, self.kind, dealers_sha256, self.name, self.digest))

    def is_signed(self, spki_der: bytes, dealers_sha256: bytes) -> bool:
        """Returns whether its member has signed the statement, for the dealers of R2."""
        return verify(spki_der, self.signature, self.kind, dealers_sha256, self.name, self.digest)


def digest_of_sum(dealers_sha256: bytes, updates: Iterable[UpdateStatement]) -> bytes:
    """Returns R3 of updates in any order. dealers_sha256: R2."""
    return sum_digest(dealers_sha256, [(update.name, update.digest) for update in updates])


@dataclass(frozen=True, slots=True)
class Confirmation(Body):
    """A member's statement that it answers for this sum of the round, and for no other one."""

    kind: ClassVar[str] = "confirm"
    sum_sha256: bytes  # R3
    signature: bytes = b""

    def __post_init__(self) -> None:
        check_size("sum_sha256", self.sum_sha256, HASH_BYTES)
        check_signature(self.signature)

    def signed(self, key: PrivateKey) -> "Confirmation":
        return replace(self, signature=sign(key, self.kind, self.sum_sha256))

    def is_signed(self, spki_der: bytes) -> bool:
        """Returns whether the owner of the peer key has confirmed the sum."""
        return verify(spki_der, self.signature, self.kind, self.sum_sha256)


@dataclass(frozen=True, slots=True)
class Share(Body):
    """A holder's share of one dealer's secret: of b if the dealer's update is in the sum, otherwise of m."""

    index: int  # of the dealer
    value: bytes  # 33 bytes, big-endian

    def __post_init__(self) -> None:
        check_number("index", self.index, 1, CELL)
        check_size("value", self.value, SHARE_BYTES)
        if not is_share(self.value):
            raise InvalidArgument(field="value", problem="is not below the prime")


@dataclass(frozen=True, slots=True)
class Reveal(Body):
    """A holder's shares, one for each dealer, in the order of indices. It has no place for two shares of one dealer."""

    kind: ClassVar[str] = "reveal"
    sum_sha256: bytes  # R3
    shares: tuple[Share, ...]
    signature: bytes = b""

    def __post_init__(self) -> None:
        check_size("sum_sha256", self.sum_sha256, HASH_BYTES)
        check_number("shares", len(self.shares), 1, CELL)
        indices = [share.index for share in self.shares]
        if indices != sorted(set(indices)):
            raise InvalidArgument(field="shares", problem="are not in the order of indices, or one is there twice")
        check_signature(self.signature)

    @classmethod
    def of(cls, sum_sha256: bytes, values: Mapping[int, bytes]) -> "Reveal":
        """Returns a reveal, not signed yet. values: the share of each dealer, by the dealer's index."""
        return cls(sum_sha256, tuple(Share(index, values[index]) for index in sorted(values)))

    @property
    def values(self) -> dict[int, bytes]:
        """The shares by the index of their dealer."""
        return {share.index: share.value for share in self.shares}

    def signed(self, key: PrivateKey) -> "Reveal":
        return replace(self, signature=sign(key, self.kind, self.sum_sha256, self._shares_sha256()))

    def is_signed(self, spki_der: bytes) -> bool:
        """Returns whether the owner of the peer key has revealed these shares for this sum."""
        return verify(spki_der, self.signature, self.kind, self.sum_sha256, self._shares_sha256())

    def _shares_sha256(self) -> bytes:
        """SHA-256 of enc(index, value, index, value ...)."""
        parts: list[bytes | int] = [part for share in self.shares for part in (share.index, share.value)]
        return hashlib.sha256(enc(*parts)).digest()
