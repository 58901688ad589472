"""Calls that send headers only: they end by themselves, and their number is bounded for each member."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from pluralllm.server.rpc import first_message
from pluralllm.server.rpc.first_message import HURRIED, PATIENT, STRICT_S, FirstMessage

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
LIMIT_S = 10.0
JOIN, ECHO = "/grpc.health.v1.Health/Join", "/grpc.health.v1.Health/Echo"


class Health(grpc.GenericRpcHandler):
    """A service with calls that have one message or many, and one answer or two."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def one(request: bytes, context: Any) -> bytes:
            return b"one " + request

        async def many(request: bytes, context: Any) -> Any:
            yield b"first " + request
            yield b"second " + request

        async def joined(requests: AsyncIterator[bytes], context: Any) -> bytes:
            return b" ".join([request async for request in requests])

        async def echoed(requests: AsyncIterator[bytes], context: Any) -> Any:
            async for request in requests:
                yield request

        if handler_call_details.method == JOIN:
            return grpc.stream_unary_rpc_method_handler(joined)
        if handler_call_details.method == ECHO:
            return grpc.stream_stream_rpc_method_handler(echoed)
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
            three = [b"a", b"b", b"c"]
            assert await channel.stream_unary(JOIN)(iter(three), timeout=10) == b"a b c"
            assert [answer async for answer in channel.stream_stream(ECHO)(iter(three), timeout=10)] == three
            unary, streams = [channel.stream_unary(name) for name in (CHECK, JOIN)], [WATCH, ECHO]
            silent = [*(call(timeout=10) for call in unary), *(channel.stream_stream(s)(timeout=10) for s in streams)]
            for calling in silent:
                assert await calling.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert "no message came in 0.2 s" in (await calling.details() or "")
            for name in (CHECK, JOIN):
                empty = channel.stream_unary(name)(iter([]), timeout=10)
                assert await empty.code() is grpc.StatusCode.INVALID_ARGUMENT
    finally:
        await server.stop(0)


async def test_a_method_with_large_messages_has_more_time() -> None:
    server = grpc.aio.server(interceptors=[FirstMessage(0.05, {JOIN: LIMIT_S})])
    server.add_generic_rpc_handlers((Health(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
            channel: Any = opened
            large, other = channel.stream_unary(JOIN)(timeout=LIMIT_S), channel.stream_stream(ECHO)(timeout=LIMIT_S)
            assert await other.code() is grpc.StatusCode.INVALID_ARGUMENT
            await large.write(b"late")
            await large.done_writing()
            assert await large == b"late"
    finally:
        await server.stop(0)


class Refused(Exception):
    pass


def context(member: str = "ann", serial: int = 1) -> Any:
    """Returns the context of a call whose certificate names this member."""

    async def abort(code: Any, details: str, trailing_metadata: Any) -> None:
        raise Refused(details)

    return SimpleNamespace(auth_context=lambda: {"x509_pem_cert": [f"{member} {serial}".encode()]}, abort=abort)


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads a test's certificates, which are a name and a serial."""
    monkeypatch.setattr(
        first_message, "read_known_certificate", lambda pem: SimpleNamespace(name=pem.decode().split()[0])
    )


class Calls:
    """Calls of members that have sent their headers; their messages come when `send` is called."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.interceptor = FirstMessage(LIMIT_S, now_s=lambda: self.now_s)
        self._comes = asyncio.Event()

    async def _late(self) -> Any:
        await self._comes.wait()
        yield "message"

    def call(self, about: Any = None) -> "asyncio.Task[Any]":
        return asyncio.create_task(self.interceptor._first(self._late(), about or context(), LIMIT_S))

    def send(self) -> None:
        self._comes.set()


async def outcomes(calling: "list[asyncio.Task[Any]]") -> list[str]:
    """Returns the message or the refusal of each call."""
    return [str(result) for result in await asyncio.gather(*calling, return_exceptions=True)]


async def test_many_calls_at_once_are_answered_if_their_messages_come_at_once() -> None:
    calls = Calls()
    waiting = [calls.call() for _ in range(PATIENT + HURRIED)]
    await asyncio.sleep(0)
    with pytest.raises(Refused, match="calls of ann without a message"):
        await calls.call()
    others = calls.call(context("ben"))
    calls.send()
    assert await outcomes([*waiting, others]) == ["message"] * (PATIENT + HURRIED + 1)
    assert await outcomes([calls.call() for _ in range(PATIENT + HURRIED)]) == ["message"] * (PATIENT + HURRIED)
    assert not calls.interceptor._waiting


async def test_a_member_whose_calls_let_the_moment_pass_keeps_a_few_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_message, "MOMENT_S", 0.02)
    calls = Calls()
    patient = [calls.call() for _ in range(PATIENT)]
    await asyncio.sleep(0)
    hurried = [calls.call() for _ in range(5)]
    assert all("no message came in 0.02 s" in text for text in await outcomes(hurried))
    again = await outcomes([calls.call(context("ann", serial)) for serial in range(5)])
    assert all("calls of ann without a message" in text for text in again), "whatever certificate of hers it uses"
    calls.send()
    assert await outcomes(patient) == ["message"] * PATIENT
    assert await outcomes([calls.call(context("ben")) for _ in range(9)]) == ["message"] * 9
    assert await outcomes([calls.call() for _ in range(PATIENT)]) == ["message"] * PATIENT


async def test_the_moment_is_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_message, "MOMENT_S", 0.02)
    calls = Calls()
    patient = [calls.call() for _ in range(PATIENT)]
    await asyncio.sleep(0)
    assert "no message came" in (await outcomes([calls.call()]))[0]
    calls.now_s += STRICT_S - 0.1
    assert "calls of ann without a message" in (await outcomes([calls.call()]))[0]
    calls.now_s += 0.2
    later = calls.call()
    await asyncio.sleep(0)
    calls.send()
    assert await outcomes([*patient, later]) == ["message"] * (PATIENT + 1)


async def test_callers_without_a_certificate_are_not_counted_together() -> None:
    calls = Calls()
    stranger = SimpleNamespace(auth_context=dict, abort=None)
    waiting = [calls.call(stranger) for _ in range(2 * HURRIED)]
    await asyncio.sleep(0)
    calls.send()
    assert set(await outcomes(waiting)) == {"message"}
