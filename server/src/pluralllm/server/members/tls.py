"""TLS of the server: credentials that are read again when their file changes, and the renewal of certificates before their end.

gRPC accepts only TLS 1.2 and 1.3, and asks the credentials for changes at each handshake.
"""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
import structlog

from pluralllm.common.errors.tree import InvalidConfig, PluralError
from pluralllm.common.trust.certificates import key_to_pem
from pluralllm.server.members.authority import Authority, day, load_authority, read_pair
from pluralllm.server.members.registry import Registry

log = structlog.get_logger()

TEND_S = 60.0
ISSUER_WARNING_S = 30 * 86_400.0

T = TypeVar("T")


class ServerFile(Generic[T]):
    """The file server.pem, which is read again when it has changed.

    If the changed file is damaged, an error is logged and the old certificate stays in use.
    """

    def __init__(self, path: Path, read: Callable[[], T]) -> None:
        """Notes the file's present state. read: reads the file; raises InvalidConfig or OSError if the file is damaged."""
        self._path, self._read = path, read
        self._seen_ns = path.stat().st_mtime_ns

    def news(self) -> T | None:
        """Returns the file's new content if the file has changed; None if the file has not changed or is damaged.

        gRPC calls the method at each handshake, from a thread of its own.
        """
        try:
            seen_ns = self._path.stat().st_mtime_ns
            if seen_ns == self._seen_ns:
                return None
            self._seen_ns = seen_ns
            changed = self._read()
        except (OSError, InvalidConfig) as error:  # an SSLError is an OSError
            log.error("tls.server_certificate_unusable", problem=str(error))
            return None
        log.info("tls.server_certificate_reloaded", file=str(self._path))
        return changed


def server_credentials(authority: Authority, *, members_only: bool) -> grpc.ServerCredentials:
    """Returns the TLS credentials of one port. Raises InvalidConfig if server.pem is damaged.

    members_only: whether every client must present a certificate of this federation.
    """

    def read() -> grpc.ServerCertificateConfiguration:
        key, chain_pem, _ = read_pair(authority.server_file)
        return grpc.ssl_server_certificate_configuration([(key_to_pem(key), chain_pem)], authority.root_pem)

    news: Any = ServerFile(authority.server_file, read).news  # the type stubs do not know that None means "no change"
    credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(read(), news, members_only)
    return credentials


def warn_of_uncovered(authority: Authority, addresses: Iterable[str]) -> None:
    """Logs a warning about hosts that the server certificate does not cover. Nobody could join through such a host.

    addresses: the addresses that invites name. Raises InvalidConfig if server.pem is damaged.
    """
    if wrong := authority.uncovered(addresses):
        log.warning("tls.advertised_name_not_covered", hosts=wrong, fix=authority.covering(wrong))


async def tend_certificates(registry: Registry, wall_s: Callable[[], float]) -> None:
    """Renews the server certificate before it expires, and loads an intermediate that the operator has renewed.

    The coroutine also logs a warning before the intermediate expires. It runs until it is cancelled.
    wall_s: returns the present time in seconds since 1970.
    """
    warned = ""
    while True:
        try:
            registry.authority = await asyncio.to_thread(load_authority, registry.authority.folder)
            if registry.authority.is_server_renewal_due(wall_s()):
                await asyncio.to_thread(registry.authority.renew_server, wall_s())
                log.info("tls.server_certificate_renewed")
        except (PluralError, OSError) as error:  # a disk that fails now may work in a minute
            log.error("tls.authority_unusable", problem=str(error))
        left_s, expires = registry.authority.issuer_expires_s - wall_s(), day(registry.authority.issuer_expires_s)
        if left_s < ISSUER_WARNING_S and warned != expires:
            log.warning("tls.issuer_expires_soon", expires=expires, fix="pluralllm-server renew-issuer")
            warned = expires
        await asyncio.sleep(TEND_S)
