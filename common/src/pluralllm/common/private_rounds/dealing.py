"""A member's secrets of one round, the boxes that it deals, and the boxes that it opens.

All secrets of a member follow from 32 random bytes, rk, that the member draws for the round and keeps until the round has ended.
u and v are members' names. R1 (`members_sha256`) fixes the members; so a box for one list of members says nothing in another.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pluralllm.common.errors.private_rounds import BadBox, BadView
from pluralllm.common.private_rounds.messages import Box, Keys, RoundMember, Shares
from pluralllm.common.private_rounds.sealed_boxes import HybridKey, NotOpened, seal
from pluralllm.common.private_rounds.shamir import SHARE_BYTES, is_share, split
from pluralllm.common.private_rounds.statements import PrivateKey, derived, enc, hashed

SECRET_BYTES = 32
SELF, MASK = "self", "mask"  # the two secrets that are shared: b, and m


@dataclass(frozen=True, slots=True)
class RoundSecrets:
    """A member's secrets of one round. Their repr shows nothing of them."""

    terms_sha256: bytes
    mask: bytes = field(repr=False)  # m: seed of the mask key, and of the keys of all pairs
    own: bytes = field(repr=False)  # b: seed of the member's own mask
    box: bytes = field(repr=False)  # e: seed of the box key; it is never shared
    training: bytes = field(repr=False)  # seed of the round's training, which nobody else can repeat

    @classmethod
    def of(cls, random: bytes, terms_sha256: bytes) -> "RoundSecrets":
        """Returns the secrets of a round. random: rk, 32 random bytes of this member for this round. Raises ValueError."""
        if len(random) != SECRET_BYTES:
            raise ValueError(f"the secret of a round has {SECRET_BYTES} bytes, not {len(random)}")
        mask, own, box, training = (
            derived(random, label, terms_sha256) for label in ("mask", "self", "box", "training")
        )
        return cls(terms_sha256, mask, own, box, training)

    def keys(self, name: str, *, checked: bool, score_among: int = 0) -> Keys:
        """Returns the public keys of this round, not signed yet.

        checked: the member has computed the base version again. score_among: as in Keys.
        """
        commitment = commitment_of(self.terms_sha256, name, self.own)
        return Keys(
            HybridKey.of(self.mask).public, HybridKey.of(self.box).public, commitment, checked, score_among=score_among
        )


def commitment_of(terms_sha256: bytes, name: str, own: bytes) -> bytes:
    """Returns the commitment to a member's secret b: H("commitment", terms, name, b)."""
    return hashed("commitment", terms_sha256, name, own)


def share_commitment(members_sha256: bytes, dealer: str, member: str, kind: str, share: bytes) -> bytes:
    """Returns the commitment to a share: H("share", R1, u, v, kind, share). kind: SELF or MASK."""
    return hashed("share", members_sha256, dealer, member, kind, share)


def pair_commitment(members_sha256: bytes, dealer: str, member: str, pair_key: bytes) -> bytes:
    """Returns the commitment to a key of a pair: H("pair", R1, u, v, k_uv)."""
    return hashed("pair", members_sha256, dealer, member, pair_key)


def pair_key(mask: bytes, members_sha256: bytes, dealer: str, member: str) -> bytes:
    """Returns k_uv = K(m, "pair", R1, u, v), the dealer's half of the key of a pair. mask: m of the dealer u."""
    return derived(mask, "pair", members_sha256, dealer, member)


def pair_info(members_sha256: bytes, dealer: str, member: str) -> bytes:
    """Returns the purpose of a pair box."""
    return enc("pair box", members_sha256, dealer, member)


def _share_info(members_sha256: bytes, dealer: str, member: str) -> bytes:
    return enc("share box", members_sha256, dealer, member)


@dataclass(frozen=True, slots=True)
class HeldShares:
    """One member's shares of a dealer's two secrets."""

    own: bytes = field(repr=False)  # of b
    mask: bytes = field(repr=False)  # of m


@dataclass(frozen=True, slots=True)
class OpenedBox:
    """The content of a box: the member's shares of the dealer's secrets, and the dealer's half of the key of the pair."""

    held: HeldShares
    pair_key: bytes = field(repr=False)


def deal(
    secrets: RoundSecrets,
    key: PrivateKey,
    members_sha256: bytes,
    dealer: str,
    members: Sequence[RoundMember],
    *,
    threshold: int,
    least: int,
    random_below: Callable[[int], int],
) -> tuple[Shares, HeldShares]:
    """Returns a dealer's signed boxes, and the dealer's own two shares, which no box holds.

    key: the dealer's peer key. members: all members, sorted by name, checked before. least: signed in each box.
    random_below: secrets.randbelow. A second call gives other shares of the same secrets: call once a round, and keep both.
    """
    indices = range(1, len(members) + 1)
    own_shares = split(secrets.own, threshold, indices, random_below)
    mask_shares = split(secrets.mask, threshold, indices, random_below)
    boxes = []
    for index, member in zip(indices, members, strict=True):
        pair = (members_sha256, dealer, member.name)
        share_box, pair_box, committed = b"", b"", b""
        if member.name != dealer:
            share_box = seal(member.keys.box_public, _share_info(*pair), own_shares[index] + mask_shares[index])
            half = pair_key(secrets.mask, *pair)
            pair_box, committed = seal(member.keys.mask_public, pair_info(*pair), half), pair_commitment(*pair, half)
        box = Box(
            index=index,
            share_box=share_box,
            pair_box=pair_box,
            self_commitment=share_commitment(*pair, SELF, own_shares[index]),
            mask_commitment=share_commitment(*pair, MASK, mask_shares[index]),
            pair_commitment=committed,
            least=least,
        )
        boxes.append(box.signed(key, members_sha256, dealer, member.name))
    own_index = 1 + [member.name for member in members].index(dealer)
    return Shares(tuple(boxes)), HeldShares(own_shares[own_index], mask_shares[own_index])


class BoxOpener:
    """The keys with which a member opens its boxes of one round."""

    def __init__(self, secrets: RoundSecrets, members_sha256: bytes, name: str) -> None:
        """Derives the keys. name: the member's own name. members_sha256: R1."""
        self._box_key, self._mask_key = HybridKey.of(secrets.box), HybridKey.of(secrets.mask)
        self._members_sha256, self._name = members_sha256, name

    def opened(self, dealer: str, spki_der: bytes, box: Box, index: int) -> OpenedBox:
        """Returns what a dealer's box for this member holds. spki_der: the dealer's peer key. index: this member's.

        Raises BadView if the dealer has not signed the box for this member and round: the coordinator passes on something else.
        Raises BadBox if the dealer has signed a box that does not open, or that holds other than it commits to.
        """
        pair = (self._members_sha256, dealer, self._name)
        if box.index != index or box.is_own or not box.is_signed(spki_der, *pair):
            raise BadView(member=dealer, problem="its box is not signed for this member in this round")
        try:
            shares = self._box_key.opened(_share_info(*pair), box.share_box)
            half = self._mask_key.opened(pair_info(*pair), box.pair_box)
        except NotOpened as error:
            raise BadBox(dealer=dealer, box_sha256=box.sha256.hex(), problem="it does not open") from error
        held = HeldShares(shares[:SHARE_BYTES], shares[SHARE_BYTES:])
        if not is_share(held.own) or not is_share(held.mask):
            raise BadBox(dealer=dealer, box_sha256=box.sha256.hex(), problem="it holds no shares")
        if (
            share_commitment(*pair, SELF, held.own) != box.self_commitment
            or share_commitment(*pair, MASK, held.mask) != box.mask_commitment
            or pair_commitment(*pair, half) != box.pair_commitment
        ):
            raise BadBox(dealer=dealer, box_sha256=box.sha256.hex(), problem="it does not hold what it commits to")
        return OpenedBox(held, half)


def open_pair_box(mask_key: HybridKey, members_sha256: bytes, dealer: str, member: str, sealed: bytes) -> bytes:
    """Returns k_uv from the pair box of dealer u for member v. mask_key: of v's secret m. Raises NotOpened."""
    return mask_key.opened(pair_info(members_sha256, dealer, member), sealed)


def revealed_values(
    held: Mapping[str, HeldShares], dealers: Sequence[str], in_sum: frozenset[str], names: Sequence[str]
) -> dict[int, bytes]:
    """Returns the shares that a holder reveals, by the index of their dealer: of b for a dealer in the sum, else of m.

    held: this member's shares of each dealer, its own included. names: of all members, sorted.
    A dealer whose box was bad has no shares here; the holder cannot reveal then, and KeyError names the dealer.
    """
    return {names.index(dealer) + 1: held[dealer].own if dealer in in_sum else held[dealer].mask for dealer in dealers}
