"""The coordinator's view of a private round, as it shows the view to one member. A member believes nothing of it unchecked."""

from dataclasses import dataclass

from pluralllm.common.private_rounds.field_checks import check_name, check_signature
from pluralllm.common.private_rounds.messages import Body, Box, Complaint, RoundMember, UpdateStatement
from pluralllm.common.private_rounds.statements import RoundTerms


@dataclass(frozen=True, slots=True)
class DealtBox(Body):
    """A box for the member that reads the view, and the dealer that it comes from."""

    dealer: str
    box: Box


@dataclass(frozen=True, slots=True)
class DealtBoxes(Body):
    """All boxes that were dealt to one member, sorted by dealer."""

    boxes: tuple[DealtBox, ...]


@dataclass(frozen=True, slots=True)
class MemberComplaint:
    """A complaint, and the member that it comes from."""

    name: str
    complaint: Complaint


@dataclass(frozen=True, slots=True)
class MemberConfirmation(Body):
    """A dealer's signature over the sum."""

    name: str
    signature: bytes

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_signature(self.signature)


@dataclass(frozen=True, slots=True)
class RoundView:
    """The round as far as it has got; the fields of later steps are empty."""

    terms: RoundTerms
    members: tuple[RoundMember, ...] = ()  # once the keys are in; sorted by name
    dealers: tuple[str, ...] = ()  # once the shares are in; sorted
    boxes: tuple[DealtBox, ...] = ()  # for this member, sorted by dealer
    complaints: tuple[MemberComplaint, ...] = ()  # about boxes, sorted by name
    updates: tuple[UpdateStatement, ...] = ()  # of the sum, sorted by name
    confirmations: tuple[MemberConfirmation, ...] = ()  # of the sum, sorted by name
