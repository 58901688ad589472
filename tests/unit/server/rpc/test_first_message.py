"""Calls that send headers only: they end by themselves, and their number is bounded for each certificate."""

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from pluralllm.server.rpc import first_message
from pluralllm.server.rpc.first_message import FirstMessage

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"


class Health(grpc.GenericRpcHandler):
    """A service with a call that has one answer and a call that has two."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def one(request: bytes, context: Any) -> bytes:
            return b"one " + request

        async def many(request: bytes, context: Any) -> Any:
            yield b"first " + request
            yield b"second " + request

        if handler_call_details.method == CHECK:
            return grpc.unary_unary_rpc_method_handler(one)
        return grpc.unary_stream_rpc_method_handler(many)


async def test_a_call_without_a_message_ends_and_calls_with_one_are_answered() -> None:
    server = grpc.aio.server(interceptors=[FirstMessage(0.2)])
    server.add_generic_rpc_handlers((Health(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
            channel: Any = opened
            assert await channel.unary_unary(CHECK)(b"x", timeout=10) == b"one x"
            answers = [answer async for answer in channel.unary_stream(WATCH)(b"x", timeout=10)]
            assert answers == [b"first x", b"second x"]
            for calling in (channel.stream_unary(CHECK)(timeout=10), channel.stream_stream(WATCH)(timeout=10)):
                assert await calling.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert "no message came in 0.2 s" in (await calling.details() or "")
            empty = channel.stream_unary(CHECK)(iter([]), timeout=10)
            assert await empty.code() is grpc.StatusCode.INVALID_ARGUMENT
    finally:
        await server.stop(0)


async def test_calls_that_wait_are_counted_for_each_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_message, "MAX_WAITING", 2)

    class Refused(Exception):
        pass

    def context(certificate: bytes) -> Any:
        async def abort(code: Any, details: str, trailing_metadata: Any) -> None:
            raise Refused(details)

        return SimpleNamespace(auth_context=lambda: {"x509_pem_cert": [certificate]}, abort=abort)

    comes = asyncio.Event()

    async def late() -> Any:
        await comes.wait()
        yield health_pb2.HealthCheckRequest()

    waits = FirstMessage(10)
    waiting = [asyncio.create_task(waits._first(late(), context(b"ann"))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Refused, match="calls without a message"):
        await waits._first(late(), context(b"ann"))
    waiting.append(asyncio.create_task(waits._first(late(), context(b"ben"))))
    comes.set()
    await asyncio.gather(*waiting)
    await waits._first(late(), context(b"ann"))
    assert not waits._waiting
