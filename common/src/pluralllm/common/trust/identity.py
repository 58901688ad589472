"""A member's identity on its own disk: whose it is, the authority it trusts, and its key with the certificate.

identity.json     federation, name, role, group, addresses: no secret
authority.pem     the root certificate the coordinator must prove itself by
credentials.pem   private key, certificate, intermediate: 0600, replaced whole at each renewal
next-key.pem      a key whose certificate has not come yet, so that a try that broke off is repeated with the same key
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pydantic import BaseModel, ConfigDict, ValidationError

from pluralllm.common.errors.membership import AlreadyJoined, CertificateInvalid, NotJoined
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.process.files import storage_errors, write_durably
from pluralllm.common.trust.certificates import (
    CertificateFacts,
    PrivateKey,
    fingerprint,
    key_from_pem,
    key_to_pem,
    new_key,
    read_certificate,
)
from pluralllm.common.trust.invite import Address
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole

SECRET = 0o600


class Membership(BaseModel):
    """identity.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    federation: str
    name: Annotated[ClientId, str]
    role: MemberRole
    group: str = ""  # of a client
    group_role: GroupRole | None = None
    coordinator: Address
    enrolment: Address


@dataclass(frozen=True, slots=True)
class Identity:
    """A complete identity, as it is on disk."""

    folder: Path
    membership: Membership
    authority_pem: bytes
    key_pem: bytes = field(repr=False)
    chain_pem: bytes  # certificate, then the intermediate
    facts: CertificateFacts

    @property
    def credentials(self) -> Path:
        """Key and chain in one file, as Python's ssl module loads them."""
        return self.folder / "credentials.pem"

    def at(self, coordinator: str | None) -> "Identity":
        """The same member, the coordinator looked for at another address."""
        if coordinator is None:
            return self
        return replace(self, membership=self.membership.model_copy(update={"coordinator": coordinator}))

    def is_renewal_due(self, now_s: float) -> bool:
        return now_s >= self.facts.renew_s


def load_identity(folder: Path, command: str) -> Identity:
    """Raises NotJoined (`command` is the one that joins), InvalidConfig naming the file that is damaged."""
    if not (folder / "credentials.pem").is_file():
        raise NotJoined(folder=str(folder), command=command)
    name = "identity.json"
    try:
        membership = Membership.model_validate_json((folder / name).read_bytes())
        name = "authority.pem"
        authority_pem = (folder / name).read_bytes()
        x509.load_pem_x509_certificate(authority_pem)
        name = "credentials.pem"
        key_pem, mark, chain = (folder / name).read_bytes().partition(b"-----BEGIN CERTIFICATE-----")
        key, facts = key_from_pem(key_pem), read_certificate(mark + chain)
        _check_pair(key, facts)
    except (OSError, ValueError, ValidationError, CertificateInvalid) as error:
        problem = f"  {str(error).splitlines()[0]} Move the folder away and join with a new invite."
        raise InvalidConfig(file=str(folder / name), problems=problem) from error
    return Identity(folder, membership, authority_pem, key_pem, mark + chain, facts)


def check_free(folder: Path, federation: str, name: str) -> bool:
    """Whether this very member has its certificate here already. Raises AlreadyJoined if another one lives here."""
    if not (folder / "identity.json").is_file() or not (folder / "credentials.pem").is_file():
        return False
    found = load_identity(folder, "").membership
    if (found.federation, found.name) != (federation, name):
        raise AlreadyJoined(folder=str(folder), name=found.name, federation=found.federation)
    return True


def next_key(folder: Path) -> PrivateKey:
    """The key to ask a certificate for: made once, kept until `save_identity`. Raises InvalidConfig, StorageFull."""
    path = folder / "next-key.pem"
    with _writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError, CertificateInvalid):
            return key_from_pem(path.read_bytes())
        key = new_key()
        write_durably(path, key_to_pem(key), SECRET)
    return key


def save_identity(
    folder: Path, membership: Membership, authority_pem: bytes, key: PrivateKey, chain_pem: bytes
) -> Identity:
    """Makes an identity complete: credentials.pem last, whole or not at all.

    Raises CertificateInvalid, InvalidConfig, StorageFull.
    """
    facts = _checked(membership, key, chain_pem)
    about = json.dumps(membership.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False)
    with _writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(folder / "identity.json", about.encode())
        write_durably(folder / "authority.pem", authority_pem)
        _write_credentials(folder, key, chain_pem)
    return Identity(folder, membership, authority_pem, key_to_pem(key), chain_pem, facts)


def save_renewal(identity: Identity, key: PrivateKey, chain_pem: bytes) -> Identity:
    """The same member with its next certificate. Raises CertificateInvalid, InvalidConfig, StorageFull."""
    facts = _checked(identity.membership, key, chain_pem)
    with _writing(identity.folder):
        _write_credentials(identity.folder, key, chain_pem)
    return replace(identity, key_pem=key_to_pem(key), chain_pem=chain_pem, facts=facts)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raises InvalidConfig naming the folder, StorageFull."""
    try:
        with storage_errors(f"the identity in {folder}"):
            yield
    except OSError as error:
        raise InvalidConfig(file=str(folder), problems=f"  it cannot be written: {error.strerror}") from error


def _checked(membership: Membership, key: PrivateKey, chain_pem: bytes) -> CertificateFacts:
    facts = read_certificate(chain_pem)
    _check_pair(key, facts)
    if (facts.federation, facts.role, facts.name) != (membership.federation, membership.role, membership.name):
        raise CertificateInvalid(what="the certificate", problem="the coordinator answered with one for another member")
    return facts


def _write_credentials(folder: Path, key: PrivateKey, chain_pem: bytes) -> None:
    write_durably(folder / "credentials.pem", key_to_pem(key) + chain_pem, SECRET)
    (folder / "next-key.pem").unlink(missing_ok=True)


def _check_pair(key: PrivateKey, facts: CertificateFacts) -> None:
    if fingerprint(key.public_key()) != facts.key_sha256:
        raise CertificateInvalid(what="the certificate", problem="it is for another key")


def der_to_pem(certificate_der: bytes) -> bytes:
    """Raises CertificateInvalid."""
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
    except ValueError as error:
        raise CertificateInvalid(what="the authority's certificate", problem=str(error)) from error
    return certificate.public_bytes(serialization.Encoding.PEM)
