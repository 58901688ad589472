"""An invite: everything that a new member needs to find its coordinator, to recognise the coordinator, and to join once.

An invite contains the authority's root certificate, so a member never has to trust an unknown certificate.
An invite has two forms: a JSON file, or one line of text. A person can read the file before the invite is used. The line fits
into a chat or a mail. Both forms are secret until the invite is used.
"""

import base64
import binascii
import datetime
import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pluralllm.common.errors.membership import InviteInvalid
from pluralllm.common.text.printable import check_group_name
from pluralllm.common.text.reading import Unreadable, read_text
from pluralllm.common.trust.record_signatures import check_record_key
from pluralllm.common.words.address_fields import Address
from pluralllm.common.words.ids import ID_PATTERN
from pluralllm.common.words.roles import GroupRole, MemberRole

LINE_PREFIX = "pluralllm-invite:"
MAX_INVITE_BYTES = 8 * 1024
TOKEN_BYTES = 32


class Invite(BaseModel):
    """An invite for one new member. An administrator of the coordinator makes the invite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pluralllm_invite: Literal[1] = 1  # version of this format
    federation: Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,255}$")]
    name: Annotated[str, Field(pattern=ID_PATTERN)]
    role: MemberRole
    group: Annotated[str, AfterValidator(lambda name: name and check_group_name(name))] = ""  # only for a client
    group_role: GroupRole | None = None  # only for a client
    coordinator: Address
    enrolment: Address  # the coordinator's enrolment port
    authority: Annotated[str, Field(max_length=4096)]  # root certificate, DER, base64
    # Public key that signs version records and the audit log's head, DER, base64; None in invites of older releases.
    record_key: Annotated[str, AfterValidator(check_record_key)] | None = None
    token: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43}$", repr=False)]
    expires: datetime.datetime

    @property
    def authority_der(self) -> bytes:
        """The authority's root certificate in DER. Raises InviteInvalid if the invite's field `authority` is not base64."""
        try:
            return base64.b64decode(self.authority, validate=True)
        except binascii.Error as error:
            raise InviteInvalid(problem="its authority certificate is not base64") from error

    def to_json(self) -> str:
        """Returns the invite as the text of a JSON file."""
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"

    def to_line(self) -> str:
        """Returns the invite as one line of about 1,000 characters.

        The line has a prefix, the invite's other fields as JSON, a dot, and the root certificate. The JSON and the
        certificate are encoded as base64url.
        """
        facts = self.model_dump(mode="json", exclude_none=True, exclude={"authority"})
        compact = json.dumps(facts, separators=(",", ":"), ensure_ascii=False)
        return f"{LINE_PREFIX}{_encode(compact.encode())}.{_encode(self.authority_der)}"


def parse_invite(text: str) -> Invite:
    """Reads an invite from its JSON or from its one line.

    Raises InviteInvalid if the text is damaged; the error's message never contains the token.
    """
    text = text.strip()
    if len(text) > MAX_INVITE_BYTES:
        raise InviteInvalid(problem=f"it is longer than {MAX_INVITE_BYTES} characters")
    try:
        if text.startswith(LINE_PREFIX):
            facts, _, authority = "".join(text.removeprefix(LINE_PREFIX).split()).partition(
                "."
            )  # a mail may have wrapped it
            values = json.loads(_decode(facts))
            return Invite.model_validate({**values, "authority": base64.b64encode(_decode(authority)).decode()})
        return Invite.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "text"
        raise InviteInvalid(problem=f"{where}: {first['msg']}") from None
    except (ValueError, TypeError, RecursionError):
        raise InviteInvalid(problem="the line is damaged or incomplete") from None


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _decode(text: str) -> bytes:
    """Decodes base64url text that has no padding. Raises ValueError if the text is not base64url."""
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def load_invite(file_or_line: str) -> Invite:
    """Reads an invite. file_or_line: the path of the invite's file, or its one line.

    Raises InviteInvalid if the file cannot be read or the invite is damaged.
    """
    if file_or_line.startswith(LINE_PREFIX):
        return parse_invite(file_or_line)
    path = Path(file_or_line)
    try:
        text = read_text(path, MAX_INVITE_BYTES)
    except Unreadable as error:
        raise InviteInvalid(problem=str(error)) from error
    return parse_invite(text)


def token_hash(token: str) -> str:
    """Returns the SHA-256 of an invite's token in lower-case hex. The coordinator stores this hash instead of the token."""
    return hashlib.sha256(token.encode()).hexdigest()
