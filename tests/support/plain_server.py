"""A real gRPC server in plain text on loopback for a scripted FederationService."""

import contextlib
from collections.abc import AsyncIterator, Sequence

import grpc

from pluralllm.v1 import federation_pb2_grpc


@contextlib.asynccontextmanager
async def serving_scripted(
    service: federation_pb2_grpc.FederationServiceServicer,
    interceptors: Sequence["grpc.aio.ServerInterceptor"] = (),
) -> AsyncIterator[str]:
    """Serves the service until the block ends, and yields its address."""
    server = grpc.aio.server(interceptors=interceptors)
    federation_pb2_grpc.add_FederationServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
