"""Builds and signs certificates (RFC 5280). authority.py decides what the certificates contain."""

import datetime
import ipaddress

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pluralllm.common.trust.certificates import BACKDATE_S, PrivateKey


def sign_authority(
    name: str, key: PrivateKey, parent: x509.Certificate | None, signer: PrivateKey, life_s: float, now_s: float
) -> x509.Certificate:
    """Signs the certificate of a root (`parent` is None) or of an intermediate (`parent` is the root's certificate).

    key: the key of the new certificate. signer: the key that signs.
    """
    common_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    issuer_name = common_name if parent is None else parent.subject
    builder = builder_for(name, issuer_name, key.public_key(), now_s - BACKDATE_S, now_s + life_s)
    depth = 1 if parent is None else 0
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=depth), critical=True)
    builder = builder.add_extension(key_usage(signs_certificates=True), critical=True)
    if parent is not None:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(identifier, critical=False)
    return builder.sign(signer, hashes.SHA256())


def builder_for(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start_s: float, end_s: float
) -> x509.CertificateBuilder:
    """Returns a certificate builder with subject (`name`), issuer, key, a new serial number, and the dates of validity."""
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(int(start_s), tz=datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(int(end_s), tz=datetime.UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Returns the key usage that a certificate states.

    signs_certificates: true for the certificate of an authority; false for the certificate of a member or server.
    """
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Returns whether the issuer's key has signed the certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def is_ip(host: str) -> bool:
    """Returns whether a host is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def general_name(host: str) -> x509.GeneralName:
    """Returns a host in the form that a certificate holds: as an IP address or a DNS name."""
    return x509.IPAddress(ipaddress.ip_address(host)) if is_ip(host) else x509.DNSName(host)


def to_pem(certificate: x509.Certificate) -> bytes:
    """Encodes a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)
