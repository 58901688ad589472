"""Answers of a proxy to a request to connect, and the problem that each of them is reported as."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from pluralllm.common.errors.tree import ProxyFailed
from pluralllm.common.process.connections import connect
from pluralllm.common.process.proxies import Proxies

COORDINATOR = "fl.example.org:7443"
LIMIT_S = 5.0
CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
WANTS = b"HTTP/1.1 407 Who are you\r\nProxy-Authenticate: "


@contextlib.contextmanager
def proxy_that_says(answer: bytes) -> Iterator[str]:
    """A proxy that answers the first request with these bytes and closes the connection. Yields its address."""

    def serve() -> None:
        near, _ = listener.accept()
        with near:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += near.recv(4096)
            near.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(LIMIT_S)


@pytest.mark.parametrize(
    ("answer", "user", "problem"),
    [
        (b"", "", "what answers there is no HTTP proxy"),
        (b"HTTP/1.1 20", "", "what answers there is no HTTP proxy"),
        (b"<html>hello</html>\r\n\r\n", "", "what answers there is no HTTP proxy"),
        (b"\x00\xff\r\n\r\n", "", "what answers there is no HTTP proxy"),
        (b"HTTP/1.1 503 Too busy\r\n\r\n<html></html>", "", "it answers 503 Too busy"),
        (b"HTTP/1.1 403 \x1b[31m\r\n\r\n", "", "it answers 403"),
        (CONNECTED + b"<html>Log in!</html>\r\n\r\n", "", "it answers 200 and sends something of its own, as a login"),
        (b"HTTP/1.1 407 Who are you\r\n\r\n", "", "407 Who are you; it needs a user and a password in its URL"),
        (WANTS + b"Basic realm=x\r\n\r\n", "ann:s@", "407 Who are you; it does not accept the user and the password"),
        (WANTS + b"NTLM\r\n\r\n", "ann:s@", "407 Who are you; it wants NTLM, and only a user and a password (Basic)"),
    ],
)
def test_a_proxy_that_does_not_connect_is_reported_with_its_answer(answer: bytes, user: str, problem: str) -> None:
    with proxy_that_says(answer) as address, pytest.raises(ProxyFailed) as failed:
        connect(COORDINATOR, Proxies(f"http://{user}{address}"), LIMIT_S)
    assert failed.value.problem.startswith(problem) or failed.value.problem.startswith(f"it answers {problem}")
    assert str(failed.value).isprintable()


def test_a_proxy_that_connects_gives_a_connection_that_has_carried_nothing_yet() -> None:
    with (
        proxy_that_says(CONNECTED) as address,
        connect(COORDINATOR, Proxies(f"http://{address}"), LIMIT_S) as connection,
    ):
        assert connection.recv(1) == b""
