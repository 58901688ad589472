"""Peer keys: claimed by the certificate's key, proven by themselves, and kept in one file for ever."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from support.private_members import member_key

from pluralllm.common.errors.tree import InvalidArgument, InvalidConfig
from pluralllm.common.private_rounds import peer_keys
from pluralllm.common.trust.identity import peer_key

SPKI = peer_keys.public_der(member_key("ann"))
FORMS = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_the_certificates_key_endorses_and_the_peer_key_proves_one_claim() -> None:
    certificate = member_key("certificate")
    endorsement = peer_keys.endorsed(certificate, "values", "ann", SPKI)
    proof = peer_keys.endorsed(member_key("ann"), "values", "ann", SPKI)
    public = certificate.public_key()
    assert peer_keys.is_endorsed(public, endorsement, "values", "ann", SPKI)
    assert peer_keys.is_proven(SPKI, proof, "values", "ann")
    assert not peer_keys.is_proven(SPKI, endorsement, "values", "ann")
    for claim in (("other", "ann", SPKI), ("values", "bob", SPKI), ("values", "ann", SPKI + b"!")):
        assert not peer_keys.is_endorsed(public, endorsement, *claim)


def test_only_one_form_of_a_p256_key_is_a_peer_key() -> None:
    peer_keys.check_public(SPKI)
    compressed = (
        member_key("ann")
        .public_key()
        .public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    )
    squeezed = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + compressed
    another_curve = ec.derive_private_key(5, ec.SECP384R1()).public_key().public_bytes(*FORMS)
    another_kind = x25519.X25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes(*FORMS)
    for key in (b"", squeezed, another_curve, another_kind, SPKI + b"\0"):
        with pytest.raises(InvalidArgument, match="peer_key"):
            peer_keys.check_public(key)


def test_a_member_keeps_its_peer_key_and_a_damaged_one_is_never_replaced(tmp_path: Path) -> None:
    key = peer_key(tmp_path / "identity")
    path = tmp_path / "identity" / "peer-key.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert peer_keys.public_der(peer_key(tmp_path / "identity")) == peer_keys.public_der(key)
    path.write_bytes(b"damaged")
    with pytest.raises(InvalidConfig, match="Restore it from a backup"):
        peer_key(tmp_path / "identity")
    assert path.read_bytes() == b"damaged"
