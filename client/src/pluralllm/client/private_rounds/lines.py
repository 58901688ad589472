"""The lines of a round's notebook, and the order in which they may follow each other. It touches no file.

Each line binds this client for the rest of the round. A line holds the hash of what it is about: the terms, the members (R1), the
dealers (R2) or the sum (R3), as common.private_rounds.statements computes them.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Signature = Annotated[str, Field(pattern="^([0-9a-f]{2}){8,72}$")]  # DER
ShareValue = Annotated[str, Field(pattern="^[0-9a-f]{66}$", repr=False)]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KeysLine(_Line):
    """The round's terms and the secret from which all other secrets of the round follow."""

    step: Literal["keys"] = "keys"
    terms: Sha256
    secret: Annotated[str, Field(pattern="^[0-9a-f]{64}$", repr=False)]
    file: str  # identity of the file with the keys: a copy from a backup has another one
    message: Sha256


class SharesLine(_Line):
    """The members that this client has dealt to, and the two shares that it has kept of its own secrets."""

    step: Literal["shares"] = "shares"
    members: Sha256
    own_self: ShareValue
    own_mask: ShareValue
    message: Sha256


class BoxesLine(_Line):
    """The dealers of the round, and the boxes that this client has got from them."""

    step: Literal["boxes"] = "boxes"
    dealers: Sha256
    message: Sha256


class ComplaintLine(_Line):
    """The complaint about one dealer. This client masks nothing in the round."""

    step: Literal["complaint"] = "complaint"
    dealers: Sha256
    message: Sha256


class UpdateLine(_Line):
    """The one masked file of this client in the round, and its signature over the file and the dealers."""

    step: Literal["update"] = "update"
    dealers: Sha256
    digest: Sha256
    statement: Signature


class ConfirmLine(_Line):
    """The one sum that this client has confirmed."""

    step: Literal["confirm"] = "confirm"
    sum: Sha256
    message: Sha256


class RevealLine(_Line):
    """The shares that this client has revealed, all for the sum that it has confirmed."""

    step: Literal["reveal"] = "reveal"
    sum: Sha256
    message: Sha256


Line = KeysLine | SharesLine | BoxesLine | ComplaintLine | UpdateLine | ConfirmLine | RevealLine
Step = Literal["keys", "shares", "boxes", "complaint", "update", "confirm", "reveal"]
Lines = Mapping[str, Line]  # by step
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="step")])

# The steps that must be in the notebook before a step, and those that must not.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "keys": (),
    "shares": ("keys",),
    "boxes": ("shares",),
    "complaint": ("boxes",),
    "update": ("boxes",),
    "confirm": ("boxes",),
    "reveal": ("confirm",),
}
EXCLUDES: Mapping[str, tuple[str, ...]] = {
    "complaint": ("update", "confirm"),
    "update": ("complaint", "confirm"),
}


def encoded(line: Line) -> bytes:
    """Returns a line as JSON, with its end."""
    return line.model_dump_json().encode() + b"\n"


def parsed(text: bytes) -> Line:
    """Returns the line that a JSON text holds. Raises ValidationError if it holds none."""
    return _LINE.validate_json(text)


def why_not(lines: Lines, new: Line) -> str:
    """Returns why a line must not be added to a notebook; empty if it may.

    A line that is there already may be added again. lines: the lines of the notebook, by step.
    """
    old = lines.get(new.step)
    if old is not None:
        return "" if old == new else f"the step {new.step} is done, with other content"
    for step in NEEDS[new.step]:
        if step not in lines:
            return f"the step {new.step} needs the step {step}, which is not done"
    for step in EXCLUDES.get(new.step, ()):
        if step in lines:
            return f"the step {new.step} must not follow the step {step}"
    boxes, confirm = lines.get("boxes"), lines.get("confirm")
    if isinstance(new, ComplaintLine | UpdateLine) and isinstance(boxes, BoxesLine) and new.dealers != boxes.dealers:
        return f"the step {new.step} is about other dealers than the boxes"
    if isinstance(new, RevealLine) and isinstance(confirm, ConfirmLine) and new.sum != confirm.sum:
        return "the sum to reveal is not the one that was confirmed"
    return ""
