"""An invite: everything a new member needs to find its coordinator, to know it for certain, and to be let in once.

The root certificate travels in it, so nothing is trusted on first use. As a file it is JSON that can be read before it is used;
as one line it goes through a chat or a mail. Either is a secret until it is used.
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
from pluralllm.common.words.addresses import check_address
from pluralllm.common.words.ids import ID_PATTERN
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole

LINE_PREFIX = "pluralllm-invite:"
MAX_INVITE_BYTES = 8 * 1024
TOKEN_BYTES = 32

Address = Annotated[str, AfterValidator(check_address)]


class Invite(BaseModel):
    """What the coordinator's administrator gives to one new member."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pluralllm_invite: Literal[1] = 1  # version of this form
    federation: Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,255}$")]
    name: Annotated[str, Field(pattern=ID_PATTERN)]
    role: MemberRole
    group: Annotated[str, Field(max_length=200)] = ""  # of a client
    group_role: GroupRole | None = None  # of a client
    coordinator: Address
    enrolment: Address  # its enrolment port
    authority: Annotated[str, Field(max_length=4096)]  # root certificate, DER, base64
    token: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43}$", repr=False)]
    expires: datetime.datetime

    @property
    def authority_der(self) -> bytes:
        """Raises InviteInvalid."""
        try:
            return base64.b64decode(self.authority, validate=True)
        except binascii.Error as error:
            raise InviteInvalid(problem="its authority certificate is not base64") from error

    def to_json(self) -> str:
        """The file's content."""
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"

    def to_line(self) -> str:
        """The same in one line, about 1,000 characters: the facts and the certificate, each base64url."""
        facts = self.model_dump(mode="json", exclude_none=True, exclude={"authority"})
        compact = json.dumps(facts, separators=(",", ":"), ensure_ascii=False)
        return f"{LINE_PREFIX}{_encode(compact.encode())}.{_encode(self.authority_der)}"


def parse_invite(text: str) -> Invite:
    """Either form. Raises InviteInvalid, which never shows the token."""
    text = text.strip()
    if len(text) > MAX_INVITE_BYTES:
        raise InviteInvalid(problem=f"it is longer than {MAX_INVITE_BYTES} characters")
    try:
        if text.startswith(LINE_PREFIX):
            facts, _, authority = "".join(text.removeprefix(LINE_PREFIX).split()).partition(
                "."
            )  # a mail may have wrapped it
            given = json.loads(_decode(facts))
            return Invite.model_validate({**given, "authority": base64.b64encode(_decode(authority)).decode()})
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
    """Raises ValueError."""
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def load_invite(given: str) -> Invite:
    """An invite's file, or its one line itself. Raises InviteInvalid."""
    if given.startswith(LINE_PREFIX):
        return parse_invite(given)
    path = Path(given)
    try:
        if path.stat().st_size > MAX_INVITE_BYTES:
            raise InviteInvalid(problem=f"{path} is larger than {MAX_INVITE_BYTES} bytes")
        return parse_invite(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InviteInvalid(problem=f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InviteInvalid(problem=f"{path} is not text") from error


def token_hash(token: str) -> str:
    """What the coordinator keeps of a token: lower-case hex sha256."""
    return hashlib.sha256(token.encode()).hexdigest()
