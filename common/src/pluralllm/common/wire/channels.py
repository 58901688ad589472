"""gRPC channels to a coordinator: mutual TLS with a member's certificate, or plain text on the loopback interface."""

from collections.abc import Sequence

import grpc

from pluralllm.common.trust.identity import Identity
from pluralllm.common.wire.messages import CHANNEL_OPTIONS
from pluralllm.common.words.addresses import check_loopback

Options = Sequence[tuple[str, str | int]]


def credentials(identity: Identity) -> grpc.ChannelCredentials:
    """Returns TLS credentials with which client and coordinator both prove their identity (RFC 8446, section 4.4).

    The client trusts only the certificate authority that its invite contained.
    """
    return grpc.ssl_channel_credentials(identity.authority_pem, identity.key_pem, identity.chain_pem)


def secure_channel(identity: Identity, options: Options = ()) -> grpc.aio.Channel:
    """Returns an asyncio channel with mutual TLS to the member's coordinator. options: further options of the gRPC channel."""
    return grpc.aio.secure_channel(
        identity.membership.coordinator, credentials(identity), options=[*CHANNEL_OPTIONS, *options]
    )


def plain_channel(address: str, options: Options = ()) -> grpc.aio.Channel:
    """Returns an asyncio channel in plain text to a coordinator on this machine. options: further options of the gRPC channel.

    Raises NotLoopback if the address is on another machine.
    """
    check_loopback(address)
    return grpc.aio.insecure_channel(address, options=[*CHANNEL_OPTIONS, *options])


def blocking_channel(identity: Identity) -> grpc.Channel:
    """Returns a blocking channel with mutual TLS to the member's coordinator."""
    return grpc.secure_channel(identity.membership.coordinator, credentials(identity), options=list(CHANNEL_OPTIONS))


def blocking_plain_channel(address: str) -> grpc.Channel:
    """Returns a blocking channel in plain text to a coordinator on this machine.

    Raises NotLoopback if the address is on another machine.
    """
    check_loopback(address)
    return grpc.insecure_channel(address, options=list(CHANNEL_OPTIONS))


def enrolment_channel(address: str, authority_pem: bytes) -> grpc.Channel:
    """Returns a blocking channel to the coordinator's enrolment port, for a machine that has no certificate yet.

    Only the coordinator proves its identity, by a certificate that the authority signed. authority_pem: the authority's root
    certificate.
    """
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority_pem), options=list(CHANNEL_OPTIONS))
