"""The gRPC server: services, health and reflection on one loopback port."""

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from pluralllm.common.configuration import check_loopback
from pluralllm.common.errors import InUse
from pluralllm.common.wire import CHANNEL_OPTIONS, KEEPALIVE_TIME_MS
from pluralllm.server.boundary import ErrorBoundary
from pluralllm.server.config import ServerConfig
from pluralllm.server.federation import Federation
from pluralllm.server.operations import Operations
from pluralllm.v1 import federation_pb2, federation_pb2_grpc, operations_pb2, operations_pb2_grpc

SERVICES = (
    federation_pb2.DESCRIPTOR.services_by_name["FederationService"].full_name,
    operations_pb2.DESCRIPTOR.services_by_name["OperationsService"].full_name,
)
OPTIONS = (
    *CHANNEL_OPTIONS,
    ("grpc.so_reuseport", 0),  # or a second coordinator silently shares the port
    ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_TIME_MS // 2),  # the other half of the matched pair
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 256),  # on one connection
)


async def start_server(
    config: ServerConfig, federation: Federation, operations: Operations
) -> tuple[grpc.aio.Server, str]:
    """A serving server and its address host:port. Raises NotLoopback, InUse."""
    check_loopback(config.listen)
    server = grpc.aio.server(
        interceptors=[ErrorBoundary()], options=OPTIONS, maximum_concurrent_rpcs=config.max_concurrent_rpcs
    )
    federation_pb2_grpc.add_FederationServiceServicer_to_server(federation, server)
    operations_pb2_grpc.add_OperationsServiceServicer_to_server(operations, server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    for name in (*SERVICES, ""):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        port = server.add_insecure_port(config.listen)  # loopback only, checked above: certificates come with enrolment
    except RuntimeError as error:
        raise InUse(what=f"address {config.listen}", by="another process (or this machine does not have it)") from error
    await server.start()
    return server, f"{config.listen.rpartition(':')[0]}:{port}"
