"""Addresses of ports: what they look like, and which are of this machine only."""

import ipaddress

from pluralllm.common.errors.tree import NotLoopback


def check_address(address: str) -> str:
    """For pydantic: host:port. Raises ValueError."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError("must be host:port, for example 127.0.0.1:7443")
    return address


def check_loopback(address: str) -> None:
    """Plain text stays on this machine: on any other interface identities and weights could be read and forged.

    Raises NotLoopback.
    """
    host = address.rpartition(":")[0].strip("[]")
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise NotLoopback(address=address)
