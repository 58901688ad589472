"""An HTTP proxy that connects to other addresses (the method CONNECT), or refuses to.

Its host is one for which no test's coordinator has a certificate.
"""

import base64
import contextlib
import socket
import threading
from collections.abc import Iterator

HOST = "127.0.0.2"
LIMIT_S = 20.0


class ConnectProxy:
    """A proxy on a free port. It keeps the addresses that it was asked for.

    refuses: the status line with which it answers every request; None connects. password: "user:password" that it demands.
    reaches: real addresses by the names that only the proxy knows.
    """

    def __init__(
        self, refuses: str | None = None, password: str | None = None, reaches: dict[str, str] | None = None
    ) -> None:
        self._refuses, self._password, self._reaches = refuses, password, reaches or {}
        self._listener = socket.create_server((HOST, 0))
        self.address = f"{HOST}:{self._listener.getsockname()[1]}"
        self.url = f"http://{self.address}"
        self.asked: list[str] = []
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(near)
            threading.Thread(target=self._answer, args=(near,), daemon=True).start()

    def _answer(self, near: socket.socket) -> None:
        near.settimeout(LIMIT_S)
        with contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += near.recv(4096)
            lines = head.decode().split("\r\n")
            method, target, _ = lines[0].split()
            assert method == "CONNECT"
            self.asked.append(target)
            if self._password is not None:
                expected = "proxy-authorization: basic " + base64.b64encode(self._password.encode()).decode().lower()
                if expected not in [line.lower() for line in lines]:
                    return self._refuse(near, "407 Proxy Authentication Required")
            if self._refuses is not None:
                return self._refuse(near, self._refuses)
            host, _, port = self._reaches.get(target, target).rpartition(":")
            try:
                far = socket.create_connection((host.strip("[]"), int(port)), LIMIT_S)
            except OSError:
                return self._refuse(near, "502 Bad Gateway")
            self._sockets.append(far)
            near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            threading.Thread(target=_pass, args=(near, far), daemon=True).start()
            _pass(far, near)
        return None

    @staticmethod
    def _refuse(near: socket.socket, status: str) -> None:
        near.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        near.close()


def _pass(source: socket.socket, sink: socket.socket) -> None:
    source.settimeout(None)
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def connect_proxy(
    refuses: str | None = None, password: str | None = None, reaches: dict[str, str] | None = None
) -> Iterator[ConnectProxy]:
    proxy = ConnectProxy(refuses, password, reaches)
    try:
        yield proxy
    finally:
        proxy.close()
