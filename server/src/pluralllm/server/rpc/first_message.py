"""The wait for the first message of a call, which is limited in time and, for each member, in number.

gRPC counts a call as open when its headers arrive, and the door sees it when its message has arrived. Without a limit on the
time between, callers that send headers only would take all open calls that the server allows. A member may have a few such
calls. More of them get a moment, because many calls at once are no attack: each one is without its message for some
milliseconds. A member whose calls let that moment pass has only the few for a while.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc

from pluralllm.common.errors.grpc_status import to_status
from pluralllm.common.errors.tree import InvalidArgument, OverLimit, PluralError
from pluralllm.common.trust.certificates import read_known_certificate
from pluralllm.server.members.door import certificate_of

PATIENT = 4  # calls of one member that may wait for their message as long as the limit allows
HURRIED = 60  # more such calls, which may wait for MOMENT_S
MOMENT_S = 1.0
STRICT_S = 60.0  # time without hurried calls for a member that let a moment pass


class FirstMessage(grpc.aio.ServerInterceptor):
    """The outermost interceptor: it reads the first message of each call, and then hands the call to the next interceptor.

    It registers a call that has one message as a stream of requests, which looks the same on the wire.
    limit_s: the time in seconds for the message to arrive. longer_s: the times of methods with large messages, by method.
    """

    def __init__(
        self,
        limit_s: float,
        longer_s: Mapping[str, float] | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit_s, self._longer_s, self._now_s = limit_s, longer_s or {}, now_s
        self._waiting: Counter[str] = Counter()
        self._strict_until_s: dict[str, float] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        limit_s = self._longer_s.get(handler_call_details.method, self._limit_s)
        serializers = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }

        async def request_of(requests: AsyncIterator[Any], context: Any) -> Any:
            first = await self._first(requests, context, limit_s)
            return _continued(first, requests) if handler.request_streaming else first

        async def one(requests: AsyncIterator[Any], context: Any) -> Any:
            inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
            return await inner(await request_of(requests, context), context)

        async def many(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            async for answer in inner(await request_of(requests, context), context):
                yield answer

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(many, **serializers)
        return grpc.stream_unary_rpc_method_handler(one, **serializers)

    async def _first(self, requests: AsyncIterator[Any], context: Any, limit_s: float) -> Any:
        """Returns the first message of a call; ends the call if the message does not come in time."""
        try:
            return await self._awaited(requests, member_of(context), limit_s)
        except PluralError as error:
            status = to_status(error)
            await context.abort(status.code, status.details, trailing_metadata=status.trailing_metadata)

    async def _awaited(self, requests: AsyncIterator[Any], member: str | None, limit_s: float) -> Any:
        is_hurried = member is not None and self._waiting[member] >= PATIENT
        if member is not None and is_hurried:
            allowed = PATIENT + (HURRIED if self._now_s() >= self._strict_until_s.get(member, 0.0) else 0)
            if self._waiting[member] >= allowed:
                raise OverLimit(what=f"calls of {member} without a message", got=allowed + 1, limit=allowed)
            limit_s = min(limit_s, MOMENT_S)
        key = member or ""
        self._waiting[key] += 1
        try:
            async with asyncio.timeout(limit_s):
                return await anext(aiter(requests))
        except StopAsyncIteration:
            raise InvalidArgument(field="request", problem="has no message") from None
        except TimeoutError:
            if is_hurried:
                self._strict_until_s[key] = self._now_s() + STRICT_S
            raise InvalidArgument(field="request", problem=f"no message came in {limit_s:g} s") from None
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]


async def _continued(first: Any, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Yields the first message of a stream, which has been read, and then the other ones."""
    yield first
    async for message in requests:
        yield message


def member_of(context: Any) -> str | None:
    """Returns the name in the caller's certificate, which TLS has checked; None if the caller has none.

    All certificates of a member count together, also those that have been replaced.
    """
    pem = certificate_of(context)
    if pem is None:
        return None
    try:
        return read_known_certificate(pem).name
    except PluralError:
        return ""
