"""The server of the page is started again after a failure, and closes connections whose other side reads nothing."""

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from support.memory_coordinator import MemoryCoordinator
from support.memory_store import MemoryMembership, Tables
from uvicorn.server import ServerState

from pluralllm.common.process.clock import SystemClock
from pluralllm.common.process.watched_tasks import WatchedTasks
from pluralllm.server.composition import page_of
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.observe import page
from pluralllm.server.observe.page import showing

LOOKS = 500


async def status_line(address: str) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    line = await reader.readline()
    writer.close()
    return line


async def test_a_page_whose_server_has_failed_is_served_again(monkeypatch: pytest.MonkeyPatch) -> None:
    main_loop, starts = page._Server.main_loop, 0

    async def fail_once(server: page._Server) -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise OSError(5, "Input/output error")
        await main_loop(server)

    monkeypatch.setattr(page._Server, "main_loop", fail_once)
    tasks = WatchedTasks(SystemClock(), lambda _: None)
    async with showing("127.0.0.1:0", Starlette(), tasks) as address:
        for _ in range(LOOKS):
            with contextlib.suppress(OSError):
                if starts == 2 and (await asyncio.wait_for(status_line(address), 10)).startswith(b"HTTP/1.1 404"):
                    break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("it does not answer again")


async def connected_to(address: str) -> socket.socket:
    """Returns a connection to the page, which begins to listen a moment after its address is known."""
    host, _, port = address.rpartition(":")
    for _ in range(LOOKS):
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection((host, int(port)))
        await asyncio.sleep(0.01)
    raise AssertionError("it does not listen")


async def test_a_caller_that_reads_nothing_holds_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "UNREAD_S", 0.05)
    begun, ended = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        begun.set()
        for _ in range(2):
            await send({"type": "http.response.body", "body": b"x" * 8_000_000, "more_body": True})
        ended.set()

    async with showing("127.0.0.1:0", app, WatchedTasks(SystemClock(), lambda _: None)) as address:  # type: ignore[arg-type]
        with await connected_to(address) as silent:
            silent.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.wait_for(begun.wait(), 10)
            await asyncio.wait_for(ended.wait(), 10)


class Wire:
    """A transport that only says what was done to it, and the timers of its loop."""

    def __init__(self) -> None:
        self.aborted, self.high = 0, -1
        self.timers: list[tuple[float, Any]] = []

    def call_later(self, delay_s: float, act: Any) -> Any:
        timer = (delay_s, act)
        self.timers.append(timer)
        return type("Timer", (), {"cancel": lambda _: self.timers.remove(timer)})()

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def get_extra_info(self, _: str) -> None:
        return None

    def abort(self) -> None:
        self.aborted += 1

    def close(self) -> None:
        raise AssertionError("an orderly end waits for the other side")


def connection_on(wire: Wire, state: ServerState) -> page._Connection:
    made = page._Connection(uvicorn.Config(Starlette()), state, {}, wire)  # type: ignore[arg-type]
    made.connection_made(wire)
    return made


async def test_a_connection_is_aborted_when_a_request_or_the_reading_of_an_answer_takes_too_long() -> None:
    wire, state = Wire(), ServerState()
    connection = connection_on(wire, state)
    assert (wire.high, [delay_s for delay_s, _ in wire.timers]) == (1, [page.REQUEST_S])
    connection.pause_writing()
    connection.pause_writing()
    assert [delay_s for delay_s, _ in wire.timers] == [page.REQUEST_S, page.UNREAD_S]
    for _, act in wire.timers:
        act()
    assert wire.aborted == 2
    connection.resume_writing()
    assert [delay_s for delay_s, _ in wire.timers] == [page.REQUEST_S], "the other side has read"


async def test_a_lost_connection_leaves_no_timer_and_counts_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_CONNECTIONS", 1)
    wire, state, lost = Wire(), ServerState(), list[str]()
    connection = connection_on(wire, state)
    connection.on_lost = lambda: lost.append("it")
    connection.pause_writing()
    connection_on(wire, state)
    assert wire.aborted == 1, "above the limit"
    connection.connection_lost(OSError())
    assert (wire.timers, lost) == ([], ["it"])


async def test_the_curves_of_the_runs_that_were_looked_at_last_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "KEPT_RUNS", 2)
    place = MemoryCoordinator(tmp_path)
    runs = [await place.new_run(name) for name in ("a", "b", "c")]
    shown = page_of(place.parts, AuditLog(MemoryMembership(Tables()), lambda: 0.0), None)
    first, second = [await shown._grown(run) for run in runs[:2]]
    assert await shown._grown(runs[0]) is first
    await shown._grown(runs[2])
    assert await shown._grown(runs[0]) is first
    assert await shown._grown(runs[1]) is not second
