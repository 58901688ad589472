"""Why a port could not be opened: each reason is told as what it is."""

import socket

import pytest
from prometheus_client import CollectorRegistry

from pluralllm.common.errors.tree import InUse, InvalidArgument
from pluralllm.common.process.listening import why_not_open
from pluralllm.common.process.scrape_port import scrape_port


def test_a_port_of_another_process_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        error = why_not_open(address)
        assert isinstance(error, InUse)
        assert str(error).startswith(f"address {address} is in use by another process.")
        with pytest.raises(InUse), scrape_port(address, CollectorRegistry()):
            pass


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("192.0.2.1:7443", "192.0.2.1 is no address of this machine"),
        ("[2001:db8::1]:7443", "2001:db8::1 is no address of this machine"),
        ("no-such-host.invalid:7443", "the name no-such-host.invalid is not known here"),
    ],
)
def test_an_address_of_another_machine_is_not_in_use(address: str, problem: str) -> None:
    error = why_not_open(address)
    assert isinstance(error, InvalidArgument)
    assert problem in str(error)
    with pytest.raises(InvalidArgument), scrape_port(address, CollectorRegistry()):
        pass


def test_a_port_that_is_free_by_now_was_in_use() -> None:
    assert isinstance(why_not_open("127.0.0.1:0"), InUse)
