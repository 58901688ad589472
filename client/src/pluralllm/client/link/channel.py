"""The connection to the coordinator that serves: at its address, or at the standby's when it does not answer there."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import structlog

from pluralllm.common.wire.chunk_messages import GET_CHUNKS, PUT_CHUNKS, chunk_reader
from pluralllm.v1 import enrolment_pb2_grpc, federation_pb2_grpc
from pluralllm.v1 import federation_pb2 as pb

log = structlog.get_logger()

Opening = Callable[[str], grpc.aio.Channel]  # of an address
OLD_CHANNEL_GRACE_S = 900.0


class Line:
    """One channel at a time, with the calls on it. A channel that was replaced closes when the calls under way have ended."""

    def __init__(self, addresses: Sequence[str], opening: Opening) -> None:
        self._addresses, self._opening, self._place = addresses, opening, 0
        self._closing: set[asyncio.Task[None]] = set()
        self._take(opening(self.address))

    @property
    def address(self) -> str:
        """Where new calls go."""
        return self._addresses[self._place]

    def open_with(self, opening: Opening) -> None:
        """New calls go over a new channel: gRPC cannot change the certificate of one."""
        self._opening = opening
        self._replace()

    def turn(self, failed: str) -> None:
        """New calls go to the next address, unless they do already."""
        if failed != self.address or len(self._addresses) == 1:
            return
        self._place = (self._place + 1) % len(self._addresses)
        log.info("client.turned", coordinator=self.address)
        self._replace()

    async def close(self) -> None:
        for closing in tuple(self._closing):
            closing.cancel()
        await self._channel.close()

    def _replace(self) -> None:
        closing = asyncio.create_task(self._channel.close(OLD_CHANNEL_GRACE_S))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._take(self._opening(self.address))

    def _take(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self.stub: Any = federation_pb2_grpc.FederationServiceStub(channel)
        self.get_chunks: Any = channel.unary_stream(
            GET_CHUNKS, pb.GetChunksRequest.SerializeToString, chunk_reader(pb.GetChunksResponse)
        )
        self.put_chunks: Any = channel.stream_unary(PUT_CHUNKS, None, pb.PutChunksResponse.FromString)
        self.enrolment: Any = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
