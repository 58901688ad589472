"""The federation's certificate authority (RFC 5280): a root that may be kept elsewhere, and the intermediate that signs here.

These files are in the folder STATE/authority/:

federation.json              name and advertised hosts; written last, so that the file marks a complete folder
root.pem, root-key.pem       the root; the root's key is needed once a year and may be moved to a safe place
issuer.pem                   key and certificate of the intermediate, valid for one year; signs members' and server's certificates
record-key.pem               the key that signs version records and the audit log's head; record_key.py reads it
server.pem                   this server's key, certificate and intermediate; replaced as a whole, read again without a restart
"""

import datetime
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from pluralllm.common.errors.membership import (
    AlreadyInitialised,
    CertificateExpired,
    CertificateForeign,
    CertificateInvalid,
    CertificateNotYetValid,
    CertificateWrongUse,
    IssuerExpired,
    NotInitialised,
)
from pluralllm.common.errors.tree import InvalidArgument, InvalidConfig
from pluralllm.common.process.files import hide_from_git, make_folder, storage_errors, sync_directory, write_durably
from pluralllm.common.text.reading import Unreadable, read_bytes, read_json
from pluralllm.common.trust.certificates import (
    BACKDATE_S,
    RENEW_AT,
    UNREADABLE,
    CertificateFacts,
    PrivateKey,
    key_from_pem,
    key_to_pem,
    member_uri,
    new_key,
    read_certificate,
)
from pluralllm.common.words.addresses import check_address, join_address, split_address
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.record_key import make_record_key
from pluralllm.server.members.signing import (
    builder_for,
    general_name,
    is_ip,
    is_signed_by,
    key_usage,
    sign_authority,
    to_pem,
)

DAY_S = 86_400.0
ROOT_LIFE_S = 20 * 365 * DAY_S
ISSUER_LIFE_S = 365 * DAY_S
SERVER_LIFE_S = 90 * DAY_S
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")  # for the operator's own commands on the coordinator's machine
SECRET = 0o600
FOR_OTHER_MACHINES = "Partners on other machines need another name: pluralllm-server renew-issuer --host NAME."
HOST_PATTERN = r"(?!-)[a-z0-9-]{1,63}(\.(?!-)[a-z0-9-]{1,63})*"


@dataclass(frozen=True, slots=True)
class Authority:
    """The federation's certificate authority, as `load_authority` has read it from its files.

    The root is its own issuer. The intermediate (`issuer`), which the root has signed, signs the certificates of members
    and server.
    """

    folder: Path
    federation: str
    hosts: tuple[str, ...]  # the advertised names; invites carry the first one
    root: x509.Certificate
    issuer: x509.Certificate
    issuer_key: PrivateKey

    @property
    def root_pem(self) -> bytes:
        return to_pem(self.root)

    @property
    def root_der(self) -> bytes:
        return self.root.public_bytes(serialization.Encoding.DER)

    @property
    def issuer_expires_s(self) -> float:
        return self.issuer.not_valid_after_utc.timestamp()

    @property
    def server_file(self) -> Path:
        return self.folder / "server.pem"

    def issue_member(
        self, key: ec.EllipticCurvePublicKey, name: str, role: MemberRole, life_s: float, now_s: float
    ) -> bytes:
        """Issues a member's certificate for `life_s` seconds, but not beyond the end of the intermediate's certificate.

        Returns the member's and the intermediate's certificate as PEM. Raises IssuerExpired if the intermediate's
        certificate has expired.
        """
        uri = x509.UniformResourceIdentifier(member_uri(self.federation, role, name))
        return self._issue(key, name, [uri], ExtendedKeyUsageOID.CLIENT_AUTH, life_s, now_s)

    def renew_server(self, now_s: float) -> None:
        """Replaces server.pem by a new key with a new server certificate.

        Raises IssuerExpired if the intermediate's certificate has expired; StorageFull if the disk is full.
        """
        key = new_key()
        names = [general_name(host) for host in dict.fromkeys((*self.hosts, *LOOPBACK_NAMES))]
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        chain = self._issue(key.public_key(), self.hosts[0], names, usage, SERVER_LIFE_S, now_s)
        write_durably(self.server_file, key_to_pem(key) + chain, SECRET)

    def server_certificate(self) -> x509.Certificate:
        """Reads the server certificate from server.pem. Raises InvalidConfig if the file is damaged."""
        return read_pair(self.server_file)[2]

    def uncovered(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Returns the hosts that the server certificate does not cover. Clients would reject a connection to such a host.

        addresses: the addresses whose hosts are checked. Raises InvalidConfig if server.pem is damaged.
        """
        extensions = self.server_certificate().extensions
        names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        hosts = dict.fromkeys(split_address(address)[0].lower() for address in addresses)
        return tuple(host for host in hosts if not host.isascii() or general_name(host) not in names)

    def covering(self, hosts: Iterable[str]) -> str:
        """Returns the command with which the operator makes a server certificate that also covers `hosts`."""
        return " ".join(["pluralllm-server renew-issuer", *(f"--host {host}" for host in (*self.hosts, *hosts))])

    def is_server_renewal_due(self, now_s: float) -> bool:
        """Returns whether the server certificate must be renewed.

        A renewal is due if two thirds of the certificate's life are over, or if an older intermediate has signed the
        certificate.
        """
        certificate = self.server_certificate()
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        due_s = end.timestamp() - (1 - RENEW_AT) * ((end - start).total_seconds() - BACKDATE_S)
        return now_s >= due_s or not is_signed_by(certificate, self.issuer)

    def check_member(self, chain_pem: bytes, now_s: float) -> CertificateFacts:
        """Checks a member's certificate and returns the certificate's facts. Each reason for a refusal has its own error.

        Raises CertificateInvalid, CertificateForeign, CertificateWrongUse, CertificateNotYetValid or CertificateExpired.
        """
        facts = read_certificate(chain_pem)
        try:
            leaf, *others = x509.load_pem_x509_certificates(chain_pem)
        except UNREADABLE as error:
            raise CertificateInvalid(what="the certificate", problem=f"its chain is damaged: {error}") from error
        issuers = [self.issuer, *(other for other in others[:3] if is_signed_by(other, self.root))]
        if facts.federation != self.federation or not any(is_signed_by(leaf, issuer) for issuer in issuers):
            raise CertificateForeign(name=facts.name)
        try:
            usages = list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        except x509.ExtensionNotFound:
            usages = []
        if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
            raise CertificateWrongUse(name=facts.name)
        check_dates(facts, now_s)
        return facts

    def _issue(
        self,
        key: ec.EllipticCurvePublicKey,
        name: str,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        life_s: float,
        now_s: float,
    ) -> bytes:
        """Signs one certificate. Returns the certificate, followed by the intermediate's certificate, as PEM.

        names: the names or URIs that the certificate proves. usage: client or server authentication. Raises IssuerExpired
        if the intermediate's certificate has expired.
        """
        end_s = min(now_s + life_s, self.issuer_expires_s)
        if end_s <= now_s:
            raise IssuerExpired(expired=day(self.issuer_expires_s))
        builder = builder_for(name, self.issuer.subject, key, now_s - BACKDATE_S, end_s)
        builder = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.issuer_key.public_key()), critical=False
            )
        )
        return to_pem(builder.sign(self.issuer_key, hashes.SHA256())) + to_pem(self.issuer)


def check_dates(facts: CertificateFacts, now_s: float) -> None:
    """Checks that a certificate is valid now. Raises CertificateNotYetValid or CertificateExpired otherwise."""
    if now_s < facts.not_before_s:
        raise CertificateNotYetValid(name=facts.name, valid_from=day(facts.not_before_s))
    if now_s >= facts.not_after_s:
        raise CertificateExpired(name=facts.name, expired=day(facts.not_after_s))


def create_authority(
    folder: Path, federation: str, hosts: Sequence[str], passphrase: bytes | None, now_s: float
) -> Authority:
    """Creates root, intermediate and server certificate in `folder`, and returns the new authority.

    hosts: names by which clients reach the server. passphrase: encrypts the root's key; None leaves the key unencrypted.
    Raises AlreadyInitialised if the folder has an authority; InvalidArgument if a name is not allowed; StorageFull if the
    disk is full.
    """
    if (folder / "federation.json").exists():
        raise AlreadyInitialised(state_dir=str(folder.parent))
    federation, checked = check_names(federation, hosts)
    root_key = new_key()
    root = sign_authority(f"PluralLLM {federation} root", root_key, None, root_key, ROOT_LIFE_S, now_s)
    with storage_errors("the certificate authority"):
        shutil.rmtree(folder, ignore_errors=True)  # remains of an interrupted init
        make_folder(folder)
        hide_from_git(folder)
        write_durably(folder / "root-key.pem", key_to_pem(root_key, passphrase), SECRET)
        write_durably(folder / "root.pem", to_pem(root))
        _write_issuer(folder, federation, root, root_key, now_s)
        make_record_key(folder)
        about = {"federation": federation, "hosts": checked}
        draft = load_authority(folder, about)
        draft.renew_server(now_s)
        write_durably(folder / "federation.json", json.dumps(about, indent=2).encode())
        sync_directory(folder.parent)
    return draft


def renew_issuer(
    folder: Path, hosts: Sequence[str], root_key_file: Path, passphrase: bytes | None, now_s: float
) -> Authority:
    """Makes a new intermediate and a new server certificate under the same root, and returns the renewed authority.

    hosts: new names of the server; if empty, the old names stay. Members' certificates stay valid to their end. Raises
    NotInitialised if there is no authority; InvalidConfig if the root's key cannot be read or belongs to another root;
    InvalidArgument if a host is not allowed.
    """
    old = load_authority(folder)
    _, checked = check_names(old.federation, hosts or old.hosts)
    try:
        root_key = key_from_pem(read_bytes(root_key_file), passphrase)
    except Unreadable as error:
        raise InvalidConfig(file=str(root_key_file), problems=f"  {error.problem}") from error
    except CertificateInvalid as error:
        raise InvalidConfig(file=str(root_key_file), problems=f"  {error}") from error
    if root_key.public_key() != old.root.public_key():
        raise InvalidConfig(file=str(root_key_file), problems="  it is not the key of this federation's root")
    _write_issuer(folder, old.federation, old.root, root_key, now_s)
    about = {"federation": old.federation, "hosts": checked}
    write_durably(folder / "federation.json", json.dumps(about, indent=2).encode())
    renewed = load_authority(folder)
    renewed.renew_server(now_s)
    return renewed


def load_authority(folder: Path, about: dict[str, Any] | None = None) -> Authority:
    """Reads the authority from its folder.

    about: the content of federation.json if the file is not written yet; None if the file must be read. Raises NotInitialised
    if there is no authority; InvalidConfig, which names the file, if a file is damaged.
    """
    path = folder / "federation.json"
    if about is None and not path.exists():
        raise NotInitialised(state_dir=str(folder.parent))
    try:
        names = about or read_json(path)
        federation, hosts = check_names(names["federation"], names["hosts"])
        path = folder / "root.pem"
        root = x509.load_pem_x509_certificate(read_bytes(path))
        path = folder / "issuer.pem"
        key, _, issuer = read_pair(path)
        if not is_signed_by(issuer, root):
            raise InvalidConfig(file=str(path), problems="  it is not signed by the root")
    except (OSError, ValueError, KeyError, TypeError, CertificateInvalid, InvalidArgument) as error:
        raise InvalidConfig(file=str(path), problems=f"  {error}") from error
    return Authority(folder, federation, hosts, root, issuer, key)


def read_pair(path: Path) -> tuple[PrivateKey, bytes, x509.Certificate]:
    """Reads a private key, its certificate chain (PEM) and the chain's first certificate from one file.

    Raises InvalidConfig if the file is damaged, or if key and certificate do not belong together.
    """
    try:
        key_pem, mark, chain = read_bytes(path).partition(b"-----BEGIN CERTIFICATE-----")
        key, certificate = key_from_pem(key_pem), x509.load_pem_x509_certificate(mark + chain)
    except (OSError, ValueError, CertificateInvalid) as error:
        raise InvalidConfig(file=str(path), problems=f"  {error}") from error
    if key.public_key() != certificate.public_key():
        raise InvalidConfig(file=str(path), problems="  key and certificate do not belong together")
    return key, mark + chain, certificate


def check_names(federation: str, hosts: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Checks the names of the federation and of the server's hosts, and returns the names in lower case.

    Raises InvalidArgument if a name is not allowed, or if there is no host.
    """
    if not hosts:
        raise InvalidArgument(field="--host", problem="give at least one name that partners reach this machine by")
    for host in hosts:
        if not is_ip(host) and not re.fullmatch(HOST_PATTERN, host.lower()):
            raise InvalidArgument(
                field="--host", problem=f"{host!r} is no host name or IP address (no port, no https://)"
            )
    if not re.fullmatch(r"[a-z0-9._-]{1,255}", federation.lower()):
        raise InvalidArgument(field="--federation", problem=f"{federation!r}: allowed are a-z, 0-9, '.', '-' and '_'")
    return federation.lower(), tuple(host.lower() for host in hosts)


def check_reachable(hosts: Sequence[str]) -> None:
    """Checks new names of the server: others must be able to connect to each. Raises InvalidArgument for the first that fails.

    Names of an authority that exists are not checked again, so that no old state directory becomes useless.
    """
    for host in hosts:
        try:
            check_address(join_address(host, 7443))
        except ValueError as error:
            raise InvalidArgument(field="--host", problem=f"{host!r}: {error}") from error


def day(time_s: float) -> str:
    """Formats a time (seconds since 1970) for people, for example as 2026-11-24 17:05 UTC."""
    return datetime.datetime.fromtimestamp(time_s, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _write_issuer(folder: Path, federation: str, root: x509.Certificate, root_key: PrivateKey, now_s: float) -> None:
    """Makes a new intermediate and writes its key and certificate to issuer.pem. The certificate never outlives the root."""
    key = new_key()
    end_s = min(ISSUER_LIFE_S, root.not_valid_after_utc.timestamp() - now_s)
    issuer = sign_authority(f"PluralLLM {federation} issuer", key, root, root_key, end_s, now_s)
    write_durably(folder / "issuer.pem", key_to_pem(key) + to_pem(issuer), SECRET)
