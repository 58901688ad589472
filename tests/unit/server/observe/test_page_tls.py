"""The page counts connections by certificate or network, logs a refused certificate once a minute, and takes a new server.pem."""

import os
import ssl
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pluralllm.server.members.authority import create_authority
from pluralllm.server.observe.page_tls import OpenConnections, PageTls, network_of_peer


def test_a_holder_has_its_number_of_connections_and_all_together_have_theirs() -> None:
    opened = OpenConnections(4)
    assert [opened.add("ann", 2) for _ in range(3)] == [True, True, False]
    assert [opened.add("ben", 9) for _ in range(3)] == [True, True, False]
    opened.remove("ann")
    assert [opened.add("ben", 9) for _ in range(2)] == [True, False]


def test_a_connection_that_shows_its_certificate_counts_for_it_and_no_longer_for_its_network() -> None:
    opened = OpenConnections(3)
    assert opened.add("network", 1)
    assert opened.move("network", "ann", 1)
    assert opened.add("network", 1)
    assert not opened.move("network", "ann", 1)
    assert not opened.add("network", 1), "it counts as before"
    for holder in ("network", "ann"):
        opened.remove(holder)
    assert opened._of == {}, "strangers fill no memory"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        (("192.0.2.1", 5000), "ipv4:192.0.2.1"),
        (("2001:db8::1", 5000, 0, 0), "ipv6:2001:db8::/64"),
        (("::ffff:192.0.2.1", 5000, 0, 0), "ipv4:192.0.2.1"),
        (None, "unknown"),
    ],
)
def test_a_peer_counts_for_its_network(address: tuple[object, ...] | None, network: str) -> None:
    assert network_of_peer(address) == network


def test_a_refused_certificate_is_logged_once_a_minute_and_other_failures_are_not(tmp_path: Path) -> None:
    tls = PageTls(create_authority(tmp_path / "authority", "test", ["x"], None, time.time()))
    assert tls.context().minimum_version is ssl.TLSVersion.TLSv1_3
    refused = ssl.SSLCertVerificationError("no")
    refused.verify_message = "unable to get local issuer certificate"
    with capture_logs() as lines:
        for error in (ConnectionResetError(), ssl.SSLError(), refused, refused):
            tls.log_refusal("ipv4:192.0.2.1", error)
        tls.log_refusal("ipv4:192.0.2.2", refused)
    assert [(line["event"], line["peer"], line["problem"]) for line in lines] == [
        ("page.certificate_refused", f"ipv4:192.0.2.{number}", refused.verify_message) for number in (1, 2)
    ]


def test_a_changed_certificate_is_taken_up_and_a_damaged_one_changes_nothing(tmp_path: Path) -> None:
    authority = create_authority(tmp_path / "authority", "test", ["x"], None, time.time())
    tls, file = PageTls(authority), authority.server_file
    first, old_ns = tls.context(), file.stat().st_mtime_ns
    with capture_logs() as lines:
        assert tls.context() is first
        authority.renew_server(time.time())
        os.utime(file, ns=(old_ns, old_ns + 10**9))  # a coarse clock could give both files one time
        second = tls.context()
        assert second is not first
        file.write_text("no certificate")
        os.utime(file, ns=(old_ns, old_ns + 2 * 10**9))
        assert [tls.context() is second for _ in range(2)] == [True, True]
    assert [line["event"].removeprefix("tls.server_certificate_") for line in lines] == ["reloaded", "unusable"]
