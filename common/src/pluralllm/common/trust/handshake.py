"""Makes a TLS handshake without gRPC, to find the reason if a connection fails.

This module exists because gRPC reports a refused handshake only as an unreachable server. The connection carries only the
handshake (RFC 8446). With TLS 1.3, a server may refuse a client's certificate after the client's part of the handshake has
succeeded. So a connection that the server closes at once counts as refused.
"""

import datetime
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from pluralllm.common.errors.membership import ForeignAuthority, ServerCertificateOutOfDate, WrongHost
from pluralllm.common.errors.tree import Unreachable, WrongPort
from pluralllm.common.process.connections import connect
from pluralllm.common.process.proxies import Proxies
from pluralllm.common.words.addresses import split_address

TIMEOUT_S = 5.0
FIRST_BYTE_S = 2.0  # a gRPC server that accepts a connection sends its HTTP/2 settings at once
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL; the ssl module has no name for it
OUT_OF_DATE = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
# Reasons of OpenSSL for an answer that is no TLS at all, such as an HTTP answer.
NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST", "UNKNOWN_PROTOCOL")
ENDINGS = ("UNEXPECTED_EOF_WHILE_READING", None)  # None: SSLEOFError, of a TLS connection that the other side has reset
ENDED = "the connection ends in the middle of the TLS handshake"
OTHER_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


@dataclass(frozen=True, slots=True)
class Handshake:
    """The result of a TLS handshake that succeeded for the client; the server may still have refused the client's certificate."""

    version: str  # for example TLSv1.3
    kept: bool  # False: the server closed the connection at once, so it refused this side's certificate
    certificate: x509.Certificate  # the server's


def resolve(address: str) -> tuple[str, ...]:
    """Returns the IP addresses of a host, each address once. address: host:port.

    Raises Unreachable if the host name is not known.
    """
    host, port = split_address(address)
    try:
        records = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unreachable(address=address, problem=f"the name {host} is not known ({error.strerror})") from error
    return tuple(dict.fromkeys(str(item[4][0]) for item in records))


def handshake(address: str, authority_pem: bytes, proxies: Proxies, credentials: Path | None = None) -> Handshake:
    """Makes a TLS handshake with the server at host:port and checks the server's certificate.

    authority_pem: the root certificate that must have signed the server's certificate. proxies: say how the server is reached.
    credentials: a file with this member's key and certificate chain; None shows the server no client certificate.
    Raises Unreachable if there is no TLS connection, ProxyFailed if the proxy makes none. Raises ForeignAuthority if another
    authority signed the server's certificate. Raises WrongHost if the certificate is for other hosts;
    ServerCertificateOutOfDate if the certificate is not valid now. Raises WrongPort if what answers does not speak TLS.
    """
    try:
        return _shake(address, _context(authority_pem, credentials), proxies)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in OTHER_NAME:
            raise WrongHost(address=split_address(address)[0], names=_names(address, authority_pem, proxies)) from error
        if error.verify_code not in OUT_OF_DATE:
            problem = error.verify_message + _through(address, proxies, "which may open TLS connections")
            raise ForeignAuthority(address=address, problem=problem) from error
    except ssl.SSLError as error:
        if error.reason in NO_TLS:
            wanted = "enrolment port" if credentials is None else "main port"
            problem = f"what answers there does not speak TLS{_through(address, proxies)}"
            raise WrongPort(address=address, wanted=wanted, problem=problem) from error
        problem = ENDED if error.reason in ENDINGS else f"TLS: {error.reason or error}"
        raise proxies.explained(Unreachable(address=address, problem=problem)) from error
    except TimeoutError as error:
        problem = error.strerror or f"it has not answered within {TIMEOUT_S:.0f} s"
        raise proxies.explained(Unreachable(address=address, problem=problem)) from error
    except OSError as error:
        raise proxies.explained(Unreachable(address=address, problem=error.strerror or str(error))) from error
    certificate = _certificate(address, authority_pem, proxies)
    raise ServerCertificateOutOfDate(
        address=address,
        valid_from=_day(certificate.not_valid_before_utc),
        valid_to=_day(certificate.not_valid_after_utc),
        clock=_day(datetime.datetime.now(tz=datetime.UTC)),
    )


def _through(address: str, proxies: Proxies, fault: str = "which may be the cause") -> str:
    """Returns the end of a problem's text that names the proxy; empty if the connection is direct."""
    proxy = proxies.to(address)
    return "" if proxy is None else f" (through the proxy {proxy.address}, {fault})"


def check_enrolment_port(address: str, authority_pem: bytes, proxies: Proxies) -> Handshake:
    """Makes a TLS handshake with the coordinator's enrolment port, which asks for no client certificate.

    Raises the errors of `handshake`; WrongPort if the server closes the connection because it has seen no certificate.
    """
    shaken = handshake(address, authority_pem, proxies)
    if not shaken.kept:
        problem = "it demands a member's certificate, as the main port does"
        raise WrongPort(address=address, wanted="enrolment port", problem=problem)
    return shaken


def _context(authority_pem: bytes, credentials: Path | None) -> ssl.SSLContext:
    """Returns the TLS settings that a gRPC client uses. The only trusted root certificate is `authority_pem`.

    credentials: a file with the client's key and certificate chain; None means no client certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=authority_pem.decode())
    context.set_alpn_protocols(["h2"])
    if credentials is not None:
        context.load_cert_chain(credentials)
    return context


def _shake(address: str, context: ssl.SSLContext, proxies: Proxies) -> Handshake:
    """Connects, makes the handshake, and waits at most FIRST_BYTE_S seconds to see whether the server closes the connection."""
    host, _ = split_address(address)
    with (
        connect(address, proxies, TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        certificate = x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
        version = secured.version() or ""
        secured.settimeout(FIRST_BYTE_S)
        try:
            kept = bool(secured.recv(1))
        except TimeoutError:
            kept = True
        except OSError:
            kept = False
        return Handshake(version, kept, certificate)


def _certificate(
    address: str, authority_pem: bytes, proxies: Proxies, *, check_hostname: bool = True
) -> x509.Certificate:
    """Returns the server's certificate after checking its signature but not its dates.

    check_hostname: whether the certificate must be for the host of `address`. Raises ForeignAuthority if a check fails.
    """
    context = _context(authority_pem, None)
    context.verify_flags |= NO_CHECK_TIME
    context.check_hostname = check_hostname
    try:
        return _shake(address, context, proxies).certificate
    except OSError as error:
        raise ForeignAuthority(address=address, problem=str(error)) from error


def _names(address: str, authority_pem: bytes, proxies: Proxies) -> str:
    """Returns the host names and IP addresses that the server's certificate is valid for, joined by commas."""
    certificate = _certificate(address, authority_pem, proxies, check_hostname=False)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
    return ", ".join([*names.get_values_for_type(x509.DNSName), *addresses])


def _day(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")
