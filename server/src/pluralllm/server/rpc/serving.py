"""The gRPC servers: members use the main port, and new members use the enrolment port."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from pluralllm.common.errors.tree import WrongPort
from pluralllm.common.process.listening import why_not_open
from pluralllm.common.process.pulse import Pulse
from pluralllm.common.text.printable import printable
from pluralllm.common.weights.chunks import CHUNK_BYTES
from pluralllm.common.weights.pieces import transfer_s
from pluralllm.common.wire.chunk_messages import PUT_CHUNKS
from pluralllm.common.wire.messages import (
    CHANNEL_OPTIONS,
    MAX_MESSAGE_BYTES,
    PATIENT_PING_EVERY_MS,
    PING_EVERY_MS,
    SERVER_PING_LIMIT_MS,
    pings,
)
from pluralllm.common.words.addresses import check_loopback, join_address, split_address
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.rpc.boundary import Boundary, Door
from pluralllm.server.rpc.enrolment import Enrolment
from pluralllm.server.rpc.federation import Federation
from pluralllm.server.rpc.first_message import FirstMessage
from pluralllm.server.rpc.open_calls import OpenCalls
from pluralllm.server.rpc.operations import Operations
from pluralllm.v1 import (
    enrolment_pb2,
    enrolment_pb2_grpc,
    federation_pb2,
    federation_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)

SERVICES = (
    federation_pb2.DESCRIPTOR.services_by_name["FederationService"].full_name,
    operations_pb2.DESCRIPTOR.services_by_name["OperationsService"].full_name,
    enrolment_pb2.DESCRIPTOR.services_by_name["EnrolmentService"].full_name,
)
OPTIONS = (
    *CHANNEL_OPTIONS,
    *pings(PATIENT_PING_EVERY_MS, SERVER_PING_LIMIT_MS),
    ("grpc.so_reuseport", 0),  # or a second coordinator silently shares the port
    ("grpc.http2.min_ping_interval_without_data_ms", PING_EVERY_MS // 2),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 256),  # on one connection
    # From TCP's handshake to the end of HTTP/2's. Mutual TLS over a link of 32 KiB/s with a delay of 0.7 s takes under 3 s.
    ("grpc.server_handshake_timeout_ms", 5_000),
    # A connection without a call is closed; a daemon always holds a poll. Operators' commands connect again by themselves.
    ("grpc.max_connection_idle_ms", 60_000),
)
CEILING = "grpc.max_allowed_incoming_connections"
ENROLMENT_MAX_BYTES = 16 * 1024  # a certificate request is less than one
ENROLMENT_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", ENROLMENT_MAX_BYTES),
    ("grpc.max_metadata_size", 4 * 1024),
    ("grpc.max_concurrent_streams", 1),
    # Everybody may connect here, and the ceiling of connections is low: each call comes on a connection of its own and takes
    # a moment, so nobody needs a connection for longer.
    ("grpc.max_connection_age_ms", 10_000),
    ("grpc.max_connection_age_grace_ms", 5_000),
    ("grpc.server_handshake_timeout_ms", 3_000),
    ("grpc.max_connection_idle_ms", 3_000),
)
HEALTH_EVERY_S = 1.0
MESSAGE_S = 30.0  # for the first message of a call on the main port
LARGE_MESSAGES_S = {  # time for the largest message on the slowest link, and for what stands before it
    "/pluralllm.v1.OperationsService/AskRewards": MESSAGE_S + transfer_s(MAX_MESSAGE_BYTES),
    PUT_CHUNKS: MESSAGE_S + transfer_s(CHUNK_BYTES),  # an earlier release sends whole chunks
}
ENROLMENT_MESSAGE_S = 5.0
MAX_RPC_CHARACTERS = 60
# Time for calls under way on a connection that has come of age. Long enough for a held poll and a chunk on the slowest link;
# an upload that is cut after it loses nothing, because only its missing chunks are sent again.
CONNECTION_GRACE_MS = 120_000


def bind_main(
    config: ServerConfig,
    door: Door,
    fail_stop: FailStop,
    credentials: grpc.ServerCredentials | None,
    max_connections: int,
) -> tuple[grpc.aio.Server, str]:
    """Creates the server of the main port but does not start it. Returns the server and its bound address (host:port).

    `door` is the check before every call. If `credentials` is None, the server uses plain text. `max_connections` is the number
    of connections above which the server closes a new one at once; connections whose handshake has not ended count, too.
    Raises NotLoopback if a plain-text address is no loopback address; InUse or InvalidArgument if the port cannot be opened.
    """
    age = (
        ("grpc.max_connection_age_ms", round(config.connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_MS),
    )
    server = grpc.aio.server(
        interceptors=[
            FirstMessage(MESSAGE_S, LARGE_MESSAGES_S),
            Boundary(door, fail_stop, open_calls=OpenCalls(config.max_concurrent_rpcs)),
        ],
        options=[*OPTIONS, *age, (CEILING, max_connections)],
        # gRPC counts every call, also one whose message has not come. The two limits in the configuration are checked first.
        maximum_concurrent_rpcs=2 * config.max_concurrent_rpcs + config.max_held_polls,
    )
    return server, _bind(server, config.listen, credentials)


def bind_enrolment(
    config: ServerConfig, door: Door, fail_stop: FailStop, credentials: grpc.ServerCredentials, max_connections: int
) -> tuple[grpc.aio.Server, str]:
    """Creates the server of the enrolment port but does not start it. Returns the server and its bound address (host:port).

    The server accepts only small messages and few calls at a time, and at most `max_connections` connections. `door` is the
    check before every call. Raises InUse or InvalidArgument if the port cannot be opened.
    """
    server = grpc.aio.server(
        interceptors=[FirstMessage(ENROLMENT_MESSAGE_S), Boundary(door, fail_stop, of_the_main_port)],
        options=[*ENROLMENT_OPTIONS, (CEILING, max_connections)],
        maximum_concurrent_rpcs=2 * max_connections,  # never reached: a connection has one call at a time
    )
    return server, _bind(server, config.enrolment_listen, credentials)


def of_the_main_port(method: str) -> WrongPort:
    """Returns the error for a call that has come to the enrolment port. method: path of the RPC, which the caller chooses."""
    rpc = printable(method.rpartition("/")[2][:MAX_RPC_CHARACTERS])
    problem = f"it is the enrolment port, which does not answer {rpc}"
    return WrongPort(address="this address", wanted="main port", problem=problem)


def _bind(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None) -> str:
    if credentials is None:  # --plain-text, which must never leave this machine
        check_loopback(listen)
    try:
        port = server.add_insecure_port(listen) if credentials is None else server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        raise why_not_open(listen) from error
    return join_address(split_address(listen)[0], port)


async def start_main(
    server: grpc.aio.Server,
    federation: Federation,
    operations: Operations,
    enrolment: Enrolment | None,
    pulse: Pulse,
) -> Callable[[], Coroutine[None, None, None]]:
    """Registers the services and starts the server of the main port.

    `enrolment` is None if the server uses no certificates. Returns the work that keeps the health service true to `pulse`; the
    caller runs it in the background.
    """
    federation_pb2_grpc.add_FederationServiceServicer_to_server(federation, server)
    operations_pb2_grpc.add_OperationsServiceServicer_to_server(operations, server)
    if enrolment is not None:
        enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(enrolment, server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    await _show_health(checks, is_alive=True)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    await server.start()
    return partial(_tend_health, checks, pulse)


async def _tend_health(checks: health.aio.HealthServicer, pulse: Pulse) -> None:
    """Lets the health service answer NOT_SERVING while the coordinator's loop stands still."""
    was_alive = True
    while True:
        if (is_alive := pulse.is_alive) is not was_alive:
            await _show_health(checks, is_alive=is_alive)
            was_alive = is_alive
        await asyncio.sleep(HEALTH_EVERY_S)


async def _show_health(checks: health.aio.HealthServicer, *, is_alive: bool) -> None:
    status = health_pb2.HealthCheckResponse
    for name in (*SERVICES, ""):
        await checks.set(name, status.SERVING if is_alive else status.NOT_SERVING)


async def start_enrolment(server: grpc.aio.Server, enrolment: Enrolment) -> None:
    """Registers EnrolmentService and starts the server of the enrolment port."""
    enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(enrolment, server)
    await server.start()
