"""Opens TCP connections, directly or through an HTTP proxy. gRPC opens its own."""

import re
import socket
import time

from pluralllm.common.errors.tree import ProxyFailed
from pluralllm.common.process.proxies import Proxies, Proxy, refusal_text
from pluralllm.common.words.addresses import join_address, split_address

MAX_ANSWER_BYTES = 16 * 1024


def connect(address: str, proxies: Proxies, timeout_s: float) -> socket.socket:
    """Opens a TCP connection to an address (host:port), through a proxy if `proxies` says so.

    Raises OSError if the address does not answer; ProxyFailed if the proxy does not answer or does not connect.
    """
    proxy = proxies.to(address)
    if proxy is None:
        return socket.create_connection(split_address(address), timeout_s)
    try:
        connection = socket.create_connection(split_address(proxy.address), timeout_s)
    except OSError as error:
        problem = f"it does not answer ({error.strerror or error})"
        raise ProxyFailed(proxy=proxy.address, address=address, problem=problem) from error
    try:
        _ask_to_connect(connection, address, proxy, time.monotonic() + timeout_s)
    except BaseException:
        connection.close()
        raise
    return connection


def _ask_to_connect(connection: socket.socket, address: str, proxy: Proxy, end_s: float) -> None:
    """Asks a proxy to connect to an address. Raises ProxyFailed if its answer is anything but a success."""
    target = join_address(*split_address(address))
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    lines += [f"Proxy-Authorization: {proxy.authorization}"] if proxy.authorization else []
    answer = b""
    try:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        while b"\r\n\r\n" not in answer and len(answer) < MAX_ANSWER_BYTES:
            connection.settimeout(max(0.001, end_s - time.monotonic()))
            piece = connection.recv(4096)
            if not piece:
                break
            answer += piece
    except OSError as error:
        problem = f"it does not answer ({error.strerror or error})"
        raise ProxyFailed(proxy=proxy.address, address=address, problem=problem) from error
    status = re.match(rb"HTTP/1\.[01] (\d{3}) ?([ -~]{0,100})", answer)
    if status is None:
        raise ProxyFailed(proxy=proxy.address, address=address, problem="what answers there is no HTTP proxy")
    if not status[1].startswith(b"2"):
        offers = re.search(rb"\r\nproxy-authenticate: *([ -~]{1,100})", answer, re.IGNORECASE)
        text = refusal_text(status[1].decode(), status[2].decode(), proxy, offers[1].decode() if offers else None)
        raise ProxyFailed(proxy=proxy.address, address=address, problem=text)
    if answer.partition(b"\r\n\r\n")[2]:  # with TLS, the client speaks first
        problem = f"it answers {status[1].decode()} and sends something of its own, as a login page does"
        raise ProxyFailed(proxy=proxy.address, address=address, problem=problem)
