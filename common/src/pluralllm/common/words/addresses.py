"""Network addresses: the form host:port, and the check that an address belongs to this machine only."""

import ipaddress

from pluralllm.common.errors.tree import NotLoopback

PLAIN_TEXT_ADDRESS = "127.0.0.1:7443"  # a coordinator without certificates listens here, if nothing else is configured


def check_address(address: str) -> str:
    """Returns the address if it is host:port. Raises ValueError, as pydantic wants it."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError("must be host:port, for example 127.0.0.1:7443")
    return address


def check_loopback(address: str) -> None:
    """Refuses an address on any but the loopback interface, for connections in plain text.

    On another interface, others could read and forge identities and weights. Raises NotLoopback.
    """
    host = address.rpartition(":")[0].strip("[]")
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise NotLoopback(address=address)
