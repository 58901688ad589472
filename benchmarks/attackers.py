"""The attackers of hostile_load.py: members that misuse the main port, and strangers that have no certificate.

Every attack reports when it has begun, goes on until it is told that the measurement is over, and returns how often each
result happened.
"""

import asyncio
import contextlib
import os
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import grpc

from pluralllm.common.trust.certificates import make_request, new_key
from pluralllm.common.trust.identity import Identity
from pluralllm.common.wire.channels import credentials
from pluralllm.common.wire.messages import PROTOCOL_MAX, PROTOCOL_MIN
from pluralllm.common.words.addresses import split_address
from pluralllm.v1 import enrolment_pb2, resources_pb2
from pluralllm.v1 import federation_pb2 as fed

CONNECTIONS = 6_000
START_LIMIT_S = 60.0  # then an attack begins to be measured, even if some connections were never accepted
AGAIN_S = 1.0  # a connection that the coordinator closed is opened again after this time
STRANGERS = 11
SERVICE = "/pluralllm.v1.FederationService"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(
    [0, 0, 0, 4, 0, 0, 0, 0, 0]
)  # RFC 9113, section 3.4, with empty SETTINGS


class Stage:
    """The time of an attack: it begins when all its parts have begun, and it is over when the event `over` is set.

    begun: is called when the attack has begun.
    """

    def __init__(self, parts: int, begun: Callable[[], None]) -> None:
        self._waiting, self._begun = parts, begun
        self.over = asyncio.Event()

    def ready(self) -> None:
        """Reports that a part of the attack has begun."""
        self._waiting -= 1
        if self._waiting == 0:
            self._begun()


Attack = Callable[[list[Identity], Stage], Coroutine[Any, Any, Counter[str]]]


# Members


def channel(identity: Identity) -> grpc.aio.Channel:
    unlimited = [("grpc.max_send_message_length", -1)]
    return grpc.aio.secure_channel(identity.membership.coordinator, credentials(identity), options=unlimited)


def outcome(error: grpc.aio.AioRpcError) -> str:
    """Returns the status and the first sentence of an error, without names and numbers, so that equal errors count together."""
    sentence = re.split(r"[.;(]\s", error.details() or "")[0].strip()
    return f"{error.code().name}: {re.sub(r'attacker-[0-9]+', 'a member', sentence)}"


def call(there: grpc.aio.Channel, kind: str, method: str) -> Any:
    """Returns the RPC `method` as a callable that takes and returns bytes, so that a caller can send any bytes.

    kind: the kind of gRPC call on the channel, such as unary_unary.
    """
    return getattr(there, kind)(method)


async def repeat(rpc: Callable[[], Any], over: asyncio.Event) -> Counter[str]:
    """Makes a call again and again, each as soon as the one before has ended, until `over` is set; counts the results."""
    seen: Counter[str] = Counter()
    while not over.is_set():
        try:
            await rpc()
        except grpc.aio.AioRpcError as error:
            seen[outcome(error)] += 1
        else:
            seen["OK"] += 1
    return seen


def total(counts: Sequence[Counter[str]]) -> Counter[str]:
    return sum(counts, start=Counter())


async def oversize_messages(members: list[Identity], stage: Stage) -> Counter[str]:
    """Sends 5 MiB messages from every member; each sends the next message when the coordinator has refused the last."""
    message = bytes(5 * 1024**2)

    async def one(identity: Identity) -> Counter[str]:
        async with channel(identity) as there:
            rpc = call(there, "unary_unary", f"{SERVICE}/BeginUpdate")
            return await repeat(lambda: rpc(message, timeout=10), stage.over)

    stage.ready()
    return total(await asyncio.gather(*(one(member) for member in members)))


async def gzip_bomb(members: list[Identity], stage: Stage) -> Counter[str]:
    """Sends gzip-compressed messages that each expand to 512 MiB of zeros, one after the other."""
    zeros = bytes(512 * 1024**2)
    async with channel(members[0]) as there:
        stage.ready()
        rpc = call(there, "unary_unary", f"{SERVICE}/BeginUpdate")
        return await repeat(lambda: rpc(zeros, timeout=60, compression=grpc.Compression.Gzip), stage.over)


async def stalled_uploads(members: list[Identity], stage: Stage) -> Counter[str]:
    """Opens 200 upload streams that send nothing, and waits until the coordinator has ended them."""
    seen: Counter[str] = Counter()

    async def silence() -> AsyncIterator[bytes]:
        await asyncio.sleep(3600)
        yield b""

    async def one(there: grpc.aio.Channel) -> None:
        try:
            await call(there, "stream_unary", f"{SERVICE}/PutChunks")(silence(), timeout=60)
        except grpc.aio.AioRpcError as error:
            seen[outcome(error)] += 1

    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(channel(member)) for member in members[:4]]
        streams = [asyncio.create_task(one(there)) for there in channels for _ in range(50)]
        stage.ready()
        await asyncio.wait(streams, timeout=60)
    return seen


async def hello_flood(members: list[Identity], stage: Stage) -> Counter[str]:
    """Registers every member again and again: ten calls at a time from each, as fast as the coordinator answers.

    A registration of another version of the software writes to the database; that is why this call and no other.
    """
    connected: list[Identity] = []

    async def one(identity: Identity) -> Counter[str]:
        def hello() -> bytes:
            return fed.HelloRequest(
                protocol=fed.ProtocolRange(min=PROTOCOL_MIN, max=PROTOCOL_MAX),
                software_version=f"flood {os.urandom(4).hex()}",
                instance_id="flood",
                group=identity.membership.group,
                role=resources_pb2.GROUP_ROLE_TRAIN,
                training_questions=50,
            ).SerializeToString()

        async with channel(identity) as there:
            await there.channel_ready()
            connected.append(identity)
            if len(connected) == len(members):
                stage.ready()
            rpc = call(there, "unary_unary", f"{SERVICE}/Hello")
            return total(
                await asyncio.gather(*(repeat(lambda: rpc(hello(), timeout=10), stage.over) for _ in range(10)))
            )

    return total(await asyncio.gather(*(one(member) for member in members)))


async def idle_connections(members: list[Identity], stage: Stage) -> Counter[str]:
    """Holds connections with mutual TLS and HTTP/2 with the members' certificates, and makes no call on them."""
    return await hold_connections(stage, members[0].membership.coordinator, [tls_context(one) for one in members])


def tls_context(identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=identity.authority_pem.decode())
    context.load_cert_chain(identity.credentials)
    context.set_alpn_protocols(["h2"])
    return context


# Strangers


async def silent_connections(members: list[Identity], stage: Stage) -> Counter[str]:
    """Holds TCP connections to the main port, on which no TLS handshake begins."""
    return await hold_connections(stage, members[0].membership.coordinator, [None])


async def silent_at_enrolment(members: list[Identity], stage: Stage) -> Counter[str]:
    """Holds TCP connections to the enrolment port, on which no TLS handshake begins."""
    return await hold_connections(stage, members[0].membership.enrolment, [None])


async def hold_connections(stage: Stage, address: str, contexts: Sequence[ssl.SSLContext | None]) -> Counter[str]:
    """Holds CONNECTIONS connections to an address (host:port). One that the coordinator closes is opened again after AGAIN_S.

    contexts: for the TLS handshake of the connections in turn; None for a connection without a handshake.
    """
    host, port = split_address(address)
    seen: Counter[str] = Counter()
    begun: set[int] = set()  # numbers of the connections that were opened, or refused, once at least
    all_begun = asyncio.Event()
    open_now: set[int] = set()

    async def hold(number: int, context: ssl.SSLContext | None) -> None:
        """Opens a connection, and returns when the coordinator has closed it."""
        try:
            name = host if context else None
            reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
        finally:
            begun.add(number)
            if len(begun) == CONNECTIONS:
                all_begun.set()
        open_now.add(number)
        try:
            if context:
                writer.write(PREFACE)
            while await reader.read(4096):
                pass
        finally:
            open_now.remove(number)
            writer.transport.abort()

    async def one(number: int) -> None:
        while True:
            with contextlib.suppress(OSError, EOFError):
                await hold(number, contexts[number % len(contexts)])
            seen["closed by the coordinator"] += 1
            await asyncio.sleep(AGAIN_S)

    holders = [asyncio.create_task(one(number)) for number in range(CONNECTIONS)]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(all_begun.wait(), START_LIMIT_S)
    stage.ready()
    await stage.over.wait()
    seen["open at the end"] = len(open_now)
    for holder in holders:
        holder.cancel()
    await asyncio.wait(holders)
    return seen


async def guesses(members: list[Identity], stage: Stage) -> Counter[str]:
    """Guesses tokens at the enrolment port from eleven network addresses, as fast as the coordinator refuses them."""
    enrolment, authority_pem = members[0].membership.enrolment, members[0].authority_pem
    host, _ = split_address(enrolment)
    wish = make_request(new_key(), "somebody")

    async def one(number: int) -> Counter[str]:
        def guess() -> bytes:
            return enrolment_pb2.JoinRequest(
                name="somebody", token=os.urandom(32).hex(), certificate_request_der=wish
            ).SerializeToString()

        async with forwarded(enrolment, f"127.0.1.{number + 1}") as port:
            trust = grpc.ssl_channel_credentials(authority_pem)
            async with grpc.aio.secure_channel(f"{host}:{port}", trust) as there:
                rpc = call(there, "unary_unary", "/pluralllm.v1.EnrolmentService/Join")
                return await repeat(lambda: rpc(guess(), timeout=10), stage.over)

    stage.ready()
    return total(await asyncio.gather(*(one(number) for number in range(STRANGERS))))


@contextlib.asynccontextmanager
async def forwarded(address: str, source: str) -> AsyncIterator[int]:
    """Forwards TCP connections to an address (host:port) so that they come from the network address `source`.

    Yields the local port to connect to. gRPC itself cannot choose the address that it calls from.
    """
    host, port = split_address(address)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(host, port, local_addr=(source, 0))
        except OSError:
            writer.close()
            return
        with contextlib.suppress(asyncio.CancelledError):  # the attack is over, and nothing waits for this task
            await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))

    async with await asyncio.start_server(forward, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def together(members: list[Identity], stage: Stage) -> Counter[str]:
    """Floods with registrations, holds connections to the main port and guesses tokens, all at the same time."""
    connected = asyncio.Event()
    callers = Stage(2, connected.set)
    callers.over = stage.over
    calling = asyncio.gather(hello_flood(members, callers), guesses(members, callers))
    await connected.wait()
    return total([await silent_connections(members, stage), *await calling])


ATTACKS: dict[str, Attack] = {
    "5 MiB messages": oversize_messages,
    "512 MiB gzip bombs": gzip_bomb,
    "200 stalled uploads": stalled_uploads,
    "Hello flood": hello_flood,
    f"{CONNECTIONS:,} idle mTLS connections": idle_connections,
    f"{CONNECTIONS:,} TCP connections, no handshake": silent_connections,
    f"{CONNECTIONS:,} of them at the enrolment port": silent_at_enrolment,
    f"{STRANGERS} strangers guess tokens": guesses,
    "the flood, the guesses and 6,000 TCP": together,
}
