"""Addresses as people write them: each is understood, or refused with the right spelling."""

import pytest

from pluralllm.common.errors.tree import NotLoopback
from pluralllm.common.words.addresses import (
    check_address,
    check_listen,
    check_loopback,
    from_here,
    join_address,
    overlap,
    split_address,
)


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("fl.example.org:7443", "fl.example.org", 7443),
        ("coordinator:1", "coordinator", 1),
        ("192.0.2.1:65535", "192.0.2.1", 65_535),
        ("[::1]:7443", "::1", 7443),
        ("[2001:db8::1]:443", "2001:db8::1", 443),
        ("[fe80::1%eth0]:7443", "fe80::1%eth0", 7443),
        ("fl.example.org.:7443", "fl.example.org.", 7443),
        ("köln.example.org:7443", "köln.example.org", 7443),
        ("a" * 63 + ".org:7443", "a" * 63 + ".org", 7443),
    ],
)
def test_an_address_has_a_host_and_a_port(address: str, host: str, port: int) -> None:
    assert split_address(address) == (host, port)
    assert join_address(host, port) == address
    assert check_listen(address) == check_address(address) == address


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("", "has no port; for example 127.0.0.1:7443"),
        ("nonsense", "must be host:port, but has no port; for example nonsense:7443"),
        ("nonsense:", "'' is no port"),
        ("host:http", "'http' is no port"),
        ("host:-1", "'-1' is no port"),
        ("fl..example.org:7443", "its host has an empty part between two dots"),
        (".example.org:7443", "its host has an empty part"),
        ("x" * 64 + ".org:7443", "or a part that is too long"),
        ("host:٣", "is no port"),
        ("host:65536", "a port is a number of at most 65535"),
        ("host:000001", "is no port"),
        (":7443", "has no host; to listen, 0.0.0.0:7443 stands for all IPv4 addresses"),
        ("*:7443", "has no host; to listen, 0.0.0.0:7443 stands for all IPv4 addresses"),
        ("[]:7443", "has no host"),
        ("::1:7443", r"must have brackets around its IPv6 address; write \[::1\]:7443"),
        ("2001:db8::1", r"has no port; for example \[2001:db8::1\]:7443"),
        ("::1", r"has no port; for example \[::1\]:7443"),
        ("[::1]", r"has no port; for example \[::1\]:7443"),
        ("a:b:7443", "more than one colon"),
        ("[::1:7443", "must have an IPv6 address in its brackets"),
        ("host]:7443", "must have an IPv6 address in its brackets"),
        ("[127.0.0.1]:7443", "must have an IPv6 address in its brackets"),
        ("300.1.1.1:7443", "300.1.1.1 is no IPv4 address"),
        ("127.1:7443", "127.1 is no IPv4 address"),
        ("https://fl.example.org:7443/x", "without https://; write fl.example.org:7443"),
        ("fl.example.org:7443/x", "has the character /"),
        ("you@host:7443", "has the character @"),
        ("host: 7443", "has a space"),
        (" host:7443", "has a space"),
        ("host\u200b:7443", "a character that nobody can see"),
        ("h" * 256 + ":7443", "a name or an IP address as its host"),
        ("*.example.org:7443", "a name or an IP address as its host"),
        ("fl..example.org:7443", "an empty part between two dots, or a part that is too long"),
        (".example.org:7443", "an empty part between two dots, or a part that is too long"),
        ("a" * 64 + ".org:7443", "an empty part between two dots, or a part that is too long"),
    ],
)
def test_another_text_is_refused_with_the_right_spelling(address: str, problem: str) -> None:
    for check in (split_address, check_listen, check_address):
        with pytest.raises(ValueError, match=problem):
            check(address)


def test_port_0_takes_a_free_port_and_nobody_connects_to_it() -> None:
    assert check_listen("127.0.0.1:0") == "127.0.0.1:0"
    with pytest.raises(ValueError, match="must not have port 0"):
        check_address("127.0.0.1:0")


@pytest.mark.parametrize("address", ["0.0.0.0:7443", "[::]:7443", "[0:0:0:0:0:0:0:0]:7443"])
def test_all_addresses_of_a_machine_are_for_listening_only(address: str) -> None:
    assert check_listen(address) == address
    with pytest.raises(ValueError, match="which stands for all addresses of a machine"):
        check_address(address)


@pytest.mark.parametrize(
    ("address", "reached_by"),
    [
        ("0.0.0.0:7443", "127.0.0.1:7443"),
        ("[::]:7443", "[::1]:7443"),
        ("192.0.2.1:7443", "192.0.2.1:7443"),
        ("[::1]:7443", "[::1]:7443"),
    ],
)
def test_this_machine_reaches_its_own_ports(address: str, reached_by: str) -> None:
    assert from_here(address) == reached_by


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:1", "127.8.8.8:1", "[::1]:1"])
def test_plain_text_stays_on_this_machine(address: str) -> None:
    check_loopback(address)


@pytest.mark.parametrize("address", ["example.org:1", "0.0.0.0:1", "[::]:1", "192.0.2.1:1", "::1:1", "localhost"])
def test_plain_text_to_anywhere_else_is_refused(address: str) -> None:
    with pytest.raises(NotLoopback):
        check_loopback(address)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("0.0.0.0:7443", "127.0.0.1:7443", True),
        ("[::]:7443", "0.0.0.0:7443", True),
        ("127.0.0.1:7443", "127.0.0.1:7443", True),
        ("127.0.0.1:7443", "127.0.0.2:7443", False),
        ("127.0.0.1:7443", "127.0.0.1:7444", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
    ],
)
def test_two_ports_of_a_process_overlap(one: str, other: str, same: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is same
