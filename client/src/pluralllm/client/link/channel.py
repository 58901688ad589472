"""The connection to the coordinator at its own address, or to a standby coordinator when the first does not answer."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import structlog

from pluralllm.common.wire.chunk_messages import GET_CHUNKS, PUT_CHUNKS, chunk_reader
from pluralllm.v1 import enrolment_pb2_grpc, federation_pb2_grpc, operations_pb2_grpc
from pluralllm.v1 import federation_pb2 as pb

log = structlog.get_logger()

OpenChannel = Callable[[str], grpc.aio.Channel]  # takes an address
OLD_CHANNEL_GRACE_S = 900.0


class Connection:
    """A gRPC channel to one address at a time, and the calls that use it.

    A channel that was replaced is closed when the calls under way on it have ended.
    """

    def __init__(self, addresses: Sequence[str], open_channel: OpenChannel) -> None:
        self._addresses, self._open_channel, self._current = addresses, open_channel, 0
        self._closing: set[asyncio.Task[None]] = set()
        self._use(open_channel(self.address))

    @property
    def address(self) -> str:
        """The address that new calls go to."""
        return self._addresses[self._current]

    def open_with(self, open_channel: OpenChannel) -> None:
        """Opens a new channel with `open_channel` for all new calls: gRPC cannot change the certificate of an open channel."""
        self._open_channel = open_channel
        self._replace()

    def leave(self, failed: str) -> None:
        """Sends new calls to the next address after a failure at the address `failed`.

        Does nothing if new calls already go to another address, or if there is only one address.
        """
        if failed != self.address or len(self._addresses) == 1:
            return
        self._current = (self._current + 1) % len(self._addresses)
        log.info("client.turned", coordinator=self.address)
        self._replace()

    async def close(self) -> None:
        """Closes all channels at once, and ends the calls on them."""
        for closing in tuple(self._closing):
            closing.cancel()
        await self._channel.close()

    def _replace(self) -> None:
        closing = asyncio.create_task(self._channel.close(OLD_CHANNEL_GRACE_S))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._use(self._open_channel(self.address))

    def _use(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self.stub: Any = federation_pb2_grpc.FederationServiceStub(channel)
        self.operations: Any = operations_pb2_grpc.OperationsServiceStub(channel)
        self.get_chunks: Any = channel.unary_stream(
            GET_CHUNKS, pb.GetChunksRequest.SerializeToString, chunk_reader(pb.GetChunksResponse)
        )
        self.put_chunks: Any = channel.stream_unary(PUT_CHUNKS, None, pb.PutChunksResponse.FromString)
        self.enrolment: Any = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
