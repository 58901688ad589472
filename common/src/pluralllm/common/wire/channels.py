"""gRPC channels to a coordinator: mutual TLS with a member's certificate, or plain text on the loopback interface."""

from collections.abc import Sequence

import grpc

from pluralllm.common.process.proxies import DIRECT, Proxies
from pluralllm.common.trust.identity import Identity
from pluralllm.common.wire.messages import CHANNEL_OPTIONS, COMMAND_OPTIONS, DAEMON_OPTIONS
from pluralllm.common.words.addresses import check_loopback

DIRECTLY = (("grpc.enable_http_proxy", 0),)
Options = Sequence[tuple[str, str | int]]


def credentials(identity: Identity) -> grpc.ChannelCredentials:
    """Returns TLS credentials with which client and coordinator both prove their identity (RFC 8446, section 4.4).

    The client trusts only the certificate authority that its invite contained.
    """
    return grpc.ssl_channel_credentials(identity.authority_pem, identity.key_pem, identity.chain_pem)


def secure_channel(identity: Identity, options: Options = ()) -> grpc.aio.Channel:
    """Returns an asyncio channel with mutual TLS to the member's coordinator. options: further options of the gRPC channel."""
    target, way = _way(identity.membership.coordinator, identity.proxies)
    return grpc.aio.secure_channel(
        target, credentials(identity), options=[*CHANNEL_OPTIONS, *DAEMON_OPTIONS, *way, *options]
    )


def plain_channel(address: str, options: Options = ()) -> grpc.aio.Channel:
    """Returns an asyncio channel in plain text to a coordinator on this machine. options: further options of the gRPC channel.

    Raises NotLoopback if the address is on another machine.
    """
    check_loopback(address)
    return grpc.aio.insecure_channel(address, options=[*CHANNEL_OPTIONS, *DAEMON_OPTIONS, *DIRECTLY, *options])


def blocking_channel(identity: Identity) -> grpc.Channel:
    """Returns a blocking channel with mutual TLS to the member's coordinator."""
    target, way = _way(identity.membership.coordinator, identity.proxies)
    return grpc.secure_channel(target, credentials(identity), options=[*CHANNEL_OPTIONS, *COMMAND_OPTIONS, *way])


def blocking_plain_channel(address: str) -> grpc.Channel:
    """Returns a blocking channel in plain text to a coordinator on this machine.

    Raises NotLoopback if the address is on another machine.
    """
    check_loopback(address)
    return grpc.insecure_channel(address, options=[*CHANNEL_OPTIONS, *COMMAND_OPTIONS, *DIRECTLY])


def enrolment_channel(address: str, authority_pem: bytes, proxies: Proxies = DIRECT) -> grpc.Channel:
    """Returns a blocking channel to the coordinator's enrolment port, for a machine that has no certificate yet.

    Only the coordinator proves its identity, by a certificate that the authority signed. authority_pem: the authority's root
    certificate.
    """
    target, way = _way(address, proxies)
    trusted = grpc.ssl_channel_credentials(authority_pem)
    return grpc.secure_channel(target, trusted, options=[*CHANNEL_OPTIONS, *way])


def _way(address: str, proxies: Proxies) -> tuple[str, Options]:
    """Returns the target of a channel and its options, for a connection to `address` that goes the way that `proxies` says.

    gRPC's own rules for proxies are off: they know no configuration, and they send even loopback addresses to the proxy.
    """
    proxy = proxies.to(address)
    if proxy is None:
        return address, DIRECTLY
    options = (
        *DIRECTLY,
        ("grpc.http_connect_server", address),
        ("grpc.default_authority", address),  # TLS checks the coordinator's name, not the proxy's
    )
    if not proxy.authorization:
        return proxy.address, options  # gRPC reports an empty header as an error, with each connection
    return proxy.address, (*options, ("grpc.http_connect_headers", f"Proxy-Authorization:{proxy.authorization}"))
