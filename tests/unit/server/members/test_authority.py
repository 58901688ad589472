"""The certificate authority: its certificates, their validity, and faults that its files survive."""

import base64
import datetime
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from pluralllm.common.errors.membership import AlreadyInitialised, CertificateInvalid, IssuerExpired, NotInitialised
from pluralllm.common.errors.tree import InvalidArgument, InvalidConfig
from pluralllm.common.trust.certificates import new_key, read_certificate
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.authority import (
    DAY_S,
    Authority,
    check_reachable,
    create_authority,
    load_authority,
    renew_issuer,
)
from pluralllm.server.members.signing import builder_for, to_pem

NOW_S = 1_800_000_000.0
HOSTS = ("fl.example.org", "192.0.2.7", "2001:db8::7")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_authority(tmp_path / "authority", "fed", HOSTS, None, NOW_S)
    return tmp_path / "authority"


def test_it_is_loaded_as_it_was_made(folder: Path) -> None:
    found = load_authority(folder)
    assert (found.federation, found.hosts) == ("fed", HOSTS)
    assert found.issuer_expires_s == NOW_S + 365 * DAY_S


def test_secrets_are_readable_by_their_owner_only(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("root-key.pem", "issuer.pem", "record-key.pem", "server.pem"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600


def test_the_server_certificate_is_for_the_advertised_names_and_for_this_machine(folder: Path) -> None:
    certificate = load_authority(folder).server_certificate()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    addresses = [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
    assert addresses == ["192.0.2.7", "2001:db8::7", "127.0.0.1", "::1"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_an_address_whose_host_the_server_certificate_is_not_for_is_found(folder: Path) -> None:
    authority = load_authority(folder)
    good = ("FL.example.org:1", "192.0.2.7:1", "[2001:db8:0::7]:1", "localhost:1")
    assert authority.uncovered(good) == ()
    wrong = ("other.example.org:1", "192.0.2.8:1", "Other.example.org:2", "b\u00fccher.example:1")
    assert authority.uncovered((*good, *wrong)) == ("other.example.org", "192.0.2.8", "b\u00fccher.example")
    command = authority.covering(["other.example.org"]).split()
    assert command[:2] == ["pluralllm-server", "renew-issuer"]
    renew_issuer(folder, command[3::2], folder / "root-key.pem", None, NOW_S)
    assert load_authority(folder).uncovered((*good, "other.example.org:1")) == ()


def test_a_members_certificate_names_federation_role_and_member_and_serves_clients_only(folder: Path) -> None:
    authority = load_authority(folder)
    chain = authority.issue_member(new_key().public_key(), "ann", MemberRole.CLIENT, 30 * DAY_S, NOW_S)
    facts = read_certificate(chain)
    assert (facts.federation, facts.role, facts.name) == ("fed", MemberRole.CLIENT, "ann")
    assert (facts.not_before_s, facts.not_after_s) == (NOW_S - 300, NOW_S + 30 * DAY_S)
    usage = x509.load_pem_x509_certificate(chain).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert authority.check_member(chain, NOW_S) == facts


def odd(extensions: Sequence[tuple[str, bytes]]) -> bytes:
    """Returns a stranger's certificate with these extensions, some of which the library's builder would not make."""
    key = new_key()
    builder = builder_for("ann", x509.Name([]), key.public_key(), NOW_S, NOW_S + DAY_S)
    for oid, value in extensions:
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        builder = builder.add_extension(extension, critical=False)
    return to_pem(builder.sign(key, hashes.SHA256()))


def doubled() -> bytes:
    """Returns a certificate with one extension twice: the builder refuses that, so a byte of a finished one is changed."""
    made = x509.load_pem_x509_certificate(odd([("1.2.3.4.5", b"\x05\x00"), ("1.2.3.4.6", b"\x05\x00")]))
    der = made.public_bytes(serialization.Encoding.DER).replace(bytes.fromhex("2a030406"), bytes.fromhex("2a030405"))
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


ODD: dict[str, Callable[[Authority], bytes]] = {
    "one extension twice": lambda _: doubled(),
    "a name of an unknown kind": lambda _: odd([("2.5.29.17", b"\x30\x02\xa3\x00")]),
    "names that are none": lambda _: odd([("2.5.29.17", b"\x05\x00")]),
    "a damaged one behind a good one": lambda authority: (
        authority.issue_member(new_key().public_key(), "ann", MemberRole.CLIENT, DAY_S, NOW_S)
        + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_certificate_of_a_stranger_is_refused_and_no_fault_of_ours(folder: Path, kind: str) -> None:
    authority = load_authority(folder)
    with pytest.raises(CertificateInvalid):
        authority.check_member(ODD[kind](authority), NOW_S)


def test_no_certificate_outlives_the_intermediate(folder: Path) -> None:
    authority = load_authority(folder)
    late_s = NOW_S + 360 * DAY_S
    facts = read_certificate(authority.issue_member(new_key().public_key(), "a", MemberRole.CLIENT, 30 * DAY_S, late_s))
    assert facts.not_after_s == authority.issuer_expires_s
    with pytest.raises(IssuerExpired, match="renew-issuer"):
        authority.issue_member(new_key().public_key(), "a", MemberRole.CLIENT, DAY_S, authority.issuer_expires_s)


def test_a_new_intermediate_takes_over_and_old_certificates_stay_good(folder: Path) -> None:
    old = load_authority(folder)
    chain = old.issue_member(new_key().public_key(), "ann", MemberRole.CLIENT, 30 * DAY_S, NOW_S)
    later_s = NOW_S + 10 * DAY_S
    renewed = renew_issuer(folder, (), folder / "root-key.pem", None, later_s)
    assert renewed.issuer != old.issuer
    assert renewed.hosts == HOSTS
    assert renewed.check_member(chain, later_s).name == "ann"
    assert renew_issuer(folder, ["new.example.org"], folder / "root-key.pem", None, later_s).hosts == (
        "new.example.org",
    )


def test_the_server_certificate_is_renewed_at_two_thirds_or_under_a_new_intermediate(folder: Path) -> None:
    authority = load_authority(folder)
    assert not authority.is_server_renewal_due(NOW_S + 59 * DAY_S)
    assert authority.is_server_renewal_due(NOW_S + 61 * DAY_S)
    stale = (folder / "server.pem").read_bytes()
    renewed = renew_issuer(folder, (), folder / "root-key.pem", None, NOW_S)
    assert not renewed.is_server_renewal_due(NOW_S)
    (folder / "server.pem").write_bytes(stale)
    assert renewed.is_server_renewal_due(NOW_S)


def test_a_root_under_a_passphrase_needs_it(tmp_path: Path) -> None:
    folder = tmp_path / "authority"
    create_authority(folder, "fed", HOSTS, b"open sesame", NOW_S)
    for passphrase in (None, b"wrong"):
        with pytest.raises(InvalidConfig, match=r"root-key\.pem"):
            renew_issuer(folder, (), folder / "root-key.pem", passphrase, NOW_S)
    renew_issuer(folder, (), folder / "root-key.pem", b"open sesame", NOW_S)


def test_another_federations_root_is_refused(folder: Path, tmp_path: Path) -> None:
    create_authority(tmp_path / "other", "fed", HOSTS, None, NOW_S)
    with pytest.raises(InvalidConfig, match="not the key of this federation's root"):
        renew_issuer(folder, (), tmp_path / "other" / "root-key.pem", None, NOW_S)


def test_a_second_one_is_refused_and_an_interrupted_first_one_is_made_anew(folder: Path) -> None:
    with pytest.raises(AlreadyInitialised):
        create_authority(folder, "fed", HOSTS, None, NOW_S)
    (folder / "federation.json").unlink()
    with pytest.raises(NotInitialised):
        load_authority(folder)
    assert isinstance(create_authority(folder, "again", HOSTS, None, NOW_S), Authority)


@pytest.mark.parametrize("file", ["federation.json", "root.pem", "issuer.pem"])
def test_a_damaged_file_is_named(folder: Path, file: str) -> None:
    (folder / file).write_bytes(b"garbage")
    with pytest.raises(InvalidConfig, match=file):
        load_authority(folder)


@pytest.mark.parametrize("host", ["https://fl.example.org", "fl.example.org:7443", "", "-x", "a b", "*.example.org"])
def test_what_is_no_host_name_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(InvalidArgument, match="--host"):
        create_authority(tmp_path / "authority", "fed", [host], None, NOW_S)
    assert not (tmp_path / "authority").exists()


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        ("0.0.0.0", "stands for all addresses of a machine; write the name"),
        ("::", "stands for all addresses of a machine; write the name"),
        ("1.2.3", "is no IPv4 address"),
        ("1.2.3.256", "is no IPv4 address"),
    ],
)
def test_a_name_that_nobody_can_connect_to_is_refused(host: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=f"--host: '{host}'.*{problem}"):
        check_reachable(["fl.example.org", host])


def test_names_and_addresses_that_others_may_connect_to_are_allowed() -> None:
    check_reachable(["fl.example.org", "localhost", "10.0.0.1", "::1", "2001:db8::1", "coordinator"])


def test_the_roots_life_is_twenty_years(folder: Path) -> None:
    root = load_authority(folder).root
    assert root.not_valid_after_utc - root.not_valid_before_utc > datetime.timedelta(days=20 * 365 - 1)
