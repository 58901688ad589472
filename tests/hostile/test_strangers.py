"""Strangers without a certificate connect and send nothing: members notice little, whatever the limit of open files is."""

import asyncio
import contextlib
import dataclasses
import resource
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest
from hostile.evil_strangers import dripping, open_among, seconds_until_closed, silent_connections
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from support.coordinator_harness import serving, small_spec
from support.process_harness import Federation, federation, free_port, until

from pluralllm.client.joining.enrolment import ask_server
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.process import scrape_port as scrape_port_module
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.process.scrape_port import scrape_port
from pluralllm.common.process.watched_tasks import WatchedTasks
from pluralllm.common.trust.identity import load_identity
from pluralllm.server.observe import page as page_module
from pluralllm.server.observe.page import MAX_CONNECTIONS, showing
from pluralllm.server.process.open_files import COMFORTABLE, TARGET, ceilings

FILES = 256
STRANGERS = 400
TASKS = WatchedTasks(SystemClock(), lambda _: None)


def limited(federation_to_limit: Federation, limit: str) -> None:
    """Makes the coordinator start with a limit of open files. limit: the arguments of the shell's `ulimit`."""
    coordinator = federation_to_limit.coordinator
    wrapped = ["sh", "-c", f'ulimit {limit} && exec "$@"', "sh", *coordinator.command]
    federation_to_limit.coordinator = dataclasses.replace(coordinator, command=wrapped)
    federation_to_limit.processes[0] = federation_to_limit.coordinator


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Federation]:
    """A coordinator that may open FILES files."""
    with federation(tmp_path, tmp_path, free_port()) as started:
        limited(started, f"-n {FILES}")
        yield started


def process_of(started: Federation) -> psutil.Process:
    assert started.coordinator.popen is not None
    return psutil.Process(started.coordinator.popen.pid)


def test_strangers_on_both_ports_leave_files_for_writes_and_for_members(small: Federation) -> None:
    remote = small.start_coordinator()
    room = ceilings(FILES, 16_384)
    with (
        silent_connections(small.address, STRANGERS) as at_main,
        silent_connections(small.enrolment_address, STRANGERS) as at_enrolment,
    ):
        until(lambda: open_among(at_main) <= room.main, "the main port closes what is above its ceiling", small)
        until(lambda: open_among(at_enrolment) <= room.enrolment, "so does the enrolment port", small)
        assert process_of(small).num_fds() <= FILES - room.main
        for number in range(20):
            remote.create_run(f"r{number}", small_spec(seed=number).canonical_json())
        until(lambda: joins(small, "ann"), "a member joins after the handshake limit, while strangers hold on", small)
        assert open_among(at_main) == 0
    log = small.coordinator.log.read_text()
    assert "server.few_open_files" in log
    assert "StoreFailed" not in log
    remote.close()


def joins(federation_to_join: Federation, name: str) -> bool:
    try:
        federation_to_join.join(name)
    except PluralError:
        return False
    return True


def test_a_member_comes_in_again_while_strangers_fill_the_port(small: Federation) -> None:
    small.start_coordinator().close()
    with silent_connections(small.address, STRANGERS):
        remote = small.remote()

        def answers() -> bool:
            try:
                return remote.runs() is not None
            except PluralError:
                return False

        until(answers, "the port has room again when the strangers' handshakes have taken too long", small, 20)
        remote.close()


@pytest.mark.parametrize("soft", [128, 1024])
def test_the_coordinator_raises_its_soft_limit_by_itself(tmp_path: Path, soft: int) -> None:
    hard = min(TARGET, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    with federation(tmp_path, tmp_path, free_port()) as started:
        limited(started, f"-Sn {soft}")
        started.start_coordinator().close()
        assert process_of(started).rlimit(psutil.RLIMIT_NOFILE)[0] == hard
        assert ("server.few_open_files" in started.coordinator.log.read_text()) == (hard < COMFORTABLE)


async def test_a_stranger_has_three_seconds_at_the_enrolment_port_and_five_at_the_main_port(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        with (
            silent_connections(served.enrolment_address, 1) as at_enrolment,
            silent_connections(served.address, 1) as at_main,
        ):
            waits_s = await asyncio.gather(
                asyncio.to_thread(seconds_until_closed, at_enrolment[0], 9.0),
                asyncio.to_thread(seconds_until_closed, at_main[0], 9.0),
            )
    assert 2.5 < waits_s[0] < 4.5
    assert 4.5 < waits_s[1] < 7.0


async def test_strangers_that_send_headers_only_leave_the_enrolment_port_to_others(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served, contextlib.AsyncExitStack() as stack:
        authority_pem = served.registry.authority.root_pem
        credentials = grpc.ssl_channel_credentials(authority_pem)
        for _ in range(70):
            channel = grpc.aio.secure_channel(
                served.enrolment_address, credentials, options=[("grpc.use_local_subchannel_pool", 1)]
            )
            await stack.enter_async_context(channel)
            for _ in range(4):
                channel.stream_unary("/pluralllm.v1.EnrolmentService/Join")(timeout=20)
            await asyncio.wait_for(channel.channel_ready(), 20)
        await asyncio.to_thread(ask_server, served.enrolment_address, authority_pem)


def answered(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_callers_that_are_silent_take_the_metrics_from_nobody_for_long() -> None:
    with scrape_port("127.0.0.1:0", CollectorRegistry()) as address, silent_connections(address, 60) as connections:
        assert seconds_until_closed(connections[-1], 20) < 2, "what is above the ceiling is closed at once"
        assert seconds_until_closed(connections[0], 20) < 2 * scrape_port_module.SILENCE_S
        assert any(answered(address) for _ in range(20))


def test_callers_that_send_byte_by_byte_take_the_metrics_from_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape_port_module, "REQUEST_S", 1.0)
    ceiling = scrape_port_module.MAX_CONNECTIONS
    with (
        scrape_port("127.0.0.1:0", CollectorRegistry()) as address,
        silent_connections(address, ceiling) as connections,
        ThreadPoolExecutor(ceiling) as pool,
    ):
        waits_s = list(pool.map(lambda connection: dripping(connection, 0.1, 10.0), connections))
        assert min(waits_s) > 0.5
        assert max(waits_s) < 5
        assert any(answered(address) for _ in range(20))


def test_a_scrape_that_can_have_no_thread_keeps_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with scrape_port("127.0.0.1:0", CollectorRegistry()) as address:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", no_thread)
            for _ in range(2 * scrape_port_module.MAX_CONNECTIONS):
                assert not answered(address)
        assert answered(address)


async def becomes(holds: Callable[[], bool]) -> bool:
    """Returns whether a condition becomes true within ten seconds. The event loop runs meanwhile."""
    for _ in range(200):
        if holds():
            return True
        await asyncio.sleep(0.05)
    return False


def listens(address: str) -> bool:
    try:
        with silent_connections(address, 1):
            return True
    except ConnectionRefusedError:
        return False


async def test_visitors_that_are_silent_take_no_more_files_than_the_page_has_connections() -> None:
    async with showing("127.0.0.1:0", Starlette(), TASKS) as address:
        assert await becomes(lambda: listens(address))
        with silent_connections(address, 2 * MAX_CONNECTIONS) as connections:
            assert await becomes(lambda: 0 < open_among(connections) <= MAX_CONNECTIONS)


async def test_visitors_that_send_byte_by_byte_keep_no_connection_to_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "REQUEST_S", 1.0)

    async def hello(_: Request) -> Response:
        return Response("hello")

    async with showing("127.0.0.1:0", Starlette(routes=[Route("/", hello)]), TASKS) as address:
        assert await becomes(lambda: listens(address))
        with silent_connections(address, 1) as [slow]:
            assert 0.5 < await asyncio.to_thread(dripping, slow, 0.1, 10.0) < 5
        with silent_connections(address, 1) as [used]:
            used.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert await asyncio.to_thread(used.recv, 12) == b"HTTP/1.1 200"
            assert await asyncio.to_thread(dripping, used, 0.1, 10.0) < 5, "after a whole request, too"


async def test_a_visitor_that_waits_for_a_slow_answer_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "REQUEST_S", 0.2)
    late = asyncio.Event()

    async def slow(_: Request) -> Response:
        await late.wait()
        return Response("hello")

    async with showing("127.0.0.1:0", Starlette(routes=[Route("/", slow)]), TASKS) as address:
        assert await becomes(lambda: listens(address))
        with silent_connections(address, 1) as [connection]:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert await asyncio.to_thread(seconds_until_closed, connection, 1.0) == 1.0
            late.set()
            connection.setblocking(True)
            assert await asyncio.to_thread(connection.recv, 12) == b"HTTP/1.1 200"


def tls_connection(address: str, authority_pem: bytes) -> ssl.SSLSocket:
    """Connects to the enrolment port, ends both handshakes, and makes no call."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cadata=authority_pem.decode())
    context.set_alpn_protocols(["h2"])
    connection = context.wrap_socket(socket.create_connection((host, int(port)), 20), server_hostname=host)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    return connection


def seconds_until_goodbye(connection: ssl.SSLSocket) -> float:
    began_s = time.monotonic()
    with contextlib.suppress(OSError):
        while connection.recv(4096):
            pass
    return time.monotonic() - began_s


def test_a_stranger_that_makes_no_call_leaves_the_enrolment_port_after_some_seconds(small: Federation) -> None:
    small.start_coordinator().close()
    authority_pem = load_identity(small.folder / "admin", "").authority_pem
    with tls_connection(small.enrolment_address, authority_pem) as connection:
        assert 1.0 < seconds_until_goodbye(connection) < 8.0
