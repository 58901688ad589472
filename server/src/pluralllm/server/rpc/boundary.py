"""The wrapper around every RPC: it checks the caller, runs the handler and converts errors.

An exception of a class in common.errors.tree becomes a gRPC status. Any other exception becomes INTERNAL with an incident id.
"""

import inspect
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import grpc
import structlog

from pluralllm.common.errors.grpc_status import to_status
from pluralllm.common.errors.tree import Broken, Internal, PluralError
from pluralllm.common.wire.chunk_messages import PUT_CHUNKS, chunk_reader
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.process.instruments import note_call
from pluralllm.server.rpc.incoming import check_request, forgiving
from pluralllm.server.rpc.open_calls import OpenCalls
from pluralllm.v1 import federation_pb2 as pb

log = structlog.get_logger()

READERS: dict[str, Callable[[bytes], Any]] = {PUT_CHUNKS: chunk_reader(pb.PutChunksRequest)}  # instead of protobuf's

OK, UNKNOWN = "OK", "?"
Handler = Any  # grpc.RpcMethodHandler; its type parameters differ for every method


class Door(Protocol):
    """The check before every call: it decides whether the caller may make the call.

    MainDoor and EnrolmentDoor in members/door.py implement this protocol for the two ports.
    """

    def enter(self, method: str, context: Any, request: object) -> AbstractAsyncContextManager[Callable[[], None]]: ...


class Boundary(grpc.aio.ServerInterceptor):
    """The gRPC interceptor that wraps every handler: it checks the caller and converts the handler's errors.

    Callers do not see stack traces or texts of unknown exceptions. Callers get an incident id, and the log has the details under
    this id.
    """

    def __init__(
        self,
        door: Door,
        fail_stop: FailStop,
        unknown: Callable[[str], PluralError] | None = None,
        open_calls: OpenCalls | None = None,
    ) -> None:
        """Stores the arguments. unknown: the error for a method that this port does not have; None leaves gRPC's own answer.

        open_calls: counts and limits the open calls; None if the port needs no limit.
        """
        self._door, self._fail_stop, self._unknown = door, fail_stop, unknown
        self._open_calls = open_calls or OpenCalls(None)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None if self._unknown is None else self._refusing(self._unknown(method))
        serializers = {
            "request_deserializer": forgiving(method, READERS.get(method, handler.request_deserializer)),
            "response_serializer": _serializer(handler.response_serializer),
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._one(handler.unary_unary, method), **serializers)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(self._one(handler.stream_unary, method), **serializers)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._many(handler.unary_stream, method), **serializers)
        return grpc.stream_stream_rpc_method_handler(self._many(handler.stream_stream, method), **serializers)

    def _refusing(self, error: PluralError) -> Handler:
        """Returns a handler that answers calls of every kind with one error."""

        async def refuse(_: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            await self._abort(context, error, UNKNOWN)
            yield b""

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _one(self, inner: Callable[[Any, Any], Awaitable[Any]], method: str) -> Callable[[Any, Any], Awaitable[Any]]:
        async def answer(request: Any, context: Any) -> Any:
            try:
                self._check_alive()
                with self._open_calls.enter(method):
                    async with self._door.enter(method, context, request) as check:
                        response = await inner(_checked(request, check), context)
            except Exception as error:
                await self._abort(context, error, method)
                raise
            note_call(method, OK)
            return response

        return answer

    def _many(self, inner: Callable[[Any, Any], Any], method: str) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                self._check_alive()
                with self._open_calls.enter(method):
                    async with self._door.enter(method, context, request) as check:
                        answers = inner(_checked(request, check), context)
                        if inspect.isawaitable(answers):  # grpc's own health service writes to the context
                            await answers
                        else:
                            async for message in answers:
                                check()
                                yield message
            except Exception as error:
                await self._abort(context, error, method)
                raise
            note_call(method, OK)

        return answer

    def _check_alive(self) -> None:
        if self._fail_stop.why is not None:
            raise self._fail_stop.why

    async def _abort(self, context: Any, error: Exception, method: str) -> None:
        if isinstance(error, grpc.aio.AbortError | grpc.aio.BaseError):
            note_call(method, "Aborted")
            return
        error = self._fail_stop.disk_failure(error) or error
        if not isinstance(error, PluralError):
            incident = uuid.uuid4().hex[:12]
            log.exception("rpc.failed", method=method, incident=incident)
            error = Internal(incident=incident)
        elif isinstance(error, Broken):
            log.error("rpc.failed", method=method, reason=error.reason, problem=str(error))
        note_call(method, error.reason)
        status = to_status(error)
        await context.abort(status.code, status.details, trailing_metadata=status.trailing_metadata)


def _serializer(inner: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Wraps the serializer `inner` of an RPC's responses. The new serializer returns bytes unchanged.

    So a handler can serialize a message once and send the bytes to many clients.
    """
    return lambda answer: answer if isinstance(answer, bytes) else inner(answer)


def _checked(request: Any, check: Callable[[], None]) -> Any:
    """Checks a request and returns it. For a stream, returns a stream that checks each message when the message arrives.

    `check` raises an error if the caller may no longer make the call. The function uses `check` for the messages of a stream
    only, because a single request was checked before.
    """
    if not hasattr(request, "__aiter__"):
        check_request(request)
        return request

    async def messages() -> AsyncIterator[Any]:
        async for message in request:
            check()
            check_request(message)
            yield message

    return messages()
