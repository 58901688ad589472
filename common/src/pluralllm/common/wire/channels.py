"""gRPC channels to a coordinator: mutual TLS by a member's identity, or plain text on loopback."""

from collections.abc import Sequence

import grpc

from pluralllm.common.trust.identity import Identity
from pluralllm.common.wire.messages import CHANNEL_OPTIONS
from pluralllm.common.words.addresses import check_loopback

Options = Sequence[tuple[str, str | int]]


def credentials(identity: Identity) -> grpc.ChannelCredentials:
    """Both sides prove who they are (RFC 8446, section 4.4); the authority of the invite is the only one trusted."""
    return grpc.ssl_channel_credentials(identity.authority_pem, identity.key_pem, identity.chain_pem)


def secure_channel(identity: Identity, options: Options = ()) -> grpc.aio.Channel:
    return grpc.aio.secure_channel(
        identity.membership.coordinator, credentials(identity), options=[*CHANNEL_OPTIONS, *options]
    )


def plain_channel(address: str, options: Options = ()) -> grpc.aio.Channel:
    """Raises NotLoopback."""
    check_loopback(address)
    return grpc.aio.insecure_channel(address, options=[*CHANNEL_OPTIONS, *options])


def blocking_channel(identity: Identity) -> grpc.Channel:
    return grpc.secure_channel(identity.membership.coordinator, credentials(identity), options=list(CHANNEL_OPTIONS))


def blocking_plain_channel(address: str) -> grpc.Channel:
    """Raises NotLoopback."""
    check_loopback(address)
    return grpc.insecure_channel(address, options=list(CHANNEL_OPTIONS))


def enrolment_channel(address: str, authority_pem: bytes) -> grpc.Channel:
    """Only the coordinator proves who it is: for whoever has no certificate yet."""
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority_pem), options=list(CHANNEL_OPTIONS))
