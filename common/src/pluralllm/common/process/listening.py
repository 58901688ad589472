"""Opens the ports that a command names, and says in words why one could not be opened."""

import errno
import socket
from collections.abc import Callable

from pluralllm.common.errors.tree import InUse, InvalidArgument, PluralError
from pluralllm.common.words.addresses import check_listen, split_address


def why_not_open(address: str) -> PluralError:
    """Returns the error for a port that could not be opened at `address` (host:port).

    gRPC and uvicorn do not report the reason, so the function tries to open the port itself.
    """
    host, port = split_address(address)
    what = f"address {address}"
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen()
    except socket.gaierror as error:
        return InvalidArgument(field=what, problem=f"the name {host} is not known here ({error.strerror})")
    except PermissionError:
        return InvalidArgument(field=what, problem=f"this user may not open port {port}; choose one above 1023")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return InUse(what=what, by="another process")
        problem = f"{host} is no address of this machine" if error.errno == errno.EADDRNOTAVAIL else str(error.strerror)
        return InvalidArgument(field=what, problem=f"{problem}; 0.0.0.0:{port} stands for all its IPv4 addresses")
    return InUse(what=what, by="another process, which has ended meanwhile")


def checked_listen(option: str, address: str) -> str:
    """Returns the address (host:port) that an option of a command gives. Raises InvalidArgument if it is none."""
    try:
        return check_listen(address)
    except ValueError as error:
        raise InvalidArgument(field=option, problem=str(error)) from error


def bound_socket(bind: Callable[[], socket.socket], address: str) -> socket.socket:
    """Returns the socket that uvicorn opens at `address` (host:port). Raises InUse or InvalidArgument if it cannot be opened.

    bind: `bind_socket` of uvicorn's configuration, which would end the process.
    """
    try:
        return bind()
    except SystemExit as error:
        raise why_not_open(address) from error
