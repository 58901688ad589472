"""The unmasked sum of a private round: from what its members dealt and revealed, to the streams that the sum still holds.

The coordinator opens the round from the stored messages. Whoever has a transcript gets the same streams from transcript.py. The
masked updates are added, then `leftover_streams` are added to the sum: that leaves the members' numbers alone, exactly.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.errors.private_rounds import BadView, DealtWrongly
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.private_rounds.dealing import (
    MASK,
    SELF,
    commitment_of,
    open_pair_box,
    pair_commitment,
    pair_key,
    share_commitment,
)
from pluralllm.common.private_rounds.masks import MaskStreams, SignedKey, opposite, pair_key_with_sign, self_stream_key
from pluralllm.common.private_rounds.messages import (
    MIN_MEMBERS,
    Confirmation,
    Reveal,
    RoundMember,
    Shares,
    UpdateStatement,
    check_members,
    digest_of_members,
    digest_of_sum,
)
from pluralllm.common.private_rounds.sealed_boxes import HybridKey, NotOpened
from pluralllm.common.private_rounds.shamir import combine
from pluralllm.common.private_rounds.statements import RoundTerms, dealers_digest
from pluralllm.common.words.private_rounds import threshold


@dataclass(frozen=True)
class FixedRound:
    """A private round whose members, dealers and sum are fixed, with the digests that name each."""

    terms: RoundTerms
    members: tuple[RoundMember, ...]  # sorted by name
    dealers: tuple[str, ...]  # sorted
    updates: tuple[UpdateStatement, ...]  # of the sum, sorted by name

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def threshold(self) -> int:
        """Number of members that confirm and reveal: t."""
        return threshold(len(self.members), self.terms.colluders)

    @property
    def quorum(self) -> int:
        """Least number of dealers, and of updates in the sum."""
        return max(self.threshold, MIN_MEMBERS)

    @cached_property
    def members_sha256(self) -> bytes:
        """R1."""
        return digest_of_members(self.terms.sha256, self.members)

    @cached_property
    def dealers_sha256(self) -> bytes:
        """R2."""
        return dealers_digest(self.members_sha256, self.dealers)

    @cached_property
    def sum_sha256(self) -> bytes:
        """R3."""
        return digest_of_sum(self.dealers_sha256, self.updates)

    @cached_property
    def in_sum(self) -> tuple[str, ...]:
        """Names of the members whose updates are in the sum, sorted."""
        return tuple(update.name for update in self.updates)

    @cached_property
    def outside(self) -> tuple[str, ...]:
        """Names of the dealers whose updates are not in the sum, sorted: what the others masked with them is taken away."""
        return tuple(sorted(set(self.dealers) - set(self.in_sum)))

    def index(self, name: str) -> int:
        """Returns 1 + the place of a member's name."""
        return self.names.index(name) + 1

    def member(self, name: str) -> RoundMember:
        return self.members[self.names.index(name)]

    def check(self) -> None:
        """Checks that members, dealers and updates make a round, and every signature over them.

        A member runs the check, too, before it confirms the sum. Raises InvalidArgument if a list does not fit; BadView if a
        signature does not: then the coordinator passes on something that the member has not signed for this round.
        """
        check_members(self.members)
        if len(self.members) > self.terms.places:
            raise InvalidArgument(field="members", problem=f"are {len(self.members)} for {self.terms.places} places")
        for field_name, names, above in (("dealers", self.dealers, self.names), ("updates", self.in_sum, self.dealers)):
            if list(names) != sorted(set(names)) or not set(names) <= set(above):
                problem = "are not sorted by name, or one is there twice or has no place"
                raise InvalidArgument(field=field_name, problem=problem)
            if len(names) < self.quorum:
                raise InvalidArgument(field=field_name, problem=f"are {len(names)}, must be at least {self.quorum}")
        for member in self.members:
            if not member.keys.is_signed(member.peer_key_der, self.terms.sha256, member.name):
                raise BadView(member=member.name, problem="its keys are not signed for these terms")
        for update in self.updates:
            if not update.is_signed(self.member(update.name).peer_key_der, self.dealers_sha256):
                raise BadView(member=update.name, problem="its update is not signed for these dealers")

    def check_confirmations(self, confirmations: Mapping[str, Confirmation]) -> None:
        """Checks that at least `threshold` dealers have confirmed this sum, all by good signatures.

        Raises BadView for a confirmation that is not its dealer's over this sum, InvalidArgument if there are too few.
        """
        for name, confirmation in confirmations.items():
            if (
                name not in self.dealers
                or confirmation.sum_sha256 != self.sum_sha256
                or not confirmation.is_signed(self.member(name).peer_key_der)
            ):
                raise BadView(member=name, problem="its confirmation is not a dealer's over this sum")
        if len(confirmations) < self.threshold:
            problem = f"are {len(confirmations)}, must be at least {self.threshold}"
            raise InvalidArgument(field="confirmations", problem=problem)


def check_reveal(
    fixed: FixedRound, holder: str, reveal: Reveal, shares: Mapping[str, Shares], complained: str = ""
) -> None:
    """Checks that a holder has revealed its share of each dealer, all as dealt. A reveal is good as a whole or not at all.

    shares: the boxes of each dealer. complained: the dealer whose box the holder has called bad; the holder has no share of it.
    Raises InvalidArgument, which then is the fault of the holder.
    """
    if holder not in fixed.dealers or reveal.sum_sha256 != fixed.sum_sha256:
        raise InvalidArgument(field="sum_sha256", problem="is not the sum of this round, or the sender has not dealt")
    if not reveal.is_signed(fixed.member(holder).peer_key_der):
        raise InvalidArgument(field="signature", problem=f"is not that of {holder} over these shares")
    revealed = {fixed.index(dealer): dealer for dealer in fixed.dealers if dealer != complained}
    if list(reveal.values) != sorted(revealed):
        raise InvalidArgument(field="shares", problem="are not one of each dealer")
    for index, value in reveal.values.items():
        dealer = revealed[index]
        box = shares[dealer].box_of(fixed.index(holder))
        is_own = dealer in fixed.in_sum
        expected = box.self_commitment if is_own else box.mask_commitment
        kind = SELF if is_own else MASK
        if share_commitment(fixed.members_sha256, dealer, holder, kind, value) != expected:
            raise InvalidArgument(field="shares", problem=f"the share of {dealer} is not the one that was dealt")


def are_revealed(fixed: FixedRound, holders: Iterable[str], complaints: Mapping[str, str]) -> bool:
    """Returns whether good reveals of these holders give every secret.

    complaints: by the name of a holder, the dealer whose box the holder has called bad.
    """
    revealing = tuple(holders)
    return all(
        sum(complaints.get(holder) != dealer for holder in revealing) >= fixed.threshold for dealer in fixed.dealers
    )


@dataclass(frozen=True, slots=True)
class OpenedRound:
    """The secrets of a round that its holders have revealed, and what they open."""

    own: Mapping[str, bytes] = field(repr=False)  # b of each member of the sum
    masks: Mapping[str, bytes] = field(repr=False)  # m of each dealer outside the sum
    # The half k_vd that v, a member of the sum, has dealt to d, a dealer outside: by (d, v).
    halves: Mapping[tuple[str, str], bytes] = field(repr=False)


def open_round(fixed: FixedRound, shares: Mapping[str, Shares], reveals: Mapping[str, Reveal]) -> OpenedRound:
    """Returns the secrets of a round. shares: the boxes of each dealer. reveals: checked ones, by holder.

    The shares of the holders with the smallest indices are used, `threshold` for each secret.
    Raises DealtWrongly, which names the dealer, if good shares do not give its secret, or if a pair box or a pair key does not
    fit; InvalidArgument if there are too few shares.
    """
    own = {name: _secret(fixed, name, reveals, fixed.member(name).keys.commitment) for name in fixed.in_sum}
    masks = {name: _secret(fixed, name, reveals, None) for name in fixed.outside}
    halves = {}
    for outsider, mask in masks.items():
        key = HybridKey.of(mask)
        for name in fixed.in_sum:
            box = shares[name].box_of(fixed.index(outsider))
            try:
                half = open_pair_box(key, fixed.members_sha256, name, outsider, box.pair_box)
            except NotOpened as error:
                raise DealtWrongly(dealer=name, problem=f"its pair box for {outsider} does not open") from error
            _check_half(fixed, name, outsider, half, box.pair_commitment)
            dealt = pair_key(mask, fixed.members_sha256, outsider, name)
            _check_half(fixed, outsider, name, dealt, shares[outsider].box_of(fixed.index(name)).pair_commitment)
            halves[outsider, name] = half
    return OpenedRound(own, masks, halves)


def _secret(fixed: FixedRound, dealer: str, reveals: Mapping[str, Reveal], commitment: bytes | None) -> bytes:
    """Returns a dealer's secret: b if a commitment to it is passed, otherwise m."""
    index = fixed.index(dealer)
    values = {fixed.index(holder): reveal.values[index] for holder, reveal in reveals.items() if index in reveal.values}
    if len(values) < fixed.threshold:
        problem = f"of {dealer} there are {len(values)}, needed are {fixed.threshold}"
        raise InvalidArgument(field="shares", problem=problem)
    try:
        secret = combine({holder: values[holder] for holder in sorted(values)[: fixed.threshold]})
    except ValueError as error:
        raise DealtWrongly(dealer=dealer, problem="its shares give no secret") from error
    check_secret(fixed, dealer, secret, is_mask=commitment is None)
    return secret


def check_secret(fixed: FixedRound, dealer: str, secret: bytes, *, is_mask: bool) -> None:
    """Checks that a secret is the one that its dealer has signed at the round's beginning. Raises DealtWrongly.

    is_mask: the secret is m, which gives the mask key; otherwise it is b, which the dealer has committed to.
    """
    keys = fixed.member(dealer).keys
    if is_mask:
        fits = HybridKey.of(secret).public == keys.mask_public
    else:
        fits = commitment_of(fixed.terms.sha256, dealer, secret) == keys.commitment
    if not fits:
        raise DealtWrongly(dealer=dealer, problem="its shares give another secret than the one it has signed for")


def _check_half(fixed: FixedRound, dealer: str, member: str, half: bytes, commitment: bytes) -> None:
    if pair_commitment(fixed.members_sha256, dealer, member, half) != commitment:
        raise DealtWrongly(
            dealer=dealer, problem=f"its key of the pair with {member} is not the one it has committed to"
        )


def leftover_streams(fixed: FixedRound, opened: OpenedRound) -> list[SignedKey]:
    """Returns the keys of the streams that are to be added to the sum of the masked updates, so that no mask is left in it.

    Those are the opposites of each member's own stream, and of each stream that a member of the sum shares with a dealer outside.
    """
    r1, r2 = fixed.members_sha256, fixed.dealers_sha256
    left = [(self_stream_key(opened.own[name], r2, fixed.index(name)), 1) for name in fixed.in_sum]
    for (outsider, name), half in opened.halves.items():
        received = pair_key(opened.masks[outsider], r1, outsider, name)
        left.append(pair_key_with_sign(half, received, r2, fixed.index(name), fixed.index(outsider)))
    return opposite(left)


class Unmasking:
    """The sum of a round, slice by slice from the tail on."""

    def __init__(self, leftover: Iterable[SignedKey], offset: int = 0) -> None:
        """Opens the streams. leftover: as leftover_streams returns them. offset: of the first slice, in numbers."""
        self._streams = MaskStreams(leftover, offset)

    def unmasked(self, slices: Sequence[NDArray[np.uint32]]) -> NDArray[np.uint32]:
        """Returns the next slice of the sum. slices: the same slice of each masked update. Shapes: (n,) each, result (n,)."""
        total = slices[0].astype(np.uint32)
        for masked in slices[1:]:
            np.add(total, masked, out=total)
        self._streams.add_to(total)
        return total
