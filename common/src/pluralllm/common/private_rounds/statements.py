"""Bytes that members of a private round hash, derive keys from, and sign.

enc(a, b, ...) joins parts so that no two lists of parts have the same bytes: for each part its length as 4 bytes big-endian,
then the part. A text is UTF-8, a number 4 bytes big-endian. Every hash, key and statement begins with PROTOCOL and a word for
its purpose, so that bytes of one purpose never serve for another one.
"""

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pluralllm.common.private_rounds.field_checks import check_federation, check_name, check_number, check_size

PROTOCOL = "pluralllm/private/1"
HASH_BYTES = 32  # SHA-256
CELL = 128  # largest number of members of one sum; all members of a round are in one cell
# Deterministic (RFC 6979): the same statement has the same signature after a restart, and no random number can be bad.
ALGORITHM = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
ALGORITHM_OF_HASH = ec.ECDSA(utils.Prehashed(hashes.SHA256()))  # the same, for a statement that is hashed already

MAX_NUMBER = 2**31 - 1

Part = bytes | str | int
PrivateKey = ec.EllipticCurvePrivateKey


def enc(*parts: Part) -> bytes:
    """Returns the parts as one text of bytes. Raises ValueError for a number outside 0 .. 2^32 - 1."""
    pieces: list[bytes] = []
    for part in parts:
        encoded = part if type(part) is bytes else _bytes_of(part)
        pieces += (len(encoded).to_bytes(4, "big"), encoded)
    return b"".join(pieces)


def _bytes_of(value: Part) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int):
        if not 0 <= value < 1 << 32:
            raise ValueError(f"{value} is no number of 4 bytes")
        return int(value).to_bytes(4, "big")
    return bytes(value)


def hashed(*parts: Part) -> bytes:
    """Returns H(parts): the SHA-256 of enc(PROTOCOL, parts). Shape: 32 bytes."""
    return hashlib.sha256(enc(PROTOCOL, *parts)).digest()


def derived(secret: bytes, label: str, *parts: Part, size: int = 32) -> bytes:
    """Returns K(secret, label, parts): a key of `size` bytes by HKDF-SHA256 without salt, info enc(PROTOCOL, label, parts).

    Source: RFC 5869.
    """
    return HKDF(hashes.SHA256(), size, salt=None, info=enc(PROTOCOL, label, *parts)).derive(secret)


def sign(key: PrivateKey, kind: str, *parts: Part) -> bytes:
    """Returns a member's signature over a statement: ECDSA P-256 with SHA-256, DER, deterministic.

    key: the member's peer key. kind: the purpose of the statement. The signature covers enc(PROTOCOL, "statement", kind, parts).
    Source: RFC 6979.
    """
    return key.sign(enc(PROTOCOL, "statement", kind, *parts), ALGORITHM)


def verify(spki_der: bytes, signature: bytes, kind: str, *parts: Part) -> bool:
    """Returns whether the owner of a peer key has signed a statement.

    spki_der: the public key, as DER (SubjectPublicKeyInfo). False, too, if these bytes are no P-256 key.
    """
    return _is_signature(spki_der, signature, hashlib.sha256(enc(PROTOCOL, "statement", kind, *parts)).digest())


# Each step of a round checks again what the steps before it have checked, so that a restarted process needs no other code.
@functools.lru_cache(maxsize=8 * CELL)
def _is_signature(spki_der: bytes, signature: bytes, statement_sha256: bytes) -> bool:
    try:
        key = _p256_key(spki_der)
        key.verify(signature, statement_sha256, ALGORITHM_OF_HASH)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def forget_signatures() -> None:
    """Forgets which signatures this process has checked, so that a measurement counts each check."""
    _is_signature.cache_clear()


@functools.lru_cache(maxsize=2 * CELL)
def _p256_key(spki_der: bytes) -> ec.EllipticCurvePublicKey:
    """Returns the public key in DER bytes. Raises TypeError if it is none of P-256, and the library's errors for other bytes."""
    key = serialization.load_der_public_key(spki_der)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TypeError("no key of P-256")
    return key


@dataclass(frozen=True, slots=True)
class RoundTerms:
    """The facts that all members of a private round agree on. Each member checks them by its own knowledge before it signs."""

    federation: str
    run: str
    round: int
    spec_sha256: bytes
    base_version: int
    base_digest: bytes  # SHA-256 of the base version's blob
    base_record_sha256: bytes
    roster_head: bytes
    places: int  # number of members that the round has room for
    colluders: int  # c of the run spec

    def __post_init__(self) -> None:
        check_federation(self.federation)
        check_name("run", self.run)
        for name in ("spec_sha256", "base_digest", "base_record_sha256", "roster_head"):
            check_size(name, getattr(self, name), HASH_BYTES)
        for name in ("round", "base_version", "places", "colluders"):
            check_number(name, getattr(self, name), 0, MAX_NUMBER)

    @property
    def sha256(self) -> bytes:
        """The hash of the terms, which every statement before the members are fixed names."""
        return hashed(
            "terms",
            self.federation,
            self.run,
            self.round,
            self.spec_sha256,
            self.base_version,
            self.base_digest,
            self.base_record_sha256,
            self.roster_head,
            self.places,
            self.colluders,
            CELL,
        )


def keys_digest(mask_public: bytes, box_public: bytes, commitment: bytes, flags: int) -> bytes:
    """Returns the hash of one member's keys.

    flags: 1 if the member has computed the base version again, plus 2 * score_among of the message.
    """
    return hashed("keys", mask_public, box_public, commitment, flags)


def members_digest(terms_sha256: bytes, members: Iterable[tuple[str, bytes, bytes]]) -> bytes:
    """Returns R1, which fixes the members of a round and their indices.

    members: name, peer key (SubjectPublicKeyInfo, DER) and keys_digest of each one, in any order; names are distinct.
    """
    parts = [part for member in sorted(members) for part in member]
    return hashed("cell", hashed("members", terms_sha256, *parts), 0)


def dealers_digest(members_sha256: bytes, dealers: Iterable[str]) -> bytes:
    """Returns R2, which fixes the members that have dealt shares. members_sha256: R1. dealers: their names, in any order."""
    return hashed("dealers", members_sha256, *sorted(dealers))


def sum_digest(dealers_sha256: bytes, updates: Iterable[tuple[str, bytes]]) -> bytes:
    """Returns R3, which fixes the updates of the sum.

    dealers_sha256: R2. updates: name and SHA-256 of the masked file of each one, in any order; names are distinct.
    """
    return hashed("sum", dealers_sha256, *(part for update in sorted(updates) for part in update))
