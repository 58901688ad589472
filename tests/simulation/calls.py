"""The coordinator's federation service without sockets: bytes in, bytes out, through the same handlers, boundary and door."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc

from pluralllm.common.wire.messages import CLIENT_ID_KEY
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.rpc.boundary import Boundary, Door
from pluralllm.server.rpc.federation import Federation
from pluralllm.v1 import federation_pb2_grpc

PREFIX = "/pluralllm.v1.FederationService/"
Handler = Any  # grpc.RpcMethodHandler; its type parameters differ for every method


class CallFailed(grpc.RpcError):
    """A failed call, as gRPC raises it at the client."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing_metadata: Sequence[tuple[str, bytes]]) -> None:
        super().__init__(details)
        self._code, self._details, self._trailing = code, details, trailing_metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailing


@dataclass(frozen=True, slots=True)
class CallContext:
    """The parts of a call's context that the boundary and the door use."""

    client: str

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ((CLIENT_ID_KEY, self.client),)

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    async def abort(
        self, code: grpc.StatusCode, details: str, trailing_metadata: Sequence[tuple[str, bytes]] = ()
    ) -> NoReturn:
        raise CallFailed(code, details, trailing_metadata)


@dataclass(slots=True)
class _Registered:
    """Receives a servicer's methods from the generated code, instead of a server."""

    handlers: dict[str, Handler] = field(default_factory=dict)

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        pass

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Handler]) -> None:
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}


@dataclass(frozen=True, slots=True)
class _Details:
    method: str
    invocation_metadata: tuple[tuple[str, str], ...] = ()


class Service:
    """The federation service of one coordinator."""

    def __init__(self, handlers: dict[str, Handler]) -> None:
        self._handlers = handlers

    @classmethod
    async def of(cls, federation: Federation, door: Door, fail_stop: FailStop) -> "Service":
        registered: Any = _Registered()
        federation_pb2_grpc.add_FederationServiceServicer_to_server(federation, registered)
        boundary, handlers = Boundary(door, fail_stop), {}
        for method, handler in registered.handlers.items():
            details: Any = _Details(method)
            handlers[method.removeprefix(PREFIX)] = await boundary.intercept_service(_answering(handler), details)
        return cls(handlers)

    async def answer(self, client: str, method: str, requests: Sequence[bytes]) -> list[bytes]:
        """Answers one call whose requests are complete. Raises CallFailed."""
        handler, context = self._handlers[method], CallContext(client)
        if handler.stream_unary is not None:
            messages = _stream(handler.request_deserializer, requests)
            return [handler.response_serializer(await handler.stream_unary(messages, context))]
        request = handler.request_deserializer(requests[0])
        if handler.unary_stream is not None:
            return [handler.response_serializer(answer) async for answer in handler.unary_stream(request, context)]
        return [handler.response_serializer(await handler.unary_unary(request, context))]


def _answering(handler: Handler) -> Callable[[object], Awaitable[Handler]]:
    async def continuation(details: object) -> Handler:
        return handler

    return continuation


async def _stream(read: Callable[[bytes], Any], requests: Sequence[bytes]) -> AsyncIterator[Any]:
    for raw in requests:
        yield read(raw)
