"""X.509 for members: makes ECDSA P-256 keys and certificate requests, and reads certificates (RFC 5280, SPIFFE-ID).

A member's certificate names the member as spiffe://FEDERATION/ROLE/NAME. Keys are P-256, because gRPC's TLS refuses Ed25519
certificates. A private key is made on the machine that uses the key, and never leaves that machine.
"""

import functools
import hashlib
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pluralllm.common.errors.membership import CertificateInvalid
from pluralllm.common.words.ids import ClientId, is_id
from pluralllm.common.words.roles import MemberRole

# A certificate's validity begins this long before it was made, because the clocks of two organisations differ.
BACKDATE_S = 300.0
RENEW_AT = 2 / 3  # share of a certificate's life after which its owner asks for the next one
FINGERPRINT_GROUP = 4  # characters

PrivateKey = ec.EllipticCurvePrivateKey

# Errors that the X.509 parser raises for malformed bytes, either when it reads them or when a field is first used.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """The facts that a member's certificate states. Do not trust the facts before the certificate's signature is checked."""

    serial: str  # lower-case hex
    key_sha256: str  # fingerprint of the public key (SubjectPublicKeyInfo, DER); people compare it by phone
    federation: str
    role: MemberRole
    name: ClientId
    not_before_s: float
    not_after_s: float

    @property
    def life_s(self) -> float:
        """Validity period in seconds, counted from the time at which the certificate was made."""
        return self.not_after_s - self.not_before_s - BACKDATE_S

    @property
    def renew_s(self) -> float:
        """Time at which the certificate's owner should ask for the next certificate, in seconds since the epoch."""
        return self.not_after_s - (1 - RENEW_AT) * self.life_s


def new_key() -> PrivateKey:
    """Makes a new private key (ECDSA P-256)."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """Returns a private key as PEM (PKCS #8), encrypted if a passphrase is passed."""
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def key_from_pem(pem: bytes, passphrase: bytes | None = None) -> PrivateKey:
    """Reads a private key from PEM. passphrase: needed if the PEM is encrypted.

    Raises CertificateInvalid if the PEM holds no P-256 key, or if the passphrase is missing or wrong.
    """
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateInvalid(what="the private key", problem=str(error)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateInvalid(what="the private key", problem="it is not ECDSA P-256")
    return key


def make_request(key: PrivateKey, name: str) -> bytes:
    """Makes a certificate signing request (PKCS #10, DER) for a key. name: the common name in the request.

    The issuer of the certificate takes only the key from the request, and decides every other field of the certificate itself.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def public_key_of(request_der: bytes) -> ec.EllipticCurvePublicKey:
    """Returns the public key of a certificate request, after checking that the sender has the private key.

    Raises CertificateInvalid if the request cannot be read, if its key is not P-256, or if this key has not signed the request.
    """
    try:
        request = x509.load_der_x509_csr(request_der)
        key = request.public_key()
        proven = request.is_signature_valid
    except UNREADABLE as error:
        raise CertificateInvalid(what="the certificate request", problem=str(error) or "not PKCS #10") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateInvalid(what="the certificate request", problem="its key is not ECDSA P-256")
    if not proven:
        raise CertificateInvalid(what="the certificate request", problem="it is not signed by its own key")
    return key


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Returns the fingerprint of a public key: the SHA-256 of its SubjectPublicKeyInfo (DER), in lower-case hex."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def fingerprint_of_certificate(pem: bytes) -> str:
    """Returns the fingerprint of a certificate's public key, the SHA-256 in lower-case hex.

    Raises CertificateInvalid if the certificate cannot be read, or if its key is not an ECDSA key.
    """
    return fingerprint(key_of_certificate(pem))


def key_of_certificate(pem: bytes) -> ec.EllipticCurvePublicKey:
    """Returns the public key of the first certificate in a PEM text.

    Raises CertificateInvalid if the certificate cannot be read, or if its key is not an ECDSA key.
    """
    try:
        key = x509.load_pem_x509_certificate(pem).public_key()
    except UNREADABLE as error:
        raise CertificateInvalid(what="the certificate", problem=str(error)) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CertificateInvalid(what="the certificate", problem="its key is not ECDSA P-256")
    return key


def spoken(key_sha256: str) -> str:
    """Returns a key's fingerprint in groups of 4 characters, so that people can compare the fingerprint on the phone."""
    return " ".join(re.findall(f".{{1,{FINGERPRINT_GROUP}}}", key_sha256))


def member_uri(federation: str, role: MemberRole, name: str) -> str:
    """Returns the URI by which a certificate names a member: spiffe://FEDERATION/ROLE/NAME."""
    return f"spiffe://{federation}/{role}/{name}"


def read_certificate(pem: bytes) -> CertificateFacts:
    """Reads the facts of the first certificate in a PEM text. The signature and the dates are not checked.

    Raises CertificateInvalid if the certificate cannot be read or is not a member's certificate.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        key = certificate.public_key()
        dates = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    except UNREADABLE as error:
        raise CertificateInvalid(what="the certificate", problem=f"it is no member's: {error}") from error
    match = (
        re.fullmatch(r"spiffe://([a-z0-9._-]{1,255})/([a-z]+)/([a-z0-9-]{1,40})", uris[0]) if len(uris) == 1 else None
    )
    if match is None or match[2] not in set(MemberRole) or not is_id(match[3]):
        raise CertificateInvalid(what="the certificate", problem="it names no member")
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CertificateInvalid(what="the certificate", problem="its key is not ECDSA P-256")
    return CertificateFacts(
        serial=f"{certificate.serial_number:x}",
        key_sha256=fingerprint(key),
        federation=match[1],
        role=MemberRole(match[2]),
        name=ClientId(match[3]),
        not_before_s=dates[0],
        not_after_s=dates[1],
    )


# For the coordinator, which reads the same certificates on every call. Call it only with certificates whose signature TLS has
# checked, so that the cache keeps nothing that a stranger sent.
read_known_certificate = functools.lru_cache(maxsize=4096)(read_certificate)
