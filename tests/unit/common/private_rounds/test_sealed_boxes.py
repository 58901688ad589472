"""Sealed boxes: they open for one key and one purpose, as an implementation made from the standards opens them."""

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from support.private_members import digest

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.private_rounds.sealed_boxes import OVERHEAD_BYTES, HybridKey, NotOpened, seal, try_public
from pluralllm.common.private_rounds.statements import derived

SEED = digest("seed")


def opened_by_the_standards(seed: bytes, info: bytes, sealed: bytes) -> bytes:
    """Opens a box by RFC 9180 with the KEM of draft-connolly-cfrg-xwing-kem, written out here."""
    raw = derived(seed, "hybrid key", size=96)
    ml_kem, x25519 = MLKEM768PrivateKey.from_seed_bytes(raw[:64]), X25519PrivateKey.from_private_bytes(raw[64:])
    ml_text, x_text, text = sealed[:1088], sealed[1088:1120], sealed[1120:]
    own_half = x25519.public_key().public_bytes_raw()
    shared = hashlib.sha3_256(
        ml_kem.decapsulate(ml_text)
        + x25519.exchange(X25519PublicKey.from_public_bytes(x_text))
        + x_text
        + own_half
        + rb"\.//^"
        + b"\\"
    ).digest()
    suite = b"HPKE" + bytes.fromhex("647a00010002")

    def extract(salt: bytes, label: bytes, secret: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + secret, "sha256")

    def expand(secret: bytes, label: bytes, context: bytes, size: int) -> bytes:
        text = size.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context
        return hmac.digest(secret, text + b"\1", "sha256")[:size]

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")
    key, nonce = expand(secret, b"key", context, 32), expand(secret, b"base_nonce", context, 12)
    return AESGCM(key).decrypt(nonce, text, b"")


def test_a_box_opens_for_its_key_as_the_standards_say() -> None:
    key = HybridKey.of(SEED)
    sealed = seal(key.public, b"purpose", b"two shares")
    assert key.opened(b"purpose", sealed) == b"two shares" == opened_by_the_standards(SEED, b"purpose", sealed)
    assert len(sealed) == len(b"two shares") + OVERHEAD_BYTES
    assert seal(key.public, b"purpose", b"two shares") != sealed
    assert repr(key.public) in repr(key)
    assert "Private" not in repr(key)


def test_a_box_opens_for_no_other_key_purpose_or_bytes() -> None:
    key = HybridKey.of(SEED)
    sealed = seal(key.public, b"purpose", b"text")
    for other, info, text in (
        (HybridKey.of(digest("other")), b"purpose", sealed),
        (key, b"another", sealed),
        (key, b"purpose", sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (key, b"purpose", bytes([sealed[0] ^ 1]) + sealed[1:]),
        (key, b"purpose", sealed[:1000]),
        (key, b"purpose", b""),
        (key, b"purpose", sealed[:1088] + bytes(32) + sealed[1120:]),  # a point of low order
    ):
        with pytest.raises(NotOpened):
            other.opened(info, text)


@pytest.mark.parametrize("flaw", ["none", "short", "not reduced", "low order"])
def test_a_key_that_seals_nothing_is_refused_before_it_has_a_place(flaw: str) -> None:
    public = HybridKey.of(SEED).public
    broken = {
        "none": b"",
        "short": public[:-1],
        "not reduced": b"\xff" * 1184 + public[1184:],
        "low order": public[:1184] + bytes(32),
    }
    try_public(public)
    with pytest.raises(InvalidArgument, match="mask_public: "):
        try_public(broken[flaw], "mask_public")
