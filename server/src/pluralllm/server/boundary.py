"""The one wrapper around every RPC: errors of our tree become gRPC statuses, anything else an incident."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog

from pluralllm.common.errors import Broken, Internal, PluralError
from pluralllm.common.status import to_status

log = structlog.get_logger()

Handler = Any  # grpc.RpcMethodHandler; its type parameters differ for every method


class ErrorBoundary(grpc.aio.ServerInterceptor):
    """No stack trace and no text of an unknown exception reaches a caller; the log has both, under the incident's id."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return handler
        serializers = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(_one(handler.unary_unary, method), **serializers)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(_one(handler.stream_unary, method), **serializers)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(_many(handler.unary_stream, method), **serializers)
        return handler  # reflection only


def _one(inner: Callable[[Any, Any], Awaitable[Any]], method: str) -> Callable[[Any, Any], Awaitable[Any]]:
    async def answer(request: Any, context: Any) -> Any:
        try:
            return await inner(request, context)
        except Exception as error:
            await _abort(context, error, method)
            raise

    return answer


def _many(inner: Callable[[Any, Any], AsyncIterator[Any]], method: str) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for message in inner(request, context):
                yield message
        except Exception as error:
            await _abort(context, error, method)
            raise

    return answer


async def _abort(context: Any, error: Exception, method: str) -> None:
    if isinstance(error, grpc.aio.AbortError | grpc.aio.BaseError):
        return
    if not isinstance(error, PluralError):
        incident = uuid.uuid4().hex[:12]
        log.exception("rpc.failed", method=method, incident=incident)
        error = Internal(incident=incident)
    elif isinstance(error, Broken):
        log.error("rpc.failed", method=method, reason=error.reason, problem=str(error))
    status = to_status(error)
    await context.abort(status.code, status.details, trailing_metadata=status.trailing_metadata)
