"""A door before a real coordinator that refuses calls as a script says: with errors of the tree, bare codes, or bad answers."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from pluralllm.common.errors.grpc_status import to_status
from pluralllm.common.errors.tree import PluralError

Handler = Any  # grpc.RpcMethodHandler
BAD_ANSWER = b"\xff\xff\xff"  # bytes that are no message
Refusal = PluralError | grpc.StatusCode | bytes  # an error of the coordinator, a bare status, or the bytes of an answer
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


@dataclass
class Refusals(grpc.aio.ServerInterceptor):
    """Refuses each next call of a method with the method's next refusal; afterwards the coordinator answers."""

    of: dict[str, list[Refusal]]  # by method
    refused: list[str] = field(default_factory=list)  # methods, in the order of their refusals

    @property
    def left(self) -> int:
        """The number of refusals that no call has got yet."""
        return sum(map(len, self.of.values()))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method = handler_call_details.method.rpartition("/")[2]
        handler = await continuation(handler_call_details)
        if not self.of.get(method):
            return handler
        refusal = self.of[method].pop(0)
        self.refused.append(method)

        async def answer(request: object, context: Any) -> bytes:
            del request
            if isinstance(refusal, bytes):
                return refusal
            if isinstance(refusal, PluralError):
                status = to_status(refusal)
                await context.abort(status.code, status.details, trailing_metadata=status.trailing_metadata)
            await context.abort(refusal, "a proxy")
            raise AssertionError

        async def answers(request: object, context: Any) -> Any:
            yield await answer(request, context)

        kind = next(kind for kind in KINDS if getattr(handler, kind) is not None)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(answers if kind.endswith("stream") else answer, handler.request_deserializer, lambda raw: raw)
