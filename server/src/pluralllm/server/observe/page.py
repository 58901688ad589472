"""The page: the federation at a glance, over HTTP on a loopback address, read-only.

Nothing can be steered here. Whoever reaches the address may look: a loopback address only, and the name in the Host header must
be one of this machine, so that a page from elsewhere cannot read it through the visitor's browser (DNS rebinding).
From afar: ssh -L.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from importlib import resources
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pluralllm.common.errors.tree import InUse, NotFound
from pluralllm.common.words.addresses import check_loopback
from pluralllm.common.words.ids import RoundNumber
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.authority import Authority
from pluralllm.server.observe.page_facts import (
    MAX_POINTS,
    SHOWN,
    Facts,
    History,
    audit_line,
    history_facts,
    run_line,
    run_now,
)
from pluralllm.server.runs.coordinator import Coordinator
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.overview import at_a_glance

FILES = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
HOSTS = ["127.0.0.1", "localhost", "[::1]", "::1"]
MAX_RUNS = 200
PAGE = 500  # evaluations read at once
LOOK_EVERY_S = 2.0  # what no event tells: progress, silence
AT_MOST_EVERY_S = 0.3
MAX_VISITORS = 64
STOP_S = 3


class Page:
    """One for each process; runs on the coordinator's event loop."""

    def __init__(self, coordinator: Coordinator, audit: AuditLog, authority: Authority | None) -> None:
        """authority: None in plain text, where the federation has no name."""
        self._coordinator, self._audit = coordinator, audit
        self._federation = "" if authority is None else authority.federation
        self._histories: dict[str, History] = {}
        self._reading = asyncio.Lock()

    def app(self) -> Starlette:
        files = [Route(f"/{path}", self._file) for path in FILES]
        return Starlette(
            routes=[
                *files,
                Route("/api/runs", self._runs),
                Route("/api/audit", self._tail),
                Route("/api/runs/{run}/history", self._history),
                Route("/api/runs/{run}/events", self._events),
            ],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)],
            exception_handlers={NotFound: _not_found},
        )

    async def _file(self, request: Request) -> Response:
        name, kind = FILES[request.url.path.lstrip("/")]
        content = resources.files("pluralllm.server.observe").joinpath("web", name).read_bytes()
        return Response(content, media_type=kind, headers=HEADERS)

    async def _runs(self, _request: Request) -> Response:
        newest_first = self._coordinator.runs()[::-1]
        found = {
            "federation": self._federation,
            "of": len(newest_first),
            "runs": [run_line(run) for run in newest_first[:MAX_RUNS]],
        }
        return JSONResponse(found, headers=HEADERS)

    async def _tail(self, _request: Request) -> Response:
        newest, _ = self._audit.head
        entries = await self._audit.entries(max(0, newest - SHOWN), SHOWN)
        return JSONResponse([audit_line(entry) for entry, _sha256 in reversed(entries)], headers=HEADERS)

    async def _history(self, request: Request) -> Response:
        run = self._coordinator.run(request.path_params["run"])
        async with self._reading:
            history = await self._grown(run)
        store = self._coordinator.store
        rounds = await store.rounds(run.id, None, SHOWN)
        return JSONResponse(history_facts(run, history, rounds, await store.versions(run.id)), headers=HEADERS)

    async def _grown(self, run: LiveRun) -> History:
        """What is new since the last look is read; distances of the newest rounds only."""
        store, history = self._coordinator.store, self._histories.setdefault(run.id, History())
        while rows := await store.evaluations(run.id, history.after, PAGE):
            history.add_scores(rows)
            if len(rows) < PAGE:
                break
        closed = run.state.round - (run.state.phase in ("collecting", "aggregating"))
        for number in range(max(1, closed - MAX_POINTS + 1), closed + 1):
            if number not in history.rounds:
                history.add_round(number, await store.receipts(run.id, RoundNumber(number)))
        return history

    async def _events(self, request: Request) -> Response:
        run = self._coordinator.run(request.path_params["run"])
        return StreamingResponse(self._told(run), media_type="text/event-stream", headers=HEADERS)

    async def _told(self, run: LiveRun) -> AsyncIterator[str]:
        """The run's state when something has changed, and every LOOK_EVERY_S; until the coordinator stops."""
        yield "retry: 1000\n\n"
        while not self._coordinator.draining:
            heard = self._coordinator.bell.rings
            yield f"data: {json.dumps(await self._now(run), separators=(',', ':'))}\n\n"
            await asyncio.sleep(AT_MOST_EVERY_S)
            await self._coordinator.bell.wait(heard, LOOK_EVERY_S)

    async def _now(self, run: LiveRun) -> Facts:
        coordinator, now_s = self._coordinator, self._coordinator.clock.now_s()
        members = await coordinator.store.clients()
        people, then = at_a_glance(run, members, coordinator.sessions, coordinator.leases, now_s)
        return run_now(run, people, then, now_s)


async def _not_found(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=404, headers=HEADERS)


class _Server(uvicorn.Server):
    """Signals are the process's to handle."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def showing(listen: str, app: Starlette) -> AsyncIterator[str]:
    """Serves at host:port (0: a free one) until the block ends; yields the address. Raises NotLoopback, InUse."""
    check_loopback(listen)
    host, _, port = listen.rpartition(":")
    config: Any = uvicorn.Config(
        app,
        host=host.strip("[]"),
        port=int(port),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        limit_concurrency=MAX_VISITORS,
        timeout_graceful_shutdown=STOP_S,
    )
    try:
        socket = config.bind_socket()
    except SystemExit as error:  # uvicorn's way to say that the port is taken
        raise InUse(what=f"address {listen}", by="another process (or this machine does not have it)") from error
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[socket]))
    try:
        yield f"{host}:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        await asyncio.wait([serving], timeout=2 * STOP_S)
        serving.cancel()
        socket.close()
