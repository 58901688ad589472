"""The transcript of a private round: everything from which anybody can check the round and compute its sum again.

It is one canonical JSON text; its SHA-256 stands in the record of the model version that the round made. It holds no secret of a
member in both kinds, so that no single update can be read with it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from pluralllm.common.errors.private_rounds import BadView, DealtWrongly
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.private_rounds.dealing import pair_commitment
from pluralllm.common.private_rounds.field_checks import check_name, check_number, check_size
from pluralllm.common.private_rounds.json_bodies import canonical, read_canonical
from pluralllm.common.private_rounds.messages import (
    PAIR_KEY_BYTES,
    Body,
    BoxLine,
    Confirmation,
    RoundMember,
    Shares,
    UpdateStatement,
)
from pluralllm.common.private_rounds.round_sum import FixedRound, OpenedRound, check_secret
from pluralllm.common.private_rounds.round_view import MemberConfirmation
from pluralllm.common.private_rounds.shamir import SECRET_BYTES
from pluralllm.common.private_rounds.statements import RoundTerms
from pluralllm.common.weights.update_format import TAIL

MAX_BYTES = 8 * 1024 * 1024  # the transcript of 128 members, of whom 51 are outside the sum, has 3 MiB


@dataclass(frozen=True, slots=True)
class OwnMask(Body):
    """The secret b of a member of the sum."""

    name: str
    secret: bytes

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_size("secret", self.secret, SECRET_BYTES)


@dataclass(frozen=True, slots=True)
class PairHalf(Body):
    """The half of a pair's key that a member of the sum has dealt to a dealer outside, and the box line that commits to it."""

    name: str  # of the member of the sum
    half: bytes
    line: BoxLine

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_size("half", self.half, PAIR_KEY_BYTES)


@dataclass(frozen=True, slots=True)
class Outsider(Body):
    """The secret m of a dealer outside the sum, and the halves that the members of the sum have dealt to it."""

    name: str
    secret: bytes
    halves: tuple[PairHalf, ...]  # one for each member of the sum, sorted by name

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_size("secret", self.secret, SECRET_BYTES)


@dataclass(frozen=True)
class Transcript:
    """The transcript of a closed private round."""

    terms: RoundTerms
    members: tuple[RoundMember, ...]  # sorted by name, as all tuples here
    dealers: tuple[str, ...]
    updates: tuple[UpdateStatement, ...]
    confirmations: tuple[MemberConfirmation, ...]
    own_masks: tuple[OwnMask, ...]  # of the members of the sum
    outsiders: tuple[Outsider, ...]
    tail: tuple[int, ...]  # of the sum

    @classmethod
    def of(
        cls,
        fixed: FixedRound,
        opened: OpenedRound,
        shares: Mapping[str, Shares],
        confirmations: Mapping[str, Confirmation],
        tail: tuple[int, ...],
    ) -> "Transcript":
        """Returns the transcript of a round that was opened. tail: the 64 numbers of the sum's tail."""
        outsiders = []
        for outsider in fixed.outside:
            lines = {name: shares[name].box_of(fixed.index(outsider)).line for name in fixed.in_sum}
            halves = (PairHalf(name, opened.halves[outsider, name], lines[name]) for name in fixed.in_sum)
            outsiders.append(Outsider(outsider, opened.masks[outsider], tuple(halves)))
        return cls(
            terms=fixed.terms,
            members=fixed.members,
            dealers=fixed.dealers,
            updates=fixed.updates,
            confirmations=tuple(
                MemberConfirmation(name, confirmations[name].signature) for name in sorted(confirmations)
            ),
            own_masks=tuple(OwnMask(name, opened.own[name]) for name in fixed.in_sum),
            outsiders=tuple(outsiders),
            tail=tail,
        )

    def to_json(self) -> bytes:
        """Returns the transcript's canonical JSON. Its SHA-256 names the transcript."""
        return canonical(self)

    @classmethod
    def from_json(cls, body: bytes) -> "Transcript":
        """Reads a transcript. Raises InvalidArgument for anything but the canonical JSON of one. Nothing is checked yet."""
        return read_canonical(cls, body, MAX_BYTES)

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON, in lower-case hex."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @cached_property
    def fixed(self) -> FixedRound:
        """The round's members, dealers and updates, with their digests."""
        return FixedRound(self.terms, self.members, self.dealers, self.updates)

    def opened(self) -> OpenedRound:
        """Checks the transcript and returns the secrets that it holds, from which leftover_streams follow.

        Checks every signature, that enough dealers have confirmed the one sum, that the sum is large enough for its members as
        far as their boxes are here, and that every secret is the one that its owner has signed. The caller compares the terms
        with its own, the peer keys with its pins, the tail with the sum, and its own statements with its notebook.
        Raises InvalidArgument, BadView or DealtWrongly.
        """
        fixed = self.fixed
        fixed.check()
        names = [one.name for one in self.confirmations]
        if names != sorted(set(names)):
            raise InvalidArgument(field="confirmations", problem="are not sorted by name, or one is there twice")
        fixed.check_confirmations(
            {one.name: Confirmation(fixed.sum_sha256, one.signature) for one in self.confirmations}
        )
        for field_name, present, expected in (
            ("own_masks", tuple(one.name for one in self.own_masks), fixed.in_sum),
            ("outsiders", tuple(one.name for one in self.outsiders), fixed.outside),
        ):
            if present != expected:
                raise InvalidArgument(field=field_name, problem="are not those of this sum")
        check_size("tail", bytes(len(self.tail)), TAIL)
        for word in self.tail:
            check_number("tail", word, 0, 2**32 - 1)
        for one in self.own_masks:
            check_secret(fixed, one.name, one.secret, is_mask=False)
        halves = {}
        for outsider in self.outsiders:
            check_secret(fixed, outsider.name, outsider.secret, is_mask=True)
            if tuple(one.name for one in outsider.halves) != fixed.in_sum:
                raise InvalidArgument(field="halves", problem="are not one of each member of the sum")
            for pair in outsider.halves:
                self._check_half(outsider.name, pair)
                halves[outsider.name, pair.name] = pair.half
        own = {one.name: one.secret for one in self.own_masks}
        return OpenedRound(own, {one.name: one.secret for one in self.outsiders}, halves)

    def _check_half(self, outsider: str, half: PairHalf) -> None:
        r1, key = self.fixed.members_sha256, self.fixed.member(half.name).peer_key_der
        if not half.line.is_signed(key, r1, half.name, outsider):
            raise BadView(member=half.name, problem=f"its box for {outsider} is not signed for this round")
        if pair_commitment(r1, half.name, outsider, half.half) != half.line.pair_commitment:
            problem = f"its key of the pair with {outsider} is not the one it has committed to"
            raise DealtWrongly(dealer=half.name, problem=problem)
        if half.line.least > len(self.updates):
            problem = f"are {len(self.updates)}, {half.name} takes part in sums of at least {half.line.least}"
            raise InvalidArgument(field="updates", problem=problem)
