"""The federation's signatures: each is good for one federation, run, record and audit entry, and for nothing else."""

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from pluralllm.common.errors.membership import CertificateInvalid
from pluralllm.common.trust.certificates import new_key
from pluralllm.common.trust.record_signatures import ALGORITHM, RecordSigner, RecordVerifier
from pluralllm.common.words.ids import RunId

KEY = new_key()
SIGNER = RecordSigner("fed", KEY)
VERIFIER = RecordVerifier("fed", SIGNER.public_der)
RUN, RECORD = RunId("r"), "a" * 64


def test_a_signed_version_record_is_accepted_and_nothing_else_is() -> None:
    signature = SIGNER.of_version(RUN, RECORD)
    assert VERIFIER.has_signed_version(RUN, RECORD, signature)
    assert not VERIFIER.has_signed_version(RunId("s"), RECORD, signature)
    assert not VERIFIER.has_signed_version(RUN, "b" * 64, signature)
    assert not VERIFIER.has_signed_version(RUN, RECORD, signature[:-1] + bytes([signature[-1] ^ 1]))
    assert not VERIFIER.has_signed_version(RUN, RECORD, b"")
    assert not RecordVerifier("other", SIGNER.public_der).has_signed_version(RUN, RECORD, signature)
    assert not VERIFIER.has_signed_version(RUN, RECORD, RecordSigner("fed", new_key()).of_version(RUN, RECORD))


def test_a_signed_audit_head_is_accepted_and_nothing_else_is() -> None:
    signature = SIGNER.of_audit_head(7, RECORD)
    assert VERIFIER.has_signed_audit_head(7, RECORD, signature)
    assert not VERIFIER.has_signed_audit_head(8, RECORD, signature)
    assert not VERIFIER.has_signed_audit_head(7, "b" * 64, signature)
    assert not VERIFIER.has_signed_version(RUN, RECORD, signature), "another kind of text"
    assert not VERIFIER.has_signed_audit_head(7, RECORD, SIGNER.of_version(RUN, RECORD))


def test_the_signed_texts_are_those_of_the_documentation() -> None:
    text = f"pluralllm version record/1\nfed\nr\n{RECORD}".encode()
    assert VERIFIER.has_signed_version(RUN, RECORD, KEY.sign(text, ALGORITHM))
    text = f"pluralllm audit head/1\nfed\n7\n{RECORD}".encode()
    assert VERIFIER.has_signed_audit_head(7, RECORD, KEY.sign(text, ALGORITHM))


def test_equal_texts_are_signed_once() -> None:
    assert SIGNER.of_version(RUN, RECORD) == SIGNER.of_version(RUN, RECORD)


def public_bytes(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"rubbish",
        public_bytes(ec.generate_private_key(ec.SECP384R1())),
        public_bytes(ed25519.Ed25519PrivateKey.generate()),
    ],
    ids=[
        "empty",
        "rubbish",
        "P-384",
        "Ed25519",
    ],  # the keys are new each time, and tests have the same names in all processes
)
def test_what_is_no_p256_key_is_refused(wrong: bytes) -> None:
    with pytest.raises(CertificateInvalid):
        RecordVerifier("fed", wrong)
