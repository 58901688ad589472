"""Network addresses: the form host:port, and the check that an address belongs to this machine only."""

import ipaddress

from pluralllm.common.errors.tree import NotLoopback

PLAIN_TEXT_ADDRESS = "127.0.0.1:7443"  # a coordinator without certificates listens here, if nothing else is configured


def check_address(address: str) -> str:
    """Returns the address unchanged if it has the form host:port.

    Raises ValueError otherwise, because pydantic expects a ValueError from a validator.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError("must be host:port, for example 127.0.0.1:7443")
    return address


def check_loopback(address: str) -> None:
    """Checks that an address is on the loopback interface, before a connection in plain text is made.

    On any other interface, strangers could read and forge identities and weights. Raises NotLoopback for such an address.
    """
    host = address.rpartition(":")[0].strip("[]")
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise NotLoopback(address=address)
