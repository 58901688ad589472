"""The composition root of the coordinator's process: the one place that knows all classes."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from pluralllm.common import __version__
from pluralllm.common.errors.tree import Overtaken, PluralError
from pluralllm.common.process.clock import Clock, SystemClock
from pluralllm.common.process.files import write_durably
from pluralllm.common.process.scrape_port import scrape_port
from pluralllm.common.process.supervisor import Supervisor
from pluralllm.common.process.tracing import tracing
from pluralllm.server.members.attempts import Attempts
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.authority import Authority, load_authority
from pluralllm.server.members.door import Door, EnrolmentDoor, by_certificate, by_word
from pluralllm.server.members.registry import Registry
from pluralllm.server.members.tls import server_credentials, tend_certificates, warn_of_uncovered
from pluralllm.server.observe.gauges import Picture, measure_lag
from pluralllm.server.observe.page import Page, showing
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.process.instruments import REGISTRY
from pluralllm.server.rpc.enrolment import Enrolment
from pluralllm.server.rpc.federation import Federation
from pluralllm.server.rpc.member_operations import Advertised, MemberOperations
from pluralllm.server.rpc.operations import Operations
from pluralllm.server.rpc.serving import bind_enrolment, bind_main, start_enrolment, start_main
from pluralllm.server.runs.coordinator import Coordinator, Timing
from pluralllm.server.runs.intake import Intake
from pluralllm.server.runs.reward_queue import RewardDesk
from pluralllm.server.runs.uploads import Uploads
from pluralllm.server.storage.by_url import blobs_of, database_url
from pluralllm.server.storage.leadership import Leadership, leading
from pluralllm.server.storage.sql_membership import SqlMembership
from pluralllm.server.storage.sql_store import open_store
from pluralllm.server.storage.state_directory import StateDirectory
from pluralllm.server.storage.timed_blobs import TimedBlobs

STOP_GRACE_S = 5.0
PLAIN_TEXT_CALLS = 10_000  # at a time: everybody who steers is one and the same there
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Running:
    """What serves, for whoever started it."""

    coordinator: Coordinator
    registry: Registry | None  # None in plain text
    address: str
    enrolment_address: str  # "" in plain text
    ended: "asyncio.Task[PluralError]"  # when it cannot serve any longer, why


@contextlib.asynccontextmanager
async def running(
    config: ServerConfig, clock: Clock, wall_s: Callable[[], float] = time.time
) -> AsyncIterator[Running]:
    """A serving coordinator, until the block ends: everything joined, nothing started twice.

    `wall_s` is what certificates are dated by; `clock` never jumps, and everything else goes by it.
    """
    async with contextlib.AsyncExitStack() as stack:
        state = stack.enter_context(StateDirectory(config.state_dir))
        authority = None if config.plain_text else load_authority(state.authority)
        url = database_url(config, state)
        leadership = await stack.enter_async_context(leading(url, wait=True))
        fail_stop = FailStop()
        store = await open_store(url, fail_stop)
        stack.push_async_callback(store.close)
        generation = await store.take_over()
        ended = asyncio.create_task(_until_ended(fail_stop, leadership, generation))
        stack.callback(ended.cancel)
        membership = SqlMembership(store)
        audit_log = AuditLog(membership, wall_s)
        await audit_log.start()
        blobs = TimedBlobs(blobs_of(config, state))
        coordinator = Coordinator(store, blobs, state.scratch, clock, timing_of(config), fail_stop)
        await coordinator.start()
        stack.push_async_callback(coordinator.stop)
        intake = Intake(coordinator, Uploads(state.uploads))
        stack.callback(asyncio.create_task(intake.tend()).cancel)
        desk = RewardDesk(coordinator, state.scratch, config.poll_hold_s)
        federation = Federation(coordinator, intake, desk, config.poll_hold_s, config.chunk_idle_s)
        if authority is None:
            server, address = bind_main(config, Door(by_word, audit_log, PLAIN_TEXT_CALLS), fail_stop, None)
            members = MemberOperations(coordinator, None, Advertised(address, ""))
            await start_main(server, federation, Operations(coordinator, audit_log, members, desk), None)
            stack.push_async_callback(server.stop, STOP_GRACE_S)
            found = Running(coordinator, None, address, "", ended)
        else:
            registry = Registry(membership, audit_log, authority, config.certificate_life_s, wall_s)
            await stack.enter_async_context(_tended(registry, coordinator, wall_s))
            joins, questions = (Attempts(config.joins_per_minute, 10 * config.joins_per_minute) for _ in range(2))
            enrolment = Enrolment(registry, joins, questions, wall_s)
            door = Door(by_certificate(registry), audit_log, config.calls_per_member)
            server, address = bind_main(config, door, fail_stop, server_credentials(authority, members_only=True))
            gate, gate_address = bind_enrolment(
                config, EnrolmentDoor(), fail_stop, server_credentials(authority, members_only=False)
            )
            told = advertised(config, authority, address, gate_address)
            warn_of_uncovered(authority, (told.coordinator, told.enrolment))
            members = MemberOperations(coordinator, registry, told)
            await start_main(server, federation, Operations(coordinator, audit_log, members, desk), enrolment)
            stack.push_async_callback(server.stop, STOP_GRACE_S)
            await start_enrolment(gate, enrolment)
            stack.push_async_callback(gate.stop, STOP_GRACE_S)
            write_durably(state.path / "enrolment-address", gate_address.encode())
            found = Running(coordinator, registry, address, gate_address, ended)
        await stack.enter_async_context(
            _watched(
                config,
                state,
                Picture(coordinator, found.registry, wall_s),
                Page(coordinator, audit_log, authority),
            )
        )
        stack.callback(coordinator.drain)
        write_durably(state.path / "address", address.encode())
        yield found


@contextlib.asynccontextmanager
async def _tended(registry: Registry, coordinator: Coordinator, wall_s: Callable[[], float]) -> AsyncIterator[None]:
    """The members as they are on record, and certificates renewed in time, until the block ends."""
    await registry.start()
    for name in registry.revoked():  # a crash may have come between a revocation and its effect
        await coordinator.remove_client(name)
    tending = asyncio.create_task(tend_certificates(registry, wall_s))
    try:
        yield
    finally:
        tending.cancel()


@contextlib.asynccontextmanager
async def _watched(config: ServerConfig, state: StateDirectory, picture: Picture, page: Page) -> AsyncIterator[None]:
    """What people and Prometheus look at, until the block ends."""
    async with _measured(config, state, picture), _shown(config, state, page):
        yield


@contextlib.asynccontextmanager
async def _shown(config: ServerConfig, state: StateDirectory, page: Page) -> AsyncIterator[None]:
    """The page for people, if there is to be one, until the block ends. Raises NotLoopback, InUse."""
    if config.page_listen is None:
        yield
        return
    async with showing(config.page_listen, page.app()) as address:
        write_durably(state.path / "page-address", address.encode())
        yield


@contextlib.asynccontextmanager
async def _measured(config: ServerConfig, state: StateDirectory, picture: Picture) -> AsyncIterator[None]:
    """The port of Prometheus, if there is to be one, and its figures kept new until the block ends. Raises InUse."""
    if config.metrics_listen is None:
        yield
        return
    with scrape_port(config.metrics_listen, REGISTRY) as address:
        write_durably(state.path / "metrics-address", address.encode())
        REGISTRY.register(picture)
        tasks = [asyncio.create_task(work) for work in (picture.watch(), measure_lag())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            REGISTRY.unregister(picture)


def timing_of(config: ServerConfig) -> Timing:
    return Timing(lease_s=config.lease_s, silence_s=config.silence_s, keep_updates=config.keep_updates)


async def _until_ended(fail_stop: FailStop, leadership: Leadership | None, generation: int) -> PluralError:
    """Another coordinator has taken over, or disk or database have failed."""
    ends: list[asyncio.Future[Any]] = [asyncio.ensure_future(fail_stop.stopped())]
    if leadership is not None:
        ends.append(asyncio.ensure_future(leadership.until_lost()))
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in ends:
            each.cancel()
    return fail_stop.why or Overtaken(generation=generation)


def advertised(config: ServerConfig, authority: Authority, address: str, enrolment_address: str) -> Advertised:
    """What invites name: the configuration's words, else the first host of init with the ports in use."""
    host = authority.hosts[0]
    host = f"[{host}]" if ":" in host else host
    return Advertised(
        config.advertise or f"{host}:{address.rpartition(':')[2]}",
        config.advertise_enrolment or f"{host}:{enrolment_address.rpartition(':')[2]}",
    )


async def serve(config: ServerConfig, supervisor: Supervisor) -> None:
    """Serves until SIGTERM or SIGINT. Raises Overtaken, DiskFailed or StoreFailed when this process can serve no longer."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(tracing(config.traces_endpoint, "pluralllm-server", str(config.state_dir)))
        stack.callback(asyncio.create_task(supervisor.reassure()).cancel)
        starting = asyncio.create_task(stack.enter_async_context(running(config, SystemClock())))
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # it stands by
            starting.cancel()
            await asyncio.wait([starting])
            return
        found = starting.result()
        log.info(
            "server.started",
            address=found.address,
            enrolment_address=found.enrolment_address,
            plain_text=config.plain_text,
            state_dir=str(config.state_dir),
            version=__version__,
        )
        supervisor.tell("READY=1", f"STATUS=serves at {found.address}")
        await asyncio.wait([stopping, found.ended], return_when=asyncio.FIRST_COMPLETED)
        supervisor.tell("STOPPING=1")
        log.info("server.stopping")
    log.info("server.stopped")
    if not stopping.done():
        raise found.ended.result()
