"""A member's identity as files in one folder: the member's name and role, the trusted authority, the key and the certificate.

identity.json     federation, name, role, group and addresses; no secret
authority.pem     the root certificate that must have signed the coordinator's certificate
credentials.pem   private key, certificate and intermediate certificate; mode 0600, replaced as a whole at each renewal
previous.pem      the credentials before the newest renewal; they help if somebody else renews with a stolen key
next-key.pem      a key that has no certificate yet; an interrupted certificate request is repeated with this key
peer-key.pem      private key for statements in private rounds; mode 0600, made once, because other members pin it
"""

import base64
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from pluralllm.common.errors.membership import AlreadyJoined, CertificateInvalid, NotJoined
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.process.environment import proxies_of
from pluralllm.common.process.files import hide_from_git, make_folder, owner_hint, storage_errors, write_durably
from pluralllm.common.process.proxies import DIRECT, Proxies
from pluralllm.common.text.reading import json_value, read_bytes, read_text
from pluralllm.common.trust.certificates import (
    CertificateFacts,
    PrivateKey,
    fingerprint,
    key_from_pem,
    key_to_pem,
    new_key,
    read_certificate,
)
from pluralllm.common.trust.record_signatures import RecordVerifier, check_record_key
from pluralllm.common.words.addresses import Addresses, check_listen
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import GroupRole, MemberRole

SECRET = 0o600  # file mode
PREVIOUS, MEMBERSHIP, PEER_KEY = "previous.pem", "identity.json", "peer-key.pem"
OPTIONAL = frozenset({"group", "group_role", "record_key"})  # keys of identity.json
CHECKS_OF: Mapping[str, Callable[[str], str]] = {
    "role": MemberRole,
    "group_role": GroupRole,
    "coordinator": check_listen,
    "enrolment": check_listen,
    "record_key": check_record_key,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """The content of identity.json: the member's federation, name, role and group, and the addresses of its coordinator.

    It is no model of pydantic, which takes longer to load than `pluralllm status` may take.
    """

    federation: str
    name: ClientId
    role: MemberRole
    group: str = ""  # only for a client
    group_role: GroupRole | None = None
    # An administrator made by `init` may have port 0 here, if the coordinator takes a free port; a command is given the address.
    coordinator: str
    enrolment: str
    # Public key that signs version records and the audit log's head, DER, base64; None if the invite had none.
    record_key: str | None = None

    @classmethod
    def from_json(cls, text: str) -> "Membership":
        """Reads the content of identity.json. Raises ValueError, which names the key, if the content has another form."""
        values = json_value(text)
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")  # noqa: TRY004 - as for all other damage
        values = {key: value for key, value in values.items() if value is not None or key not in OPTIONAL}
        needed = {one.name for one in fields(cls)} - OPTIONAL
        if wrong := sorted((values.keys() - needed - OPTIONAL) | (needed - values.keys())):
            raise ValueError(f"the key {wrong[0]} {'is missing' if wrong[0] in needed else 'is unknown'}")
        for key, value in values.items():
            if not isinstance(value, str):
                raise ValueError(f"the value of {key} is no text")  # noqa: TRY004
            try:
                values[key] = CHECKS_OF.get(key, str)(value)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
        return cls(**values)

    def to_json(self) -> str:
        """Returns the content of identity.json."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        return json.dumps(values, indent=2, ensure_ascii=False)

    @property
    def record_verifier(self) -> RecordVerifier | None:
        """The record key with which this member checks signatures; None if an older release has made the invite."""
        return RecordVerifier(self.federation, base64.b64decode(self.record_key)) if self.record_key else None


@dataclass(frozen=True, slots=True)
class Identity:
    """A member's complete identity, as read from the files in its folder."""

    folder: Path
    membership: Membership
    authority_pem: bytes
    key_pem: bytes = field(repr=False)
    chain_pem: bytes  # certificate, then the intermediate
    facts: CertificateFacts
    proxies: Proxies = DIRECT  # how this member reaches its coordinator

    @property
    def credentials(self) -> Path:
        """The path of the file with key and certificate chain, in the form that Python's ssl module loads."""
        return self.folder / "credentials.pem"

    def at(self, coordinator: str | None = None, enrolment: str | None = None) -> "Identity":
        """Returns this identity with other addresses (host:port) of the coordinator. None leaves an address unchanged."""
        if coordinator is None and enrolment is None:
            return self
        membership = replace(
            self.membership,
            coordinator=self.membership.coordinator if coordinator is None else coordinator,
            enrolment=self.membership.enrolment if enrolment is None else enrolment,
        )
        return replace(self, membership=membership)

    def through(self, proxies: Proxies) -> "Identity":
        """Returns a copy of this identity that reaches its coordinator as `proxies` says."""
        return replace(self, proxies=proxies)

    def is_renewal_due(self, now_s: float) -> bool:
        return now_s >= self.facts.renew_s


def load_identity(folder: Path, command: str) -> Identity:
    """Reads the identity in a folder. command: the command that joins a federation; the message of NotJoined names this command.

    The identity reaches its coordinator through the proxy that the environment names.
    Raises NotJoined if the folder has no credentials; InvalidConfig, which names the file, if a file is missing or damaged.
    """
    if not (folder / "credentials.pem").is_file():
        raise NotJoined(folder=str(folder), command=command)
    name = "identity.json"
    try:
        membership = Membership.from_json(read_text(folder / name))
        name = "authority.pem"
        authority_pem = read_bytes(folder / name)
        x509.load_pem_x509_certificate(authority_pem)
        name = "credentials.pem"
        key_pem, chain_pem, facts = _read_credentials(folder / name)
    except (OSError, ValueError, CertificateInvalid) as error:
        forbidden = isinstance(error, PermissionError) or isinstance(error.__cause__, PermissionError)
        fix = owner_hint(folder / name) if forbidden else "Move the folder away and join with a new invite."
        problem = f"  {str(error).splitlines()[0].rstrip('.')}. {fix}".rstrip()
        raise InvalidConfig(file=str(folder / name), problems=problem) from error
    return Identity(folder, membership, authority_pem, key_pem, chain_pem, facts, proxies_of(None))


def check_free(folder: Path, federation: str, name: str) -> bool:
    """Returns whether the folder already holds the certificate of the member `name` of this federation.

    Raises AlreadyJoined if the folder holds another member's certificate; InvalidConfig if the identity in the folder is damaged.
    """
    if not (folder / "identity.json").is_file() or not (folder / "credentials.pem").is_file():
        return False
    membership = load_identity(folder, "").membership
    if (membership.federation, membership.name) != (federation, name):
        raise AlreadyJoined(folder=str(folder), name=membership.name, federation=membership.federation)
    return True


def next_key(folder: Path) -> PrivateKey:
    """Returns the key for the member's next certificate request, from the file next-key.pem.

    If there is no such file, the function makes a new key and stores the key in the file. The file stays until
    `save_identity` or `save_renewal` stores a certificate for the key.
    Raises InvalidConfig if the folder cannot be used, StorageFull if the disk is full.
    """
    path = folder / "next-key.pem"
    with _writing(folder):
        make_folder(folder)
        hide_from_git(folder)
        with contextlib.suppress(FileNotFoundError, CertificateInvalid):
            return key_from_pem(path.read_bytes())
        key = new_key()
        write_durably(path, key_to_pem(key), SECRET)
    return key


def peer_key(folder: Path) -> PrivateKey:
    """Returns the key with which the member signs in private rounds, from the file peer-key.pem. Makes it the first time.

    A damaged file is never replaced: the members that have pinned the key would refuse another one.
    Raises InvalidConfig if the file or the folder cannot be used, StorageFull if the disk is full.
    """
    path = folder / PEER_KEY
    with _writing(folder):
        make_folder(folder)
        try:
            pem = path.read_bytes()
        except FileNotFoundError:
            key = new_key()
            write_durably(path, key_to_pem(key), SECRET)
            return key
    try:
        return key_from_pem(pem)
    except CertificateInvalid as error:
        problem = "  it holds no P-256 key. Restore it from a backup: the other members have pinned it."
        raise InvalidConfig(file=str(path), problems=problem) from error


def save_identity(
    folder: Path, membership: Membership, authority_pem: bytes, key: PrivateKey, chain_pem: bytes
) -> Identity:
    """Writes a complete identity to a folder. chain_pem: the member's certificate, then the intermediate certificate.

    credentials.pem is written last, so an interruption leaves either no credentials or a complete identity.
    Raises CertificateInvalid if key, certificate and membership do not belong together; InvalidConfig if the folder cannot be
    written, StorageFull if the disk is full.
    """
    facts = _checked(membership, key, chain_pem)
    with _writing(folder):
        make_folder(folder)
        hide_from_git(folder)
        _write_membership(folder, membership)
        write_durably(folder / "authority.pem", authority_pem)
        _write_credentials(folder, key, chain_pem)
    return Identity(folder, membership, authority_pem, key_to_pem(key), chain_pem, facts, proxies_of(None))


def save_renewal(identity: Identity, key: PrivateKey, chain_pem: bytes) -> Identity:
    """Replaces a member's key and certificate by new ones, and returns the new identity.

    The folder keeps the replaced credentials until the next renewal: `previous_identity` reads them. chain_pem: the new
    certificate, then the intermediate certificate. Raises CertificateInvalid if key, certificate and membership do not belong
    together; InvalidConfig if the folder cannot be written, StorageFull if the disk is full.
    """
    facts = _checked(identity.membership, key, chain_pem)
    with _writing(identity.folder):
        write_durably(identity.folder / PREVIOUS, identity.key_pem + identity.chain_pem, SECRET)
        _write_credentials(identity.folder, key, chain_pem)
    return replace(identity, key_pem=key_to_pem(key), chain_pem=chain_pem, facts=facts)


def stored_addresses(folder: Path) -> Addresses:
    """Returns the coordinator's addresses in an identity's folder. Raises InvalidConfig if the file cannot be read."""
    membership = _read_membership(folder)
    return Addresses(membership.coordinator, membership.enrolment)


def save_addresses(folder: Path, addresses: Addresses) -> None:
    """Replaces the coordinator's addresses in an identity's folder, and nothing else.

    Raises InvalidConfig if the file cannot be read or written; StorageFull if the disk is full.
    """
    before = _read_membership(folder)
    membership = replace(before, coordinator=addresses.coordinator, enrolment=addresses.enrolment)
    with _writing(folder):
        _write_membership(folder, membership)


def stored_identity(identity: Identity) -> Identity:
    """Returns the identity that the folder holds now, because another process of this member may have renewed it meanwhile.

    Returns `identity` itself if the folder holds the same certificate, or no readable one.
    """
    try:
        stored = load_identity(identity.folder, "")
    except (NotJoined, InvalidConfig):
        return identity
    if stored.facts.serial == identity.facts.serial:
        return identity
    return replace(stored, membership=identity.membership, proxies=identity.proxies)


def previous_identity(identity: Identity, now_s: float) -> Identity | None:
    """Returns the member with the credentials before the newest renewal; None if there are none, or if they have expired."""
    try:
        key_pem, chain_pem, facts = _read_credentials(identity.folder / PREVIOUS)
    except (OSError, ValueError, CertificateInvalid):
        return None
    if facts.name != identity.facts.name or now_s >= facts.not_after_s or facts.serial == identity.facts.serial:
        return None
    return replace(identity, key_pem=key_pem, chain_pem=chain_pem, facts=facts)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns an OSError of the `with` block into StorageFull if the disk is full, otherwise into InvalidConfig with the folder."""
    try:
        with storage_errors(f"the identity in {folder}"):
            yield
    except OSError as error:
        problem = f"  it cannot be written: {error.strerror}. {owner_hint(folder)}"
        raise InvalidConfig(file=str(folder), problems=problem.rstrip()) from error


def _checked(membership: Membership, key: PrivateKey, chain_pem: bytes) -> CertificateFacts:
    """Reads a certificate and checks that the certificate is for this key and this member.

    Raises CertificateInvalid if a check fails.
    """
    facts = read_certificate(chain_pem)
    _check_pair(key, facts)
    if (facts.federation, facts.role, facts.name) != (membership.federation, membership.role, membership.name):
        raise CertificateInvalid(what="the certificate", problem="the coordinator answered with one for another member")
    return facts


def _read_credentials(path: Path) -> tuple[bytes, bytes, CertificateFacts]:
    """Reads a private key and its certificate chain, both PEM, and the certificate's facts.

    Raises OSError, ValueError or CertificateInvalid if the file is missing or damaged.
    """
    key_pem, mark, chain = read_bytes(path).partition(b"-----BEGIN CERTIFICATE-----")
    key, facts = key_from_pem(key_pem), read_certificate(mark + chain)
    _check_pair(key, facts)
    return key_pem, mark + chain, facts


def _read_membership(folder: Path) -> Membership:
    path = folder / MEMBERSHIP
    try:
        return Membership.from_json(read_text(path))
    except (OSError, ValueError) as error:
        raise InvalidConfig(file=str(path), problems=f"  {str(error).splitlines()[0]}") from error


def _write_membership(folder: Path, membership: Membership) -> None:
    write_durably(folder / MEMBERSHIP, membership.to_json().encode())


def _write_credentials(folder: Path, key: PrivateKey, chain_pem: bytes) -> None:
    write_durably(folder / "credentials.pem", key_to_pem(key) + chain_pem, SECRET)
    (folder / "next-key.pem").unlink(missing_ok=True)


def _check_pair(key: PrivateKey, facts: CertificateFacts) -> None:
    if fingerprint(key.public_key()) != facts.key_sha256:
        raise CertificateInvalid(what="the certificate", problem="it is for another key")


def der_to_pem(certificate_der: bytes) -> bytes:
    """Converts an authority's certificate from DER to PEM. Raises CertificateInvalid if the certificate cannot be read."""
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
    except ValueError as error:
        raise CertificateInvalid(what="the authority's certificate", problem=str(error)) from error
    return certificate.public_bytes(serialization.Encoding.PEM)
