"""A server that accepts a connection and makes no TLS handshake: the error says what it does."""

import socket
import ssl
import threading

import pytest

from pluralllm.common.errors.tree import PluralError, Unreachable, WrongPort
from pluralllm.common.process.proxies import DIRECT
from pluralllm.common.trust import handshake


@pytest.mark.parametrize(
    ("answer", "is_open", "error", "problem"),
    [
        (b"", False, Unreachable, "the connection ends in the middle of the TLS handshake"),
        (b"", True, Unreachable, "it has not answered within 0 s"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, WrongPort, "does not speak TLS"),
    ],
)
def test_a_server_without_tls_is_told_by_what_it_does(
    answer: bytes, is_open: bool, error: type[PluralError], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def serve() -> None:
        near, _ = listener.accept()
        with near:
            near.recv(4096)
            near.sendall(answer)
            if is_open:
                over.wait(5)

    monkeypatch.setattr(handshake, "TIMEOUT_S", 0.3 if is_open else 5.0)
    monkeypatch.setattr(handshake, "_context", lambda *_: ssl.create_default_context())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(error, match=problem):
            handshake.handshake(f"127.0.0.1:{listener.getsockname()[1]}", b"", DIRECT)
        over.set()
        thread.join(5)
