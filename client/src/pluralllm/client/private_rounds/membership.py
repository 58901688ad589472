"""This client in one private round, and the checks of the other members before anything is dealt to them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from pluralllm.common.errors.private_rounds import BadView, HiddenAmongTooFew, PeerKeyDiffers, TooFewKnown, WrongStep
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.private_rounds.messages import (
    MOST_DEMAND,
    Keys,
    RoundMember,
    check_members,
    digest_of_members,
)
from pluralllm.common.private_rounds.peer_keys import fingerprint, public_der
from pluralllm.common.private_rounds.roster import Roster
from pluralllm.common.private_rounds.round_view import RoundView
from pluralllm.common.private_rounds.statements import PrivateKey, RoundTerms
from pluralllm.common.private_rounds.thresholds import (
    adding_scores,
    least_in_sum,
    may_deal,
    pinned_needed,
    score_demand,
)
from pluralllm.common.words.private_rounds import threshold

COORDINATOR = "the coordinator"  # in errors, where no member is to blame


@dataclass(frozen=True, slots=True)
class Myself:
    """This client in one round: its key, its own knowledge of the terms, and whom it believes."""

    name: str
    key: PrivateKey = field(repr=False)
    terms: RoundTerms  # from this client's own spec, chain of records and roster
    pins: Mapping[str, str]  # fingerprint of the peer key of each pinned member; its own is not needed
    colluders: int  # number of pinned members that may collude with the coordinator, as the policy says
    hidden_among: int  # least number of honest updates in a sum, its own included, as the policy says
    checked: bool  # whether this client has computed the base version again from what is public
    # Above 0: this client has a score of the base version for the sum, and this is how many members must add theirs.
    score_among: int = 0


@dataclass(frozen=True, slots=True)
class Members:
    """The members of a round, after this client has checked them."""

    members: tuple[RoundMember, ...]
    sha256: bytes  # R1
    index: int  # of this client
    threshold: int  # number of members that must confirm and reveal a sum
    pinned: frozenset[str]  # names, this client's own included
    least: int  # fewest updates of a sum that this client's update may be part of
    adding: frozenset[str] = frozenset()  # names of the members that add their scores to the sum

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all members, sorted."""
        return tuple(member.name for member in self.members)

    def key_of(self, name: str) -> bytes:
        """Returns a member's peer key (SubjectPublicKeyInfo, DER). Raises KeyError if there is no such member."""
        return next_of(self.members, name).peer_key_der


def demand_of(roster: Roster, name: str, pins: Mapping[str, str], *, colluders: int, hidden_among: int) -> int:
    """Returns how many members of a round must add their scores, so that this client adds its own.

    Any member of the roster that this client has not pinned may be in the round.
    """
    unpinned = sum(other not in pins for other in roster.members if other != name)
    demand = score_demand(unpinned=unpinned, colluders=colluders, hidden_among=hidden_among)
    return min(demand, MOST_DEMAND)


def next_of(members: tuple[RoundMember, ...], name: str) -> RoundMember:
    """Returns the member with a name. Raises KeyError if there is none."""
    for member in members:
        if member.name == name:
            return member
    raise KeyError(name)


def check_terms(me: Myself, view: RoundView) -> None:
    """Checks that the coordinator's terms are those that this client has computed. Raises WrongStep, which names the fields."""
    wrong = [one.name for one in fields(RoundTerms) if getattr(view.terms, one.name) != getattr(me.terms, one.name)]
    if wrong:
        problem = f"the coordinator states another {', '.join(wrong)} for round {me.terms.round} of run {me.terms.run}"
        raise WrongStep(problem=problem)


def check_round(me: Myself, view: RoundView, own_keys: Keys, dealt_to: bytes | None) -> Members:
    """Checks the terms and all members of a round, and returns the members.

    own_keys: the keys that this client has sent. dealt_to: R1 of the members that it has dealt to, whose signatures it has
    checked then; None before that.
    Raises WrongStep for other terms; BadView for members that cannot be; PeerKeyDiffers if a pinned member has another key;
    TooFewKnown if two different sums could be revealed; HiddenAmongTooFew if this client may be in no sum of these members.
    """
    check_terms(me, view)
    try:
        names = check_members(view.members)
    except InvalidArgument as error:
        raise BadView(member=COORDINATOR, problem=f"the list of members: {error.field} {error.problem}") from error
    if len(names) > me.terms.places:
        raise BadView(member=COORDINATOR, problem=f"{len(names)} members are more than {me.terms.places} places")
    own = RoundMember(me.name, public_der(me.key), own_keys)
    if me.name not in names or next_of(view.members, me.name) != own:
        raise BadView(member=me.name, problem="the list of members does not have the keys that this client has sent")
    digest = digest_of_members(me.terms.sha256, view.members)
    if dealt_to is not None and digest != dealt_to:
        raise BadView(member=COORDINATOR, problem="the members are not those that this client has dealt to")
    for member in view.members if dealt_to is None else ():
        if not member.keys.is_signed(member.peer_key_der, me.terms.sha256, member.name):
            raise BadView(member=member.name, problem="it has not signed its keys for this round")
    pinned = frozenset({me.name, *(member.name for member in view.members if _is_pinned(me, member))})
    quorum, least = _checked_numbers(me, len(names), len(pinned))
    _check_demand(me, own_keys, len(names) - len(pinned))
    adding = adding_scores({member.name: member.keys.score_among for member in view.members}, threshold=quorum)
    return Members(view.members, digest, 1 + names.index(me.name), quorum, pinned, least, adding)


def _check_demand(me: Myself, own_keys: Keys, unpinned: int) -> None:
    """Checks that the demand that this client has signed for its score allows for the members that it does not know.

    The others rely on it that a client whose demand is met adds its score. Raises HiddenAmongTooFew: the client deals nothing.
    """
    needed = score_demand(unpinned=unpinned, colluders=me.colluders, hidden_among=me.hidden_among)
    if 0 < own_keys.score_among < needed:
        problem = f"{unpinned} members are not pinned, more than the roster had when this client has sent its keys"
        raise HiddenAmongTooFew(problem=problem)


def _is_pinned(me: Myself, member: RoundMember) -> bool:
    """Returns whether a member is pinned. Raises PeerKeyDiffers if its key is not the pinned one."""
    pin, presented = me.pins.get(member.name), fingerprint(member.peer_key_der)
    if pin is not None and pin != presented:
        raise PeerKeyDiffers(name=member.name, known=pin, got=presented)
    return pin is not None


def _checked_numbers(me: Myself, members: int, pinned: int) -> tuple[int, int]:
    """Returns the threshold, and the fewest updates of a sum that this client's update may be part of.

    members, pinned: numbers of them. Raises TooFewKnown or HiddenAmongTooFew if too few are pinned.
    """
    quorum = threshold(members, me.terms.colluders)
    if not may_deal(members=members, pinned=pinned, threshold=quorum, colluders=me.colluders):
        needed = pinned_needed(members=members, threshold=quorum, colluders=me.colluders)
        raise TooFewKnown(members=members, pinned=pinned, needed=needed)
    least = least_in_sum(members=members, pinned=pinned, colluders=me.colluders, hidden_among=me.hidden_among)
    if least > members:
        problem = f"it needs {least} updates in a sum, and the round has {members} members, {pinned} of them pinned"
        raise HiddenAmongTooFew(problem=problem)
    return quorum, least
