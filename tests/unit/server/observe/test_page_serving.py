"""The server of the page is started again after a failure."""

import asyncio
import contextlib

import pytest
from starlette.applications import Starlette

from pluralllm.common.process.clock import SystemClock
from pluralllm.common.process.watched_tasks import WatchedTasks
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
