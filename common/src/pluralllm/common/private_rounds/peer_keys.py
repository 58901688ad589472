"""Peer keys: the key with which a member signs in private rounds, and which other members pin.

The key is not that of the member's certificate, which changes at each renewal, because a pin must not change. The member's
identity folder holds it (trust.identity.peer_key).
"""

import functools
import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.private_rounds.statements import ALGORITHM, PrivateKey, enc

CERTIFICATE_ALGORITHM = ec.ECDSA(hashes.SHA256())


def public_der(key: PrivateKey) -> bytes:
    """Returns the public half of a peer key (SubjectPublicKeyInfo, DER)."""
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(spki_der: bytes) -> str:
    """Returns the SHA-256 of a public key (SubjectPublicKeyInfo, DER) in lower-case hex. Members pin it."""
    return hashlib.sha256(spki_der).hexdigest()


@functools.lru_cache(maxsize=1024)  # every view of a round shows all members' keys; an error is not kept
def check_public(spki_der: bytes) -> None:
    """Checks that bytes are the one DER form of a P-256 public key. Raises InvalidArgument.

    One form only, because the fingerprint is of the bytes: a key in two forms would have two fingerprints.
    """
    try:
        key = serialization.load_der_public_key(spki_der)
    except Exception as error:  # the parser raises errors of many classes for bytes of a stranger
        raise InvalidArgument(field="peer_key.key_der", problem="is no public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidArgument(field="peer_key.key_der", problem="is not ECDSA P-256")
    if key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo) != spki_der:
        raise InvalidArgument(field="peer_key.key_der", problem="is not in the usual form of DER")


@dataclass(frozen=True, slots=True)
class PeerKeyClaim:
    """The peer key that a client states in Hello, with two signatures (DER) over federation, member and key."""

    key_der: bytes  # SubjectPublicKeyInfo
    endorsement: bytes  # by the key of the member's certificate; empty in plain text
    proof: bytes  # by the peer key itself


def claim_of(key: PrivateKey, federation: str, name: str, certificate_key: PrivateKey | None) -> PeerKeyClaim:
    """Returns a member's claim of its peer key. federation: "" in plain text. certificate_key: None in plain text."""
    der = public_der(key)
    endorsement = b"" if certificate_key is None else endorsed(certificate_key, federation, name, der)
    return PeerKeyClaim(der, endorsement, endorsed(key, federation, name, der))


def endorsement_text(federation: str, name: str, spki_der: bytes) -> bytes:
    """Returns the bytes by which a member claims a peer key: enc("peer", federation, name, SubjectPublicKeyInfo)."""
    return enc("peer", federation, name, spki_der)


def endorsed(key: PrivateKey, federation: str, name: str, spki_der: bytes) -> bytes:
    """Returns a signature (DER) over the claim of a peer key.

    key: the key of the member's certificate, for the endorsement; the peer key itself, for the proof that the member holds it.
    """
    return key.sign(endorsement_text(federation, name, spki_der), ALGORITHM)


def is_endorsed(
    public_key: ec.EllipticCurvePublicKey, signature: bytes, federation: str, name: str, spki_der: bytes
) -> bool:
    """Returns whether the owner of `public_key` has signed the claim that member `name` has this peer key."""
    try:
        public_key.verify(signature, endorsement_text(federation, name, spki_der), CERTIFICATE_ALGORITHM)
    except (InvalidSignature, ValueError):
        return False
    return True


def is_proven(spki_der: bytes, proof: bytes, federation: str, name: str) -> bool:
    """Returns whether the proof of a peer key is a signature over its own claim. Raises InvalidArgument for no P-256 key."""
    check_public(spki_der)
    key = serialization.load_der_public_key(spki_der)
    return isinstance(key, ec.EllipticCurvePublicKey) and is_endorsed(key, proof, federation, name, spki_der)
