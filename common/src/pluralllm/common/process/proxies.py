"""The way to a coordinator: directly, or through an HTTP proxy with the method CONNECT (RFC 9110, section 9.3.6).

`Proxies.to` alone decides how to reach an address. gRPC's channels, the diagnosis and the doctor ask it, so that what explains a
failure goes the same way as what fails. The module connections.py opens the connections that are not gRPC's. No text and no repr
of this module contains a proxy's password.
"""

import base64
import ipaddress
import re
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from pluralllm.common.errors.tree import ForeignAnswer, InvalidConfig, PluralError, ProxyFailed, Unreachable
from pluralllm.common.words.addresses import check_address, is_loopback, split_address

NO_PROXY = "none"  # the value that means: connect directly, whatever the environment says
DEFAULT_PORT = 80
# A name, perhaps with * or a dot at its start, or an address in brackets; a bare IPv6 address has more than one colon.
ENTRY_WITH_PORT = re.compile(r"(\[[^]]*\](?:/\d+)?|[^:]*):(\d{1,5})")
REFUSED_BY_PROXY = re.compile(r"HTTP proxy returned response code (\d{3})")  # gRPC's own text
FORM = "must be http://HOST:PORT, http://USER:PASSWORD@HOST:PORT or none"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that connects to other addresses."""

    address: str
    credentials: str = field(default="", repr=False)  # user:password; empty if it wants none

    @property
    def authorization(self) -> str:
        """The value of the header Proxy-Authorization; empty if the proxy wants none."""
        if not self.credentials:
            return ""
        pair = self.credentials if ":" in self.credentials else f"{self.credentials}:"  # RFC 7617, section 2
        return f"Basic {base64.b64encode(pair.encode('utf-8', 'surrogateescape')).decode()}"


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxy that connections use, and the hosts to which they go directly."""

    url: str = field(default="", repr=False)  # may contain a password; empty for no proxy
    exempt: tuple[str, ...] = ()  # entries of no_proxy
    origin: str = ""  # where the URL comes from, for texts

    def to(self, address: str) -> Proxy | None:
        """Returns the proxy through which an address (host:port) is reached; None if it is reached directly.

        This machine's own addresses are always reached directly. Raises InvalidConfig if the proxy's URL cannot be used.
        """
        host, port = split_address(address)
        if not names_a_proxy(self.url) or is_loopback(host) or any(_matches(one, host, port) for one in self.exempt):
            return None
        try:
            return parse_proxy(self.url)
        except ValueError as error:
            raise InvalidConfig(file=self.origin, problems=f"  the URL of the proxy {error}") from error

    def explained(self, error: PluralError) -> PluralError:
        """Returns the error itself, or with the proxy's name if its connection goes through a proxy.

        If the proxy has refused to connect, the result is ProxyFailed.
        """
        if not isinstance(error, Unreachable | ForeignAnswer) or (proxy := self.to(error.address)) is None:
            return error
        if (refusal := REFUSED_BY_PROXY.search(error.problem)) is not None:
            return ProxyFailed(proxy=proxy.address, address=error.address, problem=refusal_text(refusal[1], "", proxy))
        return replace(error, problem=f"{error.problem} (through the proxy {proxy.address}, which may be the cause)")


DIRECT = Proxies()


def names_a_proxy(url: str) -> bool:
    """Returns whether the value of a proxy's setting names a proxy. It names none if it is empty, or `none` in any spelling."""
    return url.strip().lower() not in ("", NO_PROXY)


def refusal_text(status: str, reason: str, proxy: Proxy, offers: str | None = None) -> str:
    """Returns the problem of a proxy that answers a request to connect with a refusal.

    status: the three digits. reason: the words behind them. offers: the header Proxy-Authenticate of the answer, if it is known.
    """
    text = f"it answers {status} {reason}".rstrip()
    if status != "407":
        return text
    if offers and "basic" not in offers.lower():
        return f"{text}; it wants {offers}, and only a user and a password (Basic) are supported"
    if proxy.credentials:
        return f"{text}; it does not accept the user and the password in its URL"
    return f"{text}; it needs a user and a password in its URL"


def parse_proxy(url: str) -> Proxy:
    """Reads the URL of a proxy. Raises ValueError, whose text does not repeat the URL: it may contain a password."""
    scheme, mark, rest = url.partition("://")
    if mark and scheme.lower() != "http":
        raise ValueError(f"{FORM}; other kinds of proxies are not supported")
    credentials, _, address = (rest if mark else url).rstrip("/").rpartition("@")
    if not re.search(r":\d+$", address):
        address = f"{address}:{DEFAULT_PORT}"
    try:
        check_address(address)
    except ValueError:
        raise ValueError(FORM) from None
    return Proxy(address, unquote(credentials))


def _matches(entry: str, host: str, port: int) -> bool:
    """Returns whether an entry of no_proxy is for a host: *, a name and all below it, an address, or a network (10.0.0.0/8).

    A port at the end of an entry limits the entry to this port.
    """
    with_port = ENTRY_WITH_PORT.fullmatch(entry)
    if with_port is not None:
        entry = with_port[1]
        if int(with_port[2]) != port:
            return False
    entry, host = (
        re.sub(r"[][]", "", entry.lower()),
        host.lower().rstrip("."),
    )  # brackets may end before the network's length
    if entry == "*":
        return True
    address = _ip(host)
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    domain = entry.removeprefix("*").strip(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
