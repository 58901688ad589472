"""A TCP proxy that cuts the connection after a number of bytes."""

import contextlib
import socket
import threading
from collections.abc import Callable


class CuttingProxy:
    """Passes bytes on to the coordinator; after `limit` bytes from the client it calls back once and cuts the connection."""

    def __init__(self, target: str, limit: int, on_limit: Callable[[], None]) -> None:
        host, _, number = target.rpartition(":")
        self._target = (host, int(number))
        self._left = limit
        self._on_limit = on_limit
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for open_socket in self._sockets:
            open_socket.close()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
                outer = socket.create_connection(self._target, timeout=10)
            except OSError:
                return
            self._sockets += [inner, outer]
            threading.Thread(target=self._pass, args=(inner, outer, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(outer, inner, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(65_536):
                if counted and self._left > 0:
                    self._left -= len(data)
                    if self._left <= 0:
                        self._on_limit()
                        break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
