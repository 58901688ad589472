"""A hostile coordinator: a real gRPC server in plain text on loopback that answers a client as a script says."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from support.fixed_data import FixedData

from pluralllm.client.daemon.daemon import Daemon
from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.joining.partner import load_partner
from pluralllm.client.link.transport import Transport
from pluralllm.client.process.config import ClientConfig
from pluralllm.common.wire.messages import timestamp
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.spec import GroupRole
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1 import federation_pb2_grpc


class EvilCoordinator(federation_pb2_grpc.FederationServiceServicer):
    """Answers each poll with the next answer of its script, and the last one for ever. It records the calls that come."""

    def __init__(self, polls: Sequence[pb.PollResponse], spec: pb.GetRunSpecResponse | None = None) -> None:
        self._polls = list(polls)
        self._spec = spec
        self.calls: list[str] = []
        self.polled = asyncio.Event()  # set when the whole script was played
        self.failed = asyncio.Event()  # set when the client has reported a failure

    async def Hello(self, request: pb.HelloRequest, context: Any) -> pb.HelloResponse:
        self.calls.append("Hello")
        return pb.HelloResponse(protocol=1, generation="0", server_time=timestamp(time.time()), limits=pb.Limits())

    async def Poll(self, request: pb.PollRequest, context: Any) -> pb.PollResponse:
        self.calls.append("Poll")
        if len(self._polls) > 1:
            return self._polls.pop(0)
        self.polled.set()
        return self._polls[0]

    async def GetRunSpec(self, request: pb.GetRunSpecRequest, context: Any) -> pb.GetRunSpecResponse:
        self.calls.append("GetRunSpec")
        return self._spec or pb.GetRunSpecResponse()

    async def GetManifest(self, request: pb.GetManifestRequest, context: Any) -> pb.GetManifestResponse:
        self.calls.append("GetManifest")
        return pb.GetManifestResponse()

    async def ReportFailure(self, request: pb.ReportFailureRequest, context: Any) -> pb.ReportFailureResponse:
        self.calls.append(f"ReportFailure {request.reason}")
        self.failed.set()
        return pb.ReportFailureResponse()


class IdleWorker:
    """Stands in for the worker process, because these tests are about tasks that must never reach it."""

    def __init__(self) -> None:
        self.orders: list[str] = []

    async def start(self) -> None:
        """Starts nothing."""

    async def stop(self) -> None:
        """Stops nothing."""

    async def ask(self, command: Any, *arguments: Any) -> Any:
        """Records an order, and never answers it."""
        self.orders.append(str(command))
        await asyncio.Event().wait()


def evil(polls: Sequence[pb.PollResponse], spec: pb.GetRunSpecResponse | None = None) -> EvilCoordinator:
    return EvilCoordinator(polls, spec)  # type: ignore[abstract]  # what is not here is UNIMPLEMENTED


@contextlib.asynccontextmanager
async def victim(folder: Path, address: str, policy: Policy | None = None) -> AsyncIterator[IdleWorker]:
    """Runs the daemon of the client ann in this process, with its state in folder/state. Yields its worker."""
    config = ClientConfig(
        data=folder / "answers.jsonl",
        state_dir=folder / "state",
        coordinator=address,
        client_id="ann",
        group="G",
        role=GroupRole.TRAIN,
        plain_text=True,
    )
    config.state_dir.mkdir(exist_ok=True)
    worker = IdleWorker()
    transport = Transport.in_plain_text(address, ClientId("ann"))
    daemon = Daemon(config, load_partner(config), policy or Policy(), FixedData(100), transport, worker)  # type: ignore[arg-type]
    stop = asyncio.Event()
    running = asyncio.create_task(daemon.run(stop))
    try:
        yield worker
        assert not running.done(), running
    finally:
        stop.set()
        await asyncio.gather(running, return_exceptions=True)
        await transport.close()
