"""The wait for the message of a call, which is limited in time and, for each certificate, in number.

gRPC counts a call as open when its headers arrive, and the door sees it when its message has arrived. Without a limit on the
time between, callers that send headers only would take all open calls that the server allows.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from pluralllm.common.errors.grpc_status import to_status
from pluralllm.common.errors.tree import InvalidArgument, OverLimit, PluralError
from pluralllm.server.members.door import certificate_of

MAX_WAITING = 256  # calls of one certificate whose message has not arrived


class FirstMessage(grpc.aio.ServerInterceptor):
    """The outermost interceptor: it reads the one message of each call that has one, and hands it to the next interceptor.

    It registers such a call as a stream of requests, which looks the same on the wire.
    limit_s: the time in seconds for the message to arrive.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._waiting: Counter[bytes] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        serializers = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }

        async def one(requests: AsyncIterator[Any], context: Any) -> Any:
            return await handler.unary_unary(await self._first(requests, context), context)

        async def many(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            async for answer in handler.unary_stream(await self._first(requests, context), context):
                yield answer

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(many, **serializers)
        return grpc.stream_unary_rpc_method_handler(one, **serializers)

    async def _first(self, requests: AsyncIterator[Any], context: Any) -> Any:
        """Returns the first message of a call; ends the call if the message does not come in time."""
        try:
            return await self._awaited(requests, certificate_of(context))
        except PluralError as error:
            status = to_status(error)
            await context.abort(status.code, status.details, trailing_metadata=status.trailing_metadata)

    async def _awaited(self, requests: AsyncIterator[Any], certificate: bytes | None) -> Any:
        if certificate is not None and self._waiting[certificate] >= MAX_WAITING:
            raise OverLimit(what="calls without a message", got=MAX_WAITING + 1, limit=MAX_WAITING)
        key = certificate or b""
        self._waiting[key] += 1
        try:
            async with asyncio.timeout(self._limit_s):
                return await anext(aiter(requests))
        except StopAsyncIteration:
            raise InvalidArgument(field="request", problem="has no message") from None
        except TimeoutError:
            raise InvalidArgument(field="request", problem=f"no message came in {self._limit_s:g} s") from None
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
