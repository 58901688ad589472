"""Signatures of the federation over version records and over the head of the audit log: ECDSA P-256 with SHA-256.

The coordinator signs with its record key. The public half of the key is in the invite, so a member knows it before the member
connects for the first time. Two signed records of one model version prove that the coordinator has presented two histories.
"""

import base64
import binascii
import functools

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pluralllm.common.errors.membership import CertificateInvalid
from pluralllm.common.trust.certificates import PrivateKey
from pluralllm.common.words.ids import RunId

VERSION_RECORD = "pluralllm version record/1"
AUDIT_HEAD = "pluralllm audit head/1"
CACHED_SIGNATURES = 4096
ALGORITHM = ec.ECDSA(hashes.SHA256())


class RecordSigner:
    """The private half of a federation's record key. Equal texts are signed once, as long as the cache holds the signature."""

    def __init__(self, federation: str, key: PrivateKey) -> None:
        self._federation, self._key = federation, key
        self._sign = functools.lru_cache(maxsize=CACHED_SIGNATURES)(lambda text: key.sign(text, ALGORITHM))

    @property
    def public_der(self) -> bytes:
        """The public half of the key (SubjectPublicKeyInfo, DER)."""
        return self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def of_version(self, run: RunId, record_sha256: str) -> bytes:
        """Returns the signature (DER) of a version record of a run. record_sha256: the record's hash."""
        return self._sign(_version_text(self._federation, run, record_sha256))

    def of_audit_head(self, sequence: int, sha256: str) -> bytes:
        """Returns the signature (DER) of the audit log's newest entry: its sequence number and its hash."""
        return self._sign(_head_text(self._federation, sequence, sha256))


class RecordVerifier:
    """The public half of a federation's record key, as a member knows it from its invite."""

    def __init__(self, federation: str, public_der: bytes) -> None:
        """Reads the key. Raises CertificateInvalid if `public_der` is no P-256 key (SubjectPublicKeyInfo, DER)."""
        self._federation, self._key = federation, read_record_key(public_der)

    def has_signed_version(self, run: RunId, record_sha256: str, signature: bytes) -> bool:
        """Returns whether the federation has signed the version record with this hash for this run."""
        return self._is_signed(_version_text(self._federation, run, record_sha256), signature)

    def has_signed_audit_head(self, sequence: int, sha256: str, signature: bytes) -> bool:
        """Returns whether the federation has signed this sequence number and hash of the audit log's newest entry."""
        return self._is_signed(_head_text(self._federation, sequence, sha256), signature)

    def _is_signed(self, text: bytes, signature: bytes) -> bool:
        try:
            self._key.verify(signature, text, ALGORITHM)
        except (InvalidSignature, ValueError):
            return False
        return True


def read_record_key(public_der: bytes) -> ec.EllipticCurvePublicKey:
    """Reads the public half of a record key. Raises CertificateInvalid if the bytes are no P-256 key."""
    try:
        key = serialization.load_der_public_key(public_der)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateInvalid(what="the record key", problem="it cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateInvalid(what="the record key", problem="it is not ECDSA P-256")
    return key


def _version_text(federation: str, run: RunId, record_sha256: str) -> bytes:
    return f"{VERSION_RECORD}\n{federation}\n{run}\n{record_sha256}".encode()


def _head_text(federation: str, sequence: int, sha256: str) -> bytes:
    return f"{AUDIT_HEAD}\n{federation}\n{sequence}\n{sha256}".encode()


def check_record_key(text: str) -> str:
    """Returns the text unchanged if it is a record key (DER, base64). Raises ValueError otherwise."""
    try:
        read_record_key(base64.b64decode(text, validate=True))
    except (binascii.Error, CertificateInvalid) as error:
        raise ValueError("it is no P-256 key in base64") from error
    return text
