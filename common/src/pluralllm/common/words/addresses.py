"""Network addresses, in the form host:port; the host of an IPv6 address stands in brackets, for example [::1]:7443.

Every address that a person writes or that another party sends is read here and nowhere else; a test enforces it. A function
that checks an address raises ValueError with a text that says what is wrong and how to write it, because pydantic expects a
ValueError from a validator.
"""

import ipaddress
from dataclasses import dataclass

from pluralllm.common.errors.tree import NotLoopback

PLAIN_TEXT_ADDRESS = "127.0.0.1:7443"  # a coordinator without certificates listens here, if nothing else is configured
MAX_HOST_CHARACTERS, MAX_PORT = 255, 65_535
STRANGE = set("/\\@,;?#\"'<>|&=()")  # characters that no address has


def split_address(address: str) -> tuple[str, int]:
    """Splits an address into host and port; the host has no brackets. Raises ValueError if the address has another form."""
    _check_characters(address)
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        example = _bracketed(address.strip("[]") or "127.0.0.1")
        raise ValueError(f"must be host:port, but has no port; for example {example}:7443")
    if not host.startswith("[") and ":" in host:
        raise ValueError(_without_brackets(host, port))
    if not (port.isascii() and port.isdecimal()) or len(port) > 5 or int(port) > MAX_PORT:
        raise ValueError(f"must be host:port, but '{port}' is no port; a port is a number of at most {MAX_PORT}")
    if host in ("", "*", "[]", "[*]"):
        raise ValueError(
            f"must be host:port, but has no host; to listen, 0.0.0.0:{port} stands for all IPv4 addresses of this"
            f" machine, and [::]:{port} for all its addresses"
        )
    return _host_in(host), int(port)


def join_address(host: str, port: int) -> str:
    """Returns the address of a host and a port. host: a name or an IP address, without brackets."""
    return f"{_bracketed(host)}:{port}"


def check_listen(address: str) -> str:
    """Returns an address unchanged if a port can be opened at it; port 0 takes a free port. Raises ValueError otherwise."""
    split_address(address)
    return address


def check_address(address: str) -> str:
    """Returns an address unchanged if somebody can connect to it. Raises ValueError otherwise."""
    host, port = split_address(address)
    if port == 0:
        raise ValueError("must not have port 0, which nobody can connect to; write the port that the other side opened")
    if _stands_for_all(host):
        raise ValueError(
            f"must not be {host}, which stands for all addresses of a machine; write the name or the address by which"
            " others reach that machine"
        )
    return address


def overlap(one: str, other: str) -> bool:
    """Returns whether two ports that one process opens would be the same one. Port 0 takes a free port each time."""
    (host, port), (other_host, other_port) = split_address(one), split_address(other)
    return 0 != port == other_port and (host == other_host or _stands_for_all(host) or _stands_for_all(other_host))


def from_here(address: str) -> str:
    """Returns the address with which this machine connects to its own port. address: the address that the port was opened at."""
    host, port = split_address(address)
    if not _stands_for_all(host):
        return address
    return join_address("::1" if ":" in host else "127.0.0.1", port)


def check_loopback(address: str) -> None:
    """Checks that an address is on the loopback interface, before a connection in plain text is made.

    On any other interface, strangers could read and forge identities and weights. Raises NotLoopback for such an address.
    """
    try:
        host = split_address(address)[0]
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise NotLoopback(address=address)


@dataclass(frozen=True, slots=True)
class Addresses:
    """The two addresses (host:port) at which members reach the coordinator: of its main port and of its enrolment port.

    The server may bind other addresses, for example behind a proxy.
    """

    coordinator: str
    enrolment: str


def is_loopback(host: str) -> bool:
    """Returns whether a host is this machine: localhost, a name below it, or an address of the loopback interface."""
    name = host.lower().rstrip(".")
    if not _is_ip(name):
        return name == "localhost" or name.endswith(".localhost")
    address = ipaddress.ip_address(name)
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback if mapped is None else bool(mapped.is_loopback)


def _check_characters(address: str) -> None:
    """Raises ValueError if a text is a URL, or if it has characters that no address has."""
    scheme, mark, rest = address.partition("://")
    if mark:
        raise ValueError(f"must be host:port without {scheme}://; write {rest.partition('/')[0] or 'host:port'}")
    if any(char.isspace() or not char.isprintable() for char in address):
        raise ValueError("must be host:port, but has a space or a character that nobody can see")
    if strange := sorted(set(address) & STRANGE):
        raise ValueError(f"must be host:port, but has the character {strange[0]}; for example 127.0.0.1:7443")


def _without_brackets(host: str, port: str) -> str:
    """Returns the text of the error for a host that has a colon and no brackets."""
    if _is_ip(host):
        return f"must have brackets around its IPv6 address; write [{host}]:{port}"
    if _is_ip(f"{host}:{port}"):
        return f"must be host:port, but has no port; for example [{host}:{port}]:7443"
    return "must be host:port, but has more than one colon; for example 127.0.0.1:7443 or [::1]:7443"


def _host_in(host: str) -> str:
    """Returns a host without its brackets. Raises ValueError if the host is no name and no IP address."""
    bare = host.removeprefix("[").removesuffix("]")
    if bare != host:
        if host != f"[{bare}]" or ":" not in bare or not _is_ip(bare):
            raise ValueError(f"must have an IPv6 address in its brackets, for example [::1]:7443, not {host}")
        return bare
    if len(host) > MAX_HOST_CHARACTERS or set(host) & set("[]*"):
        raise ValueError("must be host:port, with a name or an IP address as its host")
    try:
        host.encode("idna")  # as the socket module does
    except UnicodeError:
        raise ValueError(
            "must be host:port, but its host has an empty part between two dots, or a part that is too long"
        ) from None
    if set(host) <= set("0123456789.") and not _is_ip(host):
        raise ValueError(f"must be host:port, but {host} is no IPv4 address; for example 127.0.0.1:7443")
    return host


def _stands_for_all(host: str) -> bool:
    """Returns whether a host stands for all addresses of a machine: 0.0.0.0 or ::, in any spelling."""
    return _is_ip(host) and ipaddress.ip_address(host).is_unspecified


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
