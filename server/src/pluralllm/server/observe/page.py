"""The read-only web page about the federation: HTTP at `page_listen` on loopback, HTTPS at `page_remote_listen`.

Everybody on this machine can read the page at page_listen. At page_remote_listen page_door.py identifies each reader.
In both cases the Host header of a request must name this machine. Otherwise a foreign web page could read the data through a
visitor's browser (DNS rebinding).
"""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from importlib import resources
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from pluralllm.common.errors.membership import RunNotShared
from pluralllm.common.errors.root import Refused
from pluralllm.common.errors.tree import NotFound, PluralError
from pluralllm.common.process.listening import bound_socket
from pluralllm.common.process.watched_tasks import WatchedTasks
from pluralllm.common.text.printable import printable_values
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.addresses import check_loopback, join_address, split_address
from pluralllm.common.words.ids import ClientId, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.names import RunName
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.access import Principal, check_may_read, may_read, may_read_audit
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.authority import Authority
from pluralllm.server.observe.page_door import HEADERS, MAX_VISITORS, READING, Door, Guard, MembersDoor, Who, refusal
from pluralllm.server.observe.page_facts import (
    MAX_POINTS,
    SHOWN,
    History,
    audit_row,
    history_facts,
    run_now,
    run_row,
)
from pluralllm.server.observe.page_reader import history_for, row_for, run_for
from pluralllm.server.observe.page_tls import OpenConnections, PageTls, TlsEntrance
from pluralllm.server.process.last_used import LastUsed
from pluralllm.server.rounds.state import WITH_OPEN_ROUND
from pluralllm.server.runs.bell import Bell
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.live_runs import Runs
from pluralllm.server.runs.round_sums import RoundSums, sum_of
from pluralllm.server.runs.status import Status
from pluralllm.server.storage.store import Store

FILES = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "drawing.js": ("drawing.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
ENTRY = {
    "enter": ("enter.html", "text/html"),
    "enter.js": ("enter.js", "text/javascript"),
}  # for members on other machines
MAX_RUNS = 200  # in one answer; page.js learns the number from it
KEPT_RUNS = 32  # whose curves are kept
PAGE = 500  # evaluations read at once
LOOK_EVERY_S = 2.0  # for changes without an event: progress, silence
AT_MOST_EVERY_S = 0.3
MAX_CONNECTIONS = 2 * MAX_VISITORS  # each is an open file; a browser has several
REQUEST_S = 10.0  # then a connection that has not sent a whole request is closed
UNREAD_S = 30.0  # then a connection is closed whose reader has not taken what was sent; enough for 480 kB at 16 KiB/s
FULL = "event: full\ndata: {}\n\n"  # the only event of a stream above the reader's largest number of streams
STOP_S = 3


class Page:
    """The web application behind the page. A process has one such object, which runs on the coordinator's event loop."""

    def __init__(
        self,
        *,
        runs: Runs,
        sums: RoundSums,
        status: Status,
        store: Store,
        run_bell: Bell,
        audit: AuditLog,
        authority: Authority | None,
    ) -> None:
        """Stores the arguments. The page reads the runs, their sums and status, the store and the audit log.

        run_bell: the notifier that rings when a run has changed. authority: the certificate authority, which knows the
        federation's name; None if the server uses no certificates, and the page then shows no name.
        """
        self._runs, self._sums, self._status, self._store = runs, sums, status, store
        self._run_bell, self._audit = run_bell, audit
        self._federation = "" if authority is None else authority.federation
        self._histories = LastUsed[RunId, History](KEPT_RUNS)
        self._reading = asyncio.Lock()
        self._streams: Counter[ClientId] = Counter()  # open event streams of each reader

    def app(self, door: Door) -> Starlette:
        """Returns the web application whose readers the door lets in."""
        files = [Route(f"/{path}", self._file) for path in FILES]
        if isinstance(door, MembersDoor):
            files += [Route(f"/{path}", self._file) for path in ENTRY]
            files.append(Route("/session", door.open_session, methods=["POST"]))
        return Starlette(
            routes=[
                *files,
                Route("/api/runs", self._list),
                Route("/api/audit", self._tail),
                Route("/api/runs/{run}/history", self._history),
                Route("/api/runs/{run}/events", self._events),
            ],
            middleware=[
                Middleware(TrustedHostMiddleware, allowed_hosts=door.hosts, www_redirect=False),
                Middleware(Guard, door=door),
            ],
            exception_handlers={NotFound: _not_found, Refused: _refused},
        )

    async def _file(self, request: Request) -> Response:
        name, kind = (FILES | ENTRY)[request.scope["path"].lstrip("/")]
        content = resources.files("pluralllm.server.observe").joinpath("web", name).read_bytes()
        return Response(content, media_type=kind, headers=HEADERS)

    async def _list(self, request: Request) -> Response:
        """Returns a page of the list of runs, newest first. The query's `after` is the number of runs to leave out first.

        Archived runs are in the list only if the query's `archived` is 1, or if its `run` names one.
        """
        reader, query = _reader(request), request.query_params
        readable = [run for run in self._runs.all()[::-1] if may_read(reader, run.id, run.spec.groups)]
        shows_all, named = query.get("archived") == "1", query.get("run")
        listed = [run for run in readable if shows_all or not run.state.archived or run.id == named]
        after = query.get("after", "0")
        first = min(int(after), len(listed)) if after.isascii() and after.isdigit() and len(after) < 10 else 0
        facts = {
            "federation": self._federation,
            "reader": {"name": reader.name, "role": reader.role.value},
            "of": len(listed),
            "archived": sum(run.state.archived for run in readable),
            "page": MAX_RUNS,
            "runs": [row_for(reader, run_row(run)) for run in listed[first : first + MAX_RUNS]],
        }
        return json_answer(facts)

    async def _tail(self, request: Request) -> Response:
        if not may_read_audit(_reader(request)):
            return json_answer([])
        newest, _ = self._audit.head
        entries = await self._audit.entries(max(0, newest - SHOWN), SHOWN)
        return json_answer([audit_row(entry) for entry, _sha256 in reversed(entries)])

    async def _history(self, request: Request) -> Response:
        run, reader = await self._run_for(request), _reader(request)
        async with self._reading:
            history = await self._grown(run)
        rounds = await self._store.rounds(run.id, None, SHOWN)
        versions: Sequence[VersionRecord] = ()
        if reader.role is MemberRole.ADMIN:  # nobody else sees them
            versions = await self._store.versions(run.id, ModelVersion(max(0, run.state.version - SHOWN + 1)))
        sums = await self._sums.of(run)
        return json_answer(history_for(reader, history_facts(run, history, rounds, versions, sums)))

    async def _run_for(self, request: Request) -> LiveRun:
        """Returns the run that a request names. Raises NotFound; RunNotShared, with an audit entry, if the reader may not."""
        run, reader = self._runs.get(request.path_params["run"]), _reader(request)
        try:
            check_may_read(reader, run.id, run.spec.groups)
        except RunNotShared as error:
            await self._audit.refused(reader, READING, str(RunName(run.id)), error)
            raise
        return run

    async def _grown(self, run: LiveRun) -> History:
        """Adds new alignment scores and distances to the run's history in memory, and returns the history.

        A distance is the loss that a client reports with its update. The method reads distances for the newest MAX_POINTS rounds
        only.
        """
        store, history = self._store, self._histories.get(run.id) or self._histories.put(run.id, History())
        while rows := await store.evaluations(run.id, history.after, PAGE):
            history.add_scores(rows)
            if len(rows) < PAGE:
                break
        closed = run.state.round - (run.state.phase in WITH_OPEN_ROUND)
        for number in range(max(1, closed - MAX_POINTS + 1), closed + 1):
            if number not in history.rounds:
                record = None if run.state.private is None else await store.round(run.id, RoundNumber(number))
                of_round = None if record is None else sum_of(record, run.spec)
                history.add_round(number, await store.receipts(run.id, RoundNumber(number)), of_round)
        return history

    async def _events(self, request: Request) -> Response:
        run, who = await self._run_for(request), request.state.who
        stream = self._counted(_reader(request).name, request.state.streams, self._stream(run, who))
        return StreamingResponse(stream, media_type="text/event-stream", headers=HEADERS)

    async def _counted(self, reader: ClientId, most: int, stream: AsyncIterator[str]) -> AsyncIterator[str]:
        """Yields what `stream` yields; only FULL for a reader that has `most` streams already, so that it keeps nobody out."""
        if self._streams[reader] >= most:
            yield FULL
            return
        self._streams[reader] += 1
        try:
            async for event in stream:
                yield event
        finally:
            self._streams[reader] -= 1

    async def _stream(self, run: LiveRun, who: Who) -> AsyncIterator[str]:
        """Yields the run's state as server-sent events, until the coordinator stops or the reader may read no longer.

        The state is sent when the run has changed. Without a change, it is sent again about every LOOK_EVERY_S seconds.
        """
        yield "retry: 1000\n\n"
        while not self._run_bell.closed:
            heard = self._run_bell.rings
            try:
                reader = who()
                check_may_read(reader, run.id, run.spec.groups)
            except PluralError:
                return
            status = self._status.of(run)
            yield event_of(run_for(reader, run_now(run, status), status.participants))
            await asyncio.sleep(AT_MOST_EVERY_S)
            await self._run_bell.wait(heard, LOOK_EVERY_S)


def _reader(request: Request) -> Principal:
    """Returns the reader with its present rights. A request that no door has let in has none: an internal error."""
    who: Who = request.state.who
    return who()


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal(error)


async def _not_found(_: Request, error: Exception) -> Response:
    return json_answer({"error": str(error)}, 404)


def json_answer(facts: Any, status_code: int = 200) -> Response:
    """Returns facts as a JSON response. All texts are printable: members wrote some of them, and a browser shows them."""
    return JSONResponse(printable_values(facts), status_code, HEADERS)


def event_of(facts: Any) -> str:
    """Returns facts as one server-sent event. All texts are printable, as in `json_answer`."""
    return f"data: {json.dumps(printable_values(facts), separators=(',', ':'))}\n\n"


class _Server(uvicorn.Server):
    """A uvicorn server that does not handle signals, because the coordinator's process handles them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Connection(H11Protocol):
    """An HTTP connection that is closed if there are too many, or if the other side is slow.

    A request must arrive within REQUEST_S. The other side must take all that was sent within UNREAD_S. The connection is
    aborted, because an orderly end waits for the other side, too.
    """

    _limit: asyncio.TimerHandle | None = None  # runs while a request is awaited or arrives
    _unread_limit: asyncio.TimerHandle | None = None  # runs while the other side has not taken all that was sent
    on_lost: Callable[[], None] | None = None  # is called once, after the end of the connection

    def connection_made(self, transport: Any) -> None:
        """Accepts the connection if there are at most MAX_CONNECTIONS."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1)  # pause_writing is called if bytes are not taken; by 0, always
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._limit = self.loop.call_later(REQUEST_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Reads a part of a request. The limit begins with the request's first byte and ends with its head's last one."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._end_limit()
        elif self._limit is None:
            self._limit = self.loop.call_later(REQUEST_S, self.transport.abort)

    def pause_writing(self) -> None:
        """Begins to wait for the other side to take what was sent."""
        super().pause_writing()
        if self._unread_limit is None:
            self._unread_limit = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Ends the wait, because the other side has taken all that was sent."""
        self._end_unread_limit()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._end_limit()
        self._end_unread_limit()
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def _end_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _end_unread_limit(self) -> None:
        if self._unread_limit is not None:
            self._unread_limit.cancel()
            self._unread_limit = None


@contextlib.asynccontextmanager
async def showing(listen: str, app: Starlette, tasks: WatchedTasks, tls: PageTls | None = None) -> AsyncIterator[str]:
    """Serves a web application at `listen` (host:port) until the block ends, and yields the actual address.

    The server is one of the background tasks in `tasks`. Port 0 selects a free port. Raises NotLoopback if the host is no
    loopback address and `tls` is None; InUse or InvalidArgument if the port cannot be opened.
    """
    if tls is None:
        check_loopback(listen)
        http: Any = _Connection
    else:
        opened = OpenConnections(MAX_CONNECTIONS)
        http = partial(TlsEntrance, make_connection=_Connection, tls=tls, tasks=tasks, opened=opened)
    host, port = split_address(listen)
    config: Any = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        log_level="error",  # a warning about each malformed request would let strangers fill the log
        lifespan="off",
        server_header=False,
        limit_concurrency=MAX_VISITORS,
        http=http,
        ws="none",
        proxy_headers=False,
        timeout_graceful_shutdown=STOP_S,
    )
    socket = bound_socket(config.bind_socket, listen)

    async def serve() -> None:
        server = _Server(config)
        try:
            await server.serve(sockets=[socket.dup()])  # a copy, because the server closes it at its end
        finally:
            await server.shutdown()

    serving = tasks.keep("the page", serve)
    try:
        yield join_address(host, socket.getsockname()[1])
    finally:
        serving.cancel()
        await asyncio.wait([serving], timeout=2 * STOP_S)
        socket.close()
