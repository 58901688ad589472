"""Sealed boxes: texts that only the owner of a hybrid key can read (HPKE, RFC 9180, base mode).

The key encapsulation is MLKEM768-X25519 (0x647A, draft-ietf-hpke-pq, also known as X-Wing): a reader must break both ML-KEM-768
and X25519. The coordinator sees every public key and every box, and may keep them for as long as it wants.
"""

from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.private_rounds.statements import derived

ML_KEM_BYTES = 1184
PUBLIC_BYTES = ML_KEM_BYTES + 32
SEED_BYTES = 64  # of ML-KEM-768: d, then z (FIPS 203)
OVERHEAD_BYTES = 1120 + 16  # encapsulated keys (1088 of ML-KEM, 32 of X25519), and the tag of AES-GCM
SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class NotOpened(Exception):
    """The error for a sealed text that this key does not open: another key, another purpose, or changed bytes."""


@dataclass(frozen=True, slots=True)
class HybridKey:
    """A private key that opens boxes, and its public half."""

    public: bytes  # ML-KEM-768 (1184 bytes), then X25519 (32 bytes)
    _private: MLKEM768X25519PrivateKey = field(repr=False)

    @classmethod
    def of(cls, seed: bytes) -> "HybridKey":
        """Returns the key of a seed of 32 bytes; always the same one.

        raw = K(seed, "hybrid key") has 96 bytes: 64 are the seed of ML-KEM-768, 32 the X25519 key.
        """
        raw = derived(seed, "hybrid key", size=SEED_BYTES + 32)
        ml_kem = MLKEM768PrivateKey.from_seed_bytes(raw[:SEED_BYTES])
        x25519 = X25519PrivateKey.from_private_bytes(raw[SEED_BYTES:])
        public = ml_kem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        return cls(public, MLKEM768X25519PrivateKey(ml_kem, x25519))

    def opened(self, info: bytes, sealed: bytes) -> bytes:
        """Returns the text of a box. info: the bytes of its purpose, as given to `seal`. Raises NotOpened."""
        try:
            return SUITE.decrypt(sealed, self._private, info=info)
        except (InvalidTag, ValueError) as error:
            raise NotOpened("the box does not open") from error


def seal(public: bytes, info: bytes, text: bytes) -> bytes:
    """Returns a text, sealed for the owner of a public key of 1216 bytes. It is longer than the text by OVERHEAD_BYTES.

    info: bytes that name the box's purpose; the same bytes open it. Two boxes of one text differ.
    Raises InvalidArgument if the bytes are no public key.
    """
    if len(public) != PUBLIC_BYTES:
        raise InvalidArgument(field="public", problem=f"has {len(public)} bytes, must have {PUBLIC_BYTES}")
    try:
        key = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:ML_KEM_BYTES]),
            X25519PublicKey.from_public_bytes(public[ML_KEM_BYTES:]),
        )
        return SUITE.encrypt(text, key, info=info)
    except ValueError as error:
        raise InvalidArgument(field="public", problem=f"seals no box ({error})") from error


def try_public(public: bytes, where: str = "public") -> None:
    """Checks by a test box that a public key can be sealed for. where: name of the field that holds the key.

    Raises InvalidArgument: a member with such a key would make every other member fail.
    """
    try:
        seal(public, b"test box", b"")
    except InvalidArgument as error:
        raise InvalidArgument(field=where, problem=error.problem) from error
