"""The composition root of the coordinator's process: the only module that knows all classes and connects their objects."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

import structlog

from pluralllm.common import __version__
from pluralllm.common.errors.tree import Overtaken
from pluralllm.common.process.clock import Clock, SystemClock
from pluralllm.common.process.files import write_durably
from pluralllm.common.process.lifetime import STOP_SIGNALS, ignore_stop_signals
from pluralllm.common.process.pulse import Pulse
from pluralllm.common.process.scrape_port import scrape_port
from pluralllm.common.process.supervisor import Supervisor
from pluralllm.common.process.tracing import tracing
from pluralllm.common.process.watched_tasks import WatchedTasks
from pluralllm.common.trust.record_signatures import RecordSigner
from pluralllm.common.words.addresses import Addresses, join_address, split_address
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.authority import LOOPBACK_NAMES, Authority, load_authority
from pluralllm.server.members.door import EnrolmentDoor, MainDoor, by_certificate, by_word
from pluralllm.server.members.page_links import PageLinks
from pluralllm.server.members.possible_clients import possible_clients
from pluralllm.server.members.rates import Rates, rates_of_members
from pluralllm.server.members.record_key import record_key_of
from pluralllm.server.members.registry import Registry
from pluralllm.server.members.roster_log import RosterLog
from pluralllm.server.members.tls import server_credentials, tend_certificates, warn_of_uncovered
from pluralllm.server.observe.gauges import Gauges, measure_lag
from pluralllm.server.observe.page import Page, showing
from pluralllm.server.observe.page_door import LoopbackDoor, MembersDoor, hosts_of
from pluralllm.server.observe.page_tls import PageTls
from pluralllm.server.process import open_files
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.process.instruments import LOOP_AGE_SECONDS, REGISTRY
from pluralllm.server.process.open_files import Ceilings
from pluralllm.server.rpc.enrolment import Enrolment
from pluralllm.server.rpc.federation import Federation
from pluralllm.server.rpc.member_operations import MemberOperations
from pluralllm.server.rpc.operations import Operations
from pluralllm.server.rpc.polling import Polls
from pluralllm.server.rpc.serving import bind_enrolment, bind_main, start_enrolment, start_main
from pluralllm.server.rpc.signatures import Signatures
from pluralllm.server.runs.assembly import Assembly
from pluralllm.server.runs.coordinator import Timing
from pluralllm.server.runs.uploads import Uploads
from pluralllm.server.storage.by_url import blobs_of, database_url
from pluralllm.server.storage.leadership import Leadership, leading
from pluralllm.server.storage.sql_membership import SqlMembership
from pluralllm.server.storage.sql_store import open_store
from pluralllm.server.storage.state_directory import StateDirectory
from pluralllm.server.storage.timed_blobs import TimedBlobs

STOP_GRACE_S = 5.0
PLAIN_TEXT_CALLS = 10_000  # at a time: all operators count as one member there
START_BEAT_S = 1.0
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Running:
    """A running coordinator: its objects, and the addresses on which it serves. The function `running` yields it."""

    parts: Assembly
    registry: Registry | None  # None in plain text
    address: str
    enrolment_address: str  # "" in plain text
    fail_stop: FailStop  # has the reason when the coordinator can serve no longer


@contextlib.asynccontextmanager
async def running(
    config: ServerConfig, clock: Clock, wall_s: Callable[[], float] = time.time, pulse: Pulse | None = None
) -> AsyncIterator[Running]:
    """Starts a coordinator, yields it, and serves until the caller's `with` block ends.

    If another coordinator serves from the same database, the function waits as a standby until it may serve. `wall_s` returns
    the time of day for certificates, gauges and the audit log. All other code uses `clock`, which never jumps. The coordinator's
    loop beats `pulse`.
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
        membership = SqlMembership(store)
        audit_log = AuditLog(membership, wall_s)
        await audit_log.start()
        registry = None
        if authority is not None:
            registry = Registry(membership, audit_log, authority, config.certificate_life_s, wall_s)
        links = PageLinks(clock.now_s)
        roster = RosterLog(membership, audit_log) if registry is None else registry.roster
        parts = Assembly(
            store,
            TimedBlobs(blobs_of(config, state)),
            clock,
            fail_stop,
            timing_of(config),
            scratch=state.scratch,
            uploads=Uploads(state.uploads),
            poll_hold_s=config.poll_hold_s,
            pulse=pulse,
            federation="" if authority is None else authority.federation,
            peer_keys=roster,
            possible=None if registry is None else partial(possible_clients, registry),
        )
        stack.push_async_callback(parts.tasks.stop)
        if leadership is not None:
            parts.tasks.keep("the check of the lead", partial(_keep_lead, leadership, fail_stop, generation))
        await parts.coordinator.start()
        parts.tasks.keep("the clearing of uploads", parts.intake.tend)
        if authority is None or registry is None:
            await roster.start()
            address, enrolment_address = await _serve_plain(stack, config, parts, audit_log, fail_stop, roster, links)
        else:
            await _tend_members(registry, parts, wall_s)
            rates = rates_of_members(config.calls_per_second, config.hellos_per_minute, config.certificate_life_s)
            ports = Ports(config, parts, audit_log, fail_stop, authority, registry, wall_s, links, rates)
            address, enrolment_address = await _serve_members(stack, ports)
            write_durably(state.path / "enrolment-address", enrolment_address.encode())
        await stack.enter_async_context(_measured(config, state, parts, registry, wall_s))
        page = page_of(parts, audit_log, authority)
        await stack.enter_async_context(_shown(config, state, parts.tasks, page))
        if authority is not None and registry is not None:
            await stack.enter_async_context(_shown_to_members(ports, state, page))
        stack.callback(parts.coordinator.drain)
        write_durably(state.path / "address", address.encode())
        yield Running(parts, registry, address, enrolment_address, fail_stop)


@dataclass(frozen=True, slots=True)
class Ports:
    """The arguments of `_serve_members` and `_shown_to_members`, which serve calls and the page to members with certificates."""

    config: ServerConfig
    parts: Assembly
    audit_log: AuditLog
    fail_stop: FailStop
    authority: Authority
    registry: Registry
    wall_s: Callable[[], float]
    links: PageLinks
    rates: Rates


async def _serve_plain(
    stack: contextlib.AsyncExitStack,
    config: ServerConfig,
    parts: Assembly,
    audit_log: AuditLog,
    fail_stop: FailStop,
    roster: RosterLog,
    links: PageLinks,
) -> tuple[str, str]:
    """Serves without certificates on one loopback port until `stack` closes.

    Returns the port's address and an empty text. The empty text replaces the address of the enrolment port, because this port
    does not exist without certificates.
    """
    room = connection_room(config)
    server, address = bind_main(config, MainDoor(by_word, audit_log, PLAIN_TEXT_CALLS), fail_stop, None, room.main)
    signatures = Signatures(lambda: audit_log.head, None)
    operations = operations_of(parts, audit_log, None, roster, Addresses(address, ""), signatures, links)
    federation = federation_of(
        parts, config.poll_hold_s, config.chunk_idle_s, signatures, roster, max_held_polls=config.max_held_polls
    )
    parts.tasks.keep("the health service", await start_main(server, federation, operations, None, parts.pulse))
    stack.push_async_callback(server.stop, STOP_GRACE_S)
    return address, ""


async def _serve_members(stack: contextlib.AsyncExitStack, ports: Ports) -> tuple[str, str]:
    """Serves with certificates on the main port and on the enrolment port until `stack` closes.

    Returns the address of the main port and the address of the enrolment port.
    """
    config, authority, fail_stop = ports.config, ports.authority, ports.fail_stop
    door = MainDoor(by_certificate(ports.registry), ports.audit_log, config.calls_per_member, ports.rates)
    room = connection_room(config)
    server, address = bind_main(config, door, fail_stop, server_credentials(authority, members_only=True), room.main)
    credentials = server_credentials(authority, members_only=False)
    enrolment_server, enrolment_address = bind_enrolment(
        config, EnrolmentDoor(), fail_stop, credentials, room.enrolment
    )
    invited_to = advertised(config, authority, address, enrolment_address)
    enrolment = Enrolment(ports.registry, ports.audit_log, config.joins_per_minute, ports.wall_s, invited_to)
    warn_of_uncovered(authority, (invited_to.coordinator, invited_to.enrolment))
    signer = RecordSigner(authority.federation, record_key_of(authority.folder))
    signatures = Signatures(lambda: ports.audit_log.head, signer)
    roster = ports.registry.roster
    operations = operations_of(
        ports.parts, ports.audit_log, ports.registry, roster, invited_to, signatures, ports.links
    )
    federation = federation_of(
        ports.parts, config.poll_hold_s, config.chunk_idle_s, signatures, roster, invited_to, config.max_held_polls
    )
    tend_health = await start_main(server, federation, operations, enrolment, ports.parts.pulse)
    ports.parts.tasks.keep("the health service", tend_health)
    stack.push_async_callback(server.stop, STOP_GRACE_S)
    await start_enrolment(enrolment_server, enrolment)
    stack.push_async_callback(enrolment_server.stop, STOP_GRACE_S)
    return address, enrolment_address


def connection_room(config: ServerConfig) -> Ceilings:
    """Returns the largest numbers of connections on the two ports. Logs a warning if the limit of open files is low."""
    limit = open_files.limit()
    room = open_files.ceilings(limit, config.max_connections)
    if limit < open_files.COMFORTABLE:
        log.warning("server.few_open_files", limit=limit, connections=room.main, joining=room.enrolment)
    return room


def federation_of(
    parts: Assembly,
    poll_hold_s: float,
    chunk_idle_s: float,
    signatures: Signatures,
    roster: RosterLog,
    addresses: Addresses | None = None,
    max_held_polls: int = 16_384,
) -> Federation:
    """Makes the service for clients from the objects in `parts`.

    poll_hold_s: the longest time in seconds that a poll stays open. chunk_idle_s: the longest wait in seconds for the next chunk
    of an upload. signatures: signs version records and the audit log's head. roster: the members' peer keys. addresses: the
    addresses that clients learn; None in plain text. max_held_polls: the largest number of polls that are held at the same time.
    """
    polls = Polls(
        coordinator=parts.coordinator,
        runs=parts.runs,
        sessions=parts.sessions,
        leases=parts.leases,
        client_bells=parts.client_bells,
        clock=parts.clock,
        generation=parts.generation,
        hold_s=poll_hold_s,
        max_held=max_held_polls,
        signatures=signatures,
    )
    return Federation(
        coordinator=parts.coordinator,
        polls=polls,
        intake=parts.intake,
        round_steps=parts.round_steps,
        round_files=parts.round_files,
        rewards=parts.rewards,
        models=parts.models,
        runs=parts.runs,
        sessions=parts.sessions,
        leases=parts.leases,
        clock=parts.clock,
        traffic=parts.traffic,
        chunk_idle_s=chunk_idle_s,
        signatures=signatures,
        roster=roster,
        addresses=addresses,
        questions=parts.questions,
    )


def operations_of(
    parts: Assembly,
    audit_log: AuditLog,
    registry: Registry | None,
    roster: RosterLog,
    invited_to: Addresses,
    signatures: Signatures,
    links: PageLinks,
) -> Operations:
    """Makes the service for administrators and observers from the objects in `parts`.

    `registry`, the registry of members, is None if the server uses no certificates. invited_to: the addresses that the server
    writes into invites. signatures: signs the audit log's head. links: the links to the web page.
    """
    members = MemberOperations(
        coordinator=parts.coordinator,
        registry=registry,
        roster=roster,
        advertised=invited_to,
        store=parts.store,
        sessions=parts.sessions,
        leases=parts.leases,
        clock=parts.clock,
        signatures=signatures,
        links=links,
    )
    return Operations(
        coordinator=parts.coordinator,
        runs=parts.runs,
        status=parts.status,
        evaluations=parts.evaluations,
        sums=parts.sums,
        store=parts.store,
        models=parts.models,
        rewards=parts.rewards,
        members=members,
        audit=audit_log,
        clock=parts.clock,
        run_bell=parts.run_bell,
        signatures=signatures,
    )


def gauges_of(parts: Assembly, registry: Registry | None, wall_s: Callable[[], float]) -> Gauges:
    """Makes the Prometheus gauges from the objects in `parts`.

    `registry`, the registry of members, is None if the server uses no certificates. `wall_s` returns the time of day.
    """
    return Gauges(
        runs=parts.runs,
        evaluations=parts.evaluations,
        sums=parts.sums,
        clients=parts.clients,
        sessions=parts.sessions,
        leases=parts.leases,
        clock=parts.clock,
        troubles=parts.troubles,
        traffic=parts.traffic,
        presence=parts.presence,
        registry=registry,
        wall_s=wall_s,
    )


def page_of(parts: Assembly, audit_log: AuditLog, authority: Authority | None) -> Page:
    """Makes the web page from the objects in `parts`.

    `authority`, the certificate authority, is None if the server uses no certificates.
    """
    return Page(
        runs=parts.runs,
        sums=parts.sums,
        status=parts.status,
        store=parts.store,
        run_bell=parts.run_bell,
        audit=audit_log,
        authority=authority,
    )


async def _tend_members(registry: Registry, parts: Assembly, wall_s: Callable[[], float]) -> None:
    """Loads the members, removes revoked members from the runs, and begins to renew certificates before they expire."""
    await registry.start()
    for name in registry.revoked():  # a crash may have separated a revocation from its effect
        await parts.coordinator.remove_client(name)
    parts.tasks.keep("the renewal of certificates", partial(tend_certificates, registry, wall_s))


@contextlib.asynccontextmanager
async def _shown(config: ServerConfig, state: StateDirectory, tasks: WatchedTasks, page: Page) -> AsyncIterator[None]:
    """Serves the web page until the block ends, if the page is configured.

    Raises NotLoopback if the configured address is no loopback address; InUse or InvalidArgument if the port cannot be
    opened.
    """
    if config.page_listen is None:
        yield
        return
    async with showing(config.page_listen, page.app(LoopbackDoor()), tasks) as address:
        write_durably(state.path / "page-address", address.encode())
        yield


@contextlib.asynccontextmanager
async def _shown_to_members(ports: Ports, state: StateDirectory, page: Page) -> AsyncIterator[None]:
    """Serves the web page to observers and administrators on other machines until the block ends, if this is configured.

    Raises InUse or InvalidArgument if the port cannot be opened; InvalidConfig if server.pem is damaged.
    """
    config, authority, links = ports.config, ports.authority, ports.links
    if config.page_remote_listen is None:
        yield
        return
    names = [*authority.hosts, *LOOPBACK_NAMES]
    if config.advertise_page is not None:
        names.append(split_address(config.advertise_page)[0])
        warn_of_uncovered(authority, [config.advertise_page])
    door = MembersDoor(hosts_of(names), ports.registry, links, ports.audit_log, ports.rates)
    app, tls = page.app(door), PageTls(authority)
    async with showing(config.page_remote_listen, app, ports.parts.tasks, tls) as address:
        port = split_address(address)[1]
        links.address = config.advertise_page or join_address(authority.hosts[0], port)
        write_durably(state.path / "page-remote-address", address.encode())
        yield


@contextlib.asynccontextmanager
async def _measured(
    config: ServerConfig,
    state: StateDirectory,
    parts: Assembly,
    registry: Registry | None,
    wall_s: Callable[[], float],
) -> AsyncIterator[None]:
    """Serves the metrics for Prometheus and updates the gauges until the block ends, if metrics are configured.

    Raises InUse or InvalidArgument if the port cannot be opened.
    """
    if config.metrics_listen is None:
        yield
        return
    with scrape_port(config.metrics_listen, REGISTRY) as address:
        write_durably(state.path / "metrics-address", address.encode())
        gauges = gauges_of(parts, registry, wall_s)
        REGISTRY.register(gauges)
        LOOP_AGE_SECONDS.set_function(parts.pulse.age_s)
        parts.tasks.keep("the reading of gauges", gauges.watch)
        parts.tasks.keep("the measurement of the event loop", measure_lag)
        try:
            yield
        finally:
            REGISTRY.unregister(gauges)


def timing_of(config: ServerConfig) -> Timing:
    """Returns the configured settings of the coordinator's loop: durations, and the number of rounds whose updates are kept."""
    return Timing(lease_s=config.lease_s, silence_s=config.silence_s, keep_updates=config.keep_updates)


async def _keep_lead(leadership: Leadership, fail_stop: FailStop, generation: int) -> None:
    """Ends this coordinator when another one has taken over. generation: the number that this one got when it took over."""
    await leadership.until_lost()
    fail_stop.stop(Overtaken(generation=generation))


def advertised(config: ServerConfig, authority: Authority, address: str, enrolment_address: str) -> Addresses:
    """Returns the two addresses that the server writes into invites. Partners connect to these addresses.

    One address is for the main port and the other one is for the enrolment port. If the configuration has an address, this
    address is returned unchanged. Otherwise the address consists of the authority's first host name and the number of the port
    on which the server listens.
    address, enrolment_address: the addresses (host:port) on which the server listens.
    """
    host = authority.hosts[0]
    return Addresses(
        config.advertise or join_address(host, split_address(address)[1]),
        config.advertise_enrolment or join_address(host, split_address(enrolment_address)[1]),
    )


async def serve(config: ServerConfig, supervisor: Supervisor) -> None:
    """Runs a coordinator until SIGTERM or SIGINT arrives.

    supervisor: reports to the process supervisor (systemd) that the coordinator is ready and alive. Raises Overtaken if another
    coordinator has taken over; DiskFailed or StoreFailed if the disk or the database has failed; BackgroundFailed if a part of
    the coordinator fails again and again.
    """
    stop, pulse = asyncio.Event(), Pulse()
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(ignore_stop_signals, asyncio.get_running_loop())
        stack.enter_context(tracing(config.traces_endpoint, "pluralllm-server", str(config.state_dir)))
        reassuring = asyncio.create_task(supervisor.reassure(pulse))
        stack.callback(reassuring.cancel)
        starting = asyncio.create_task(stack.enter_async_context(running(config, SystemClock(), pulse=pulse)))
        while not starting.done() and not stopping.done():
            pulse.beat()  # the coordinator's loop does not run yet, and a standby may wait for days
            await asyncio.wait([starting, stopping], timeout=START_BEAT_S, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # it is a standby
            starting.cancel()
            await asyncio.wait([starting])
            return
        served = starting.result()
        log.info(
            "server.started",
            address=served.address,
            enrolment_address=served.enrolment_address,
            plain_text=config.plain_text,
            state_dir=str(config.state_dir),
            version=__version__,
        )
        supervisor.tell("READY=1", f"STATUS=serves at {served.address}")
        failing = asyncio.create_task(served.fail_stop.stopped())
        await asyncio.wait([stopping, failing, reassuring], return_when=asyncio.FIRST_COMPLETED)
        failing.cancel()
        supervisor.tell("STOPPING=1")
        log.info("server.stopping")
    log.info("server.stopped")
    if served.fail_stop.why is not None and not stopping.done():
        raise served.fail_stop.why
    if not stopping.done():
        await reassuring
