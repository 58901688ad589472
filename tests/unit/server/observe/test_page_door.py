"""The page for members on other machines: every request and every event needs a member that may read."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs
from support.memory_coordinator import MemoryCoordinator
from support.run_states import change_state

from pluralllm.common.errors.membership import AwaitingApproval, CertificateRevoked, CertificateUnknown
from pluralllm.common.errors.storage import StorageFull
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.trust.audit_chain import AuditEntry
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import ClientId, ModelVersion, RoundNumber
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.access import Principal
from pluralllm.server.members.page_links import PageLinks
from pluralllm.server.members.rates import DEAR, Rate, Rates
from pluralllm.server.observe import page_door
from pluralllm.server.observe.page import ENTRY, FILES, FULL, Page
from pluralllm.server.observe.page_door import CERTIFICATE, COOKIE, LoopbackDoor, MembersDoor, hosts_of
from pluralllm.server.observe.page_facts import SHOWN
from pluralllm.server.rounds.events import UpdateRefused
from pluralllm.server.rounds.state import Outcome, Phase

HOST, PORT = "x.example", 7447
OWN = {"host": f"{HOST}:{PORT}", "origin": f"https://{HOST}:{PORT}"}
FACTS = ("/", "/page.js", "/drawing.js", "/api/runs", "/api/audit", "/api/runs/r/history", "/api/runs/r/events")
ROOT = Principal(ClientId("root"), MemberRole.ADMIN, "root")
EYE = Principal(ClientId("eye"), MemberRole.OBSERVER, "eye", runs=("r",))
ANN = Principal(ClientId("ann"), MemberRole.CLIENT, "ann", "group of ann")
REVOKED = CertificateRevoked(name="eye", revoked="today")


class Members:
    """The registry's answers: the member of each certificate, or the error about it. A certificate is its serial as bytes."""

    def __init__(self) -> None:
        self.known: dict[str, Principal | PluralError] = {one.serial: one for one in (ROOT, EYE, ANN)}

    def holder(self, serial: str) -> Principal:
        answer = self.known.get(serial, CertificateUnknown(name="who", serial=serial))
        if isinstance(answer, PluralError):
            raise answer
        return answer

    def principal(self, certificate_pem: bytes) -> Principal:
        return self.holder(certificate_pem.decode())


class Notes:
    """An audit log in memory."""

    head = (1, "")

    def __init__(self) -> None:
        self.kept: list[tuple[str, str, str]] = []
        self.is_full = False

    async def record(self, actor: Principal, action: str, about: str, result: str) -> None:
        if self.is_full:
            raise StorageFull(what="the audit log")
        self.kept.append((actor.name, action, result))

    async def refused(self, actor: Principal, action: str, about: str, error: PluralError) -> None:
        self.kept.append((actor.name, action, error.reason))

    async def entries(self, after: int, limit: int) -> Sequence[tuple[AuditEntry, str]]:
        return [(AuditEntry(1, 0, "root", "1f", "CreateInvite", "members/eye", "ACCEPTED", "{}", ""), "")]


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Place:
    """The page of a coordinator with two runs, and what surrounds it."""

    def __init__(self, folder: Path) -> None:
        self.at = MemoryCoordinator(folder)
        self.members, self.notes = Members(), Notes()
        self.links = PageLinks(self.at.clock.now_s)
        self.links.address = f"{HOST}:{PORT}"
        parts = self.at.parts
        self.page = Page(
            runs=parts.runs,
            sums=parts.sums,
            status=parts.status,
            store=parts.store,
            run_bell=parts.run_bell,
            audit=cast("Any", self.notes),
            authority=None,
        )
        rates = Rates(dict.fromkeys(DEAR, Rate(0.001, 10)), Rate(0.001, 20))
        door = MembersDoor(hosts_of([HOST]), cast("Any", self.members), self.links, cast("Any", self.notes), rates)
        self.app = self.page.app(door)

    async def ask(
        self,
        path: str,
        by: Principal | None = None,
        *,
        cookie: str = "",
        method: str = "GET",
        body: bytes = b"",
        on_part: Any = None,
        app: Any = None,
        **headers: str,
    ) -> Answer:
        """Sends one request to the app. by: the member whose certificate the connection has. on_part: is called after a part."""
        named = {"host": OWN["host"], **{name.replace("_", "-"): value for name, value in headers.items()}}
        if cookie:
            named["cookie"] = f"{COOKIE}={cookie}"
        answer, gone = Answer(0, {}, b""), asyncio.Event()

        async def receive() -> dict[str, Any]:
            nonlocal body
            if body is None:
                await gone.wait()
                return {"type": "http.disconnect"}
            sent, body = body, cast("Any", None)
            return {"type": "http.request", "body": sent, "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answer.body += message["body"]
                if on_part is not None and on_part(message["body"]):
                    gone.set()

        scope = {
            "type": "http",
            "method": method,
            "path": path.partition("?")[0],
            "raw_path": path.partition("?")[0].encode(),
            "query_string": path.partition("?")[2].encode(),
            "root_path": "",
            "http_version": "1.1",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "scheme": "https",
            "headers": [(name.encode(), value.encode()) for name, value in named.items()],
            "state": {CERTIFICATE: None if by is None else by.serial.encode()},
        }
        await asyncio.wait_for((app or self.app)(scope, receive, send), 20)
        return answer

    async def exchange(self, token: str, **headers: str) -> Answer:
        sent: dict[str, Any] = {"origin": OWN["origin"], **headers}
        return await self.ask("/session", method="POST", body=token.encode(), **sent)

    async def entered(self, member: Principal) -> str:
        """Opens a session with a link of the member and returns its cookie."""
        answer = await self.exchange(self.links.new_link(member))
        assert (answer.status, answer.body) == (204, b"")
        return SimpleCookie(answer.headers["set-cookie"])[COOKIE].value


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    claims = {one.serial.encode(): one for one in (ROOT, EYE, ANN)}
    monkeypatch.setattr(page_door, "claimed_by", claims.__getitem__)  # the certificates here are their serials
    made = Place(tmp_path)
    await made.at.new_run("r", title="secret plan")
    await made.at.new_run("other")
    yield made
    await made.at.stop()


@pytest.mark.parametrize("path", FACTS)
async def test_nobody_reads_without_an_identity(place: Place, path: str) -> None:
    refused = await place.ask(path)
    assert refused.status == 401
    assert refused.body == page_door.NO_ENTRY.encode()
    assert place.notes.kept == [], "a stranger does not fill the audit log"


@pytest.mark.parametrize("path", FACTS)
async def test_a_client_reads_nothing_and_the_audit_log_says_that_it_tried(place: Place, path: str) -> None:
    refused = await place.ask(path, ANN)
    assert (refused.status, refused.body) == (403, b"")
    assert place.notes.kept == [("ann", "ReadPage", "ROLE_FORBIDS")]


@pytest.mark.parametrize(
    ("error", "status"), [(REVOKED, 401), (CertificateUnknown("eye", "1f"), 401), (AwaitingApproval("eye"), 403)]
)
async def test_a_certificate_that_is_void_or_waits_reads_nothing(place: Place, error: PluralError, status: int) -> None:
    place.members.known["eye"] = error
    for path in FACTS:
        refused = await place.ask(path, EYE)
        assert refused.status == status
        assert b"secret" not in refused.body
    assert set(place.notes.kept) == {("eye", "ReadPage", error.reason)}
    cookie = await place.entered(ROOT)
    assert (await place.ask("/api/runs", EYE, cookie=cookie)).status == status, "a session does not help it"


async def test_an_administrator_reads_all_runs_by_certificate(place: Place) -> None:
    listed = (await place.ask("/api/runs", ROOT)).json
    assert ({run["name"] for run in listed["runs"]}, listed["of"], listed["page"]) == ({"r", "other"}, 2, 200)
    assert "secret plan" in {run["title"] for run in listed["runs"]}
    assert listed["reader"] == {"name": "root", "role": "admin"}
    assert [row["action"] for row in (await place.ask("/api/audit", ROOT)).json] == ["CreateInvite"]
    assert (await place.ask("/", ROOT)).status == 200
    assert (await place.ask("/api/runs/absent/history", ROOT)).status == 404


async def test_an_archived_run_is_listed_if_it_is_asked_for_and_shown_by_its_name_as_before(place: Place) -> None:
    change_state(place.at.parts.runs.get("r"), phase=Phase.ENDED, outcome=Outcome.CANCELLED, archived=True)

    async def listed(query: str, by: Principal = ROOT) -> tuple[list[str], int, int]:
        answer = (await place.ask(f"/api/runs{query}", by)).json
        return [f"{run['name']}: {run['state']}" for run in answer["runs"]], answer["of"], answer["archived"]

    other, archived = "other: waiting", "r: cancelled (archived)"
    for query in ("", "?archived=0", "?archived=2", "?run=", "?run=nobody", "?run=other"):
        assert await listed(query) == ([other], 1, 1)
    for query in ("?archived=1", "?run=r", "?archived=1&run=other"):
        assert await listed(query) == ([other, archived], 2, 1)
    assert await listed("?archived=1&after=1") == ([archived], 2, 1)
    assert await listed("", EYE) == ([], 0, 1)
    assert await listed("?archived=1", EYE) == ([archived], 1, 1)
    assert (await place.ask("/api/runs/r/history", EYE)).status == 200


async def test_a_reader_that_may_read_has_its_certificate_read_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    identify = place.members.principal
    asked: list[bytes] = []

    def principal(certificate_pem: bytes) -> Principal:
        asked.append(certificate_pem)
        return identify(certificate_pem)

    monkeypatch.setattr(place.members, "principal", principal)
    monkeypatch.setattr(page_door, "claimed_by", asked.append)
    assert (await place.ask("/page.js", EYE)).status == 200
    assert asked == [b"eye"]


async def test_an_observer_reads_the_runs_of_its_invite_and_nothing_about_others(place: Place) -> None:
    listed = (await place.ask("/api/runs", EYE)).json
    assert [(run["name"], run["title"]) for run in listed["runs"]] == [("r", "")]
    assert listed["of"] == 1
    assert (await place.ask("/api/audit", EYE)).json == []
    assert (await place.ask("/api/runs/r/history", EYE)).status == 200
    for path in ("/api/runs/other/history", "/api/runs/other/events"):
        refused = await place.ask(path, EYE)
        assert (refused.status, refused.body) == (403, b"")
    assert place.notes.kept == [("eye", "ReadPage", "RUN_NOT_SHARED")] * 2


async def test_an_observer_does_not_read_what_only_administrators_may_know(place: Place) -> None:
    run = place.at.parts.runs.get("r")
    refused = UpdateRefused(1.0, RoundNumber(1), ClientId("ann"), "NOT_FINITE", "her secret reason")
    await place.at.coordinator.dispatch(run, refused)
    seen = {str(one.name): await first_event(place, one) for one in (ROOT, EYE)}
    assert "her secret reason" in str(seen["root"]["refusals"])
    assert (seen["eye"]["refusals"], seen["eye"]["title"], seen["eye"]["trouble"]) == ([], "", "")
    curves = {str(one.name): (await place.ask("/api/runs/r/history", one)).json for one in (ROOT, EYE)}
    assert curves["root"]["lineage"] != []
    assert (curves["eye"]["lineage"], curves["eye"]["loss"]) == ([], [])


async def test_a_history_reads_the_shown_versions_only_and_none_for_an_observer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    async def versions(run: str, first: int) -> Sequence[VersionRecord]:
        asked.append((run, first))
        return []

    monkeypatch.setattr(place.at.parts.store, "versions", versions)
    await place.ask("/api/runs/r/history", EYE)
    assert asked == []
    await place.ask("/api/runs/r/history", ROOT)
    run = place.at.parts.runs.get("r")
    change_state(run, version=ModelVersion(1000))
    await place.ask("/api/runs/r/history", ROOT)
    assert asked == [("r", 0), ("r", 1001 - SHOWN)]


async def first_answer(place: Place, by: Principal) -> Answer:
    return await place.ask("/api/runs/r/events", by, on_part=lambda part: b"data" in part)


async def first_event(place: Place, by: Principal) -> Any:
    answer = await first_answer(place, by)
    return json.loads(answer.body.partition(b"data: ")[2].partition(b"\n")[0])


@pytest.mark.parametrize("way", ["certificate", "session"])
async def test_a_revocation_ends_a_stream_before_its_next_event(
    place: Place, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pluralllm.server.observe.page.AT_MOST_EVERY_S", 0.0)
    cookie, by = (await place.entered(EYE), None) if way == "session" else ("", EYE)

    def revoke(part: bytes) -> None:
        if b"data" in part:
            place.members.known["eye"] = REVOKED
            place.at.parts.run_bell.ring()

    streamed = await place.ask("/api/runs/r/events", by, cookie=cookie, on_part=revoke)
    assert (streamed.status, streamed.body.count(b"data: ")) == (200, 1)
    assert (await place.ask("/api/runs/r/events", by, cookie=cookie)).status == 401


async def test_a_member_has_eight_streams_at_a_time_and_takes_none_of_the_others(place: Place) -> None:
    waiting: list[asyncio.Task[Answer]] = []
    begun, enough = asyncio.Semaphore(0), asyncio.Event()

    def is_enough(_: bytes) -> bool:
        begun.release()
        return enough.is_set()

    async def streams(reader: Principal) -> Answer:
        return await place.ask("/api/runs/r/events", reader, on_part=is_enough)

    waiting += [asyncio.create_task(streams(EYE)) for _ in range(8)]
    for _ in range(8):
        await begun.acquire()
    assert (await streams(EYE)).body == FULL.encode() == b"event: full\ndata: {}\n\n"
    enough.set()
    assert b"data" in (await first_answer(place, ROOT)).body
    place.at.parts.run_bell.ring()
    assert all(b"data" in answer.body for answer in await asyncio.gather(*waiting))
    assert b"data" in (await first_answer(place, EYE)).body, "a stream that has ended counts no longer"


async def test_a_link_opens_a_session_of_its_member_by_a_cookie_that_scripts_and_other_sites_do_not_get(
    place: Place,
) -> None:
    answer = await place.exchange(place.links.new_link(EYE), sec_fetch_site="same-origin")
    cookie = SimpleCookie(answer.headers["set-cookie"])[COOKIE]
    assert COOKIE.startswith("__Host-")
    assert (cookie["secure"], cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, True, "strict", "/")
    assert (cookie["max-age"], cookie["domain"], len(cookie.value)) == ("3600", "", 43)
    assert [run["name"] for run in (await place.ask("/api/runs", cookie=cookie.value)).json["runs"]] == ["r"]
    assert place.notes.kept == [("eye", "OpenPage", "ACCEPTED")]


async def test_a_link_that_is_used_again_opens_nothing(place: Place) -> None:
    token = place.links.new_link(EYE)
    assert (await place.exchange(token)).status == 204
    with capture_logs() as lines:
        again = await place.exchange(token)
        assert (await place.exchange("a guess")).status == 401
    assert (again.status, "set-cookie" in again.headers) == (401, False)
    assert [line["event"] for line in lines] == ["page.link_refused"], "once a minute, so that nobody fills the log"
    assert token not in str(lines)


async def test_of_two_exchanges_at_once_one_opens_a_session(place: Place) -> None:
    token = place.links.new_link(EYE)
    answers = await asyncio.gather(*(place.exchange(token) for _ in range(4)))
    assert sorted(answer.status for answer in answers) == [204, 401, 401, 401]


async def test_a_link_is_of_no_use_after_a_minute_and_a_session_after_an_hour(place: Place) -> None:
    cookie, token = await place.entered(EYE), place.links.new_link(EYE)
    place.at.clock.advance(60.0)
    assert (await place.exchange(token)).status == 401
    assert (await place.ask("/api/runs", cookie=cookie)).status == 200
    place.at.clock.advance(3540.0)
    assert (await place.ask("/api/runs", cookie=cookie)).status == 401


async def test_neither_a_link_nor_a_session_outlives_the_membership(place: Place) -> None:
    cookie, token = await place.entered(EYE), place.links.new_link(EYE)
    place.members.known["eye"] = REVOKED
    assert (await place.exchange(token)).status == 401
    for path in FACTS:
        assert (await place.ask(path, cookie=cookie)).status == 401
    revoked = [(name, action) for name, action, result in place.notes.kept if result == REVOKED.reason]
    assert revoked == [("eye", "OpenPage")] + [("eye", "ReadPage")] * len(FACTS)


async def test_a_link_of_a_client_opens_nothing_and_the_audit_log_says_that_it_tried(place: Place) -> None:
    answer = await place.exchange(place.links.new_link(ANN))
    assert (answer.status, "set-cookie" in answer.headers) == (403, False)
    assert place.notes.kept == [("ann", "OpenPage", "ROLE_FORBIDS")]


async def test_a_link_for_which_no_session_could_be_opened_works_later(place: Place) -> None:
    token, place.notes.is_full = place.links.new_link(EYE), True
    assert (await place.exchange(token)).status == 503
    place.notes.is_full = False
    assert (await place.exchange(token)).status == 204
    assert (await place.exchange(token)).status == 401


async def test_a_new_session_ends_the_one_that_the_browser_had(place: Place) -> None:
    old, other = await place.entered(EYE), await place.entered(EYE)
    answer = await place.exchange(place.links.new_link(EYE), cookie=old)
    new = SimpleCookie(answer.headers["set-cookie"])[COOKIE].value
    assert [(await place.ask("/api/runs", cookie=one)).status for one in (old, other, new)] == [401, 200, 200]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": f"http://{HOST}:{PORT}"},
        {"origin": f"https://{HOST}"},
        {"origin": "null"},
        {"origin": ""},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
async def test_another_site_cannot_exchange_a_link_nor_use_it_up(place: Place, headers: dict[str, str]) -> None:
    token = place.links.new_link(EYE)
    refused = await place.exchange(token, **headers)
    assert (refused.status, refused.body) == (403, b"")
    assert (await place.exchange(token)).status == 204


async def test_a_request_without_an_origin_exchanges_nothing(place: Place) -> None:
    body = place.links.new_link(EYE).encode()
    assert (await place.ask("/session", method="POST", body=body)).status == 403


@pytest.mark.parametrize("path", ["/", "/enter", "/api/runs", "/session"])
async def test_a_strange_host_is_refused_whoever_asks(place: Place, path: str) -> None:
    method = "POST" if path == "/session" else "GET"
    for host in ("evil.example", f"{HOST}.evil.example", f"evil-{HOST}", "127.0.0.1"):
        refused = await place.ask(path, ROOT, method=method, host=host, origin=f"https://{host}")
        assert refused.status == 400


@pytest.mark.parametrize("body", ["", "x" * 101, "ü" * 43, "x" * 10_000])
async def test_a_body_that_is_no_token_is_refused(place: Place, body: str) -> None:
    assert (await place.exchange(body)).status == 401


async def test_a_body_that_does_not_come_is_not_awaited(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_door, "BODY_S", 0.01)
    sent: dict[str, Any] = {"origin": OWN["origin"]}
    assert (await place.ask("/session", method="POST", body=cast("Any", None), **sent)).status == 401


async def test_the_entry_has_no_facts_and_is_open_to_anybody(place: Place) -> None:
    for path in ("/enter", "/enter.js", "/page.css", "/icon.svg"):
        answer = await place.ask(path)
        assert answer.status == 200
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'self'" in answer.headers["content-security-policy"]


async def test_a_member_that_asks_too_often_is_refused_and_the_others_are_not(place: Place) -> None:
    answers = [await place.ask("/api/runs", EYE) for _ in range(22)]
    assert [answer.status for answer in answers] == [200] * 20 + [429] * 2
    assert answers[-1].body == b""
    assert place.notes.kept == [("eye", "ReadPage", "TOO_MANY_CALLS")], "once a minute"
    assert (await place.ask("/api/runs", ROOT)).status == 200


@pytest.mark.parametrize("path", ["/api/audit", "/api/runs/r/history"])
async def test_requests_that_read_many_rows_have_a_smaller_rate_of_their_own(place: Place, path: str) -> None:
    assert [(await place.ask(path, EYE)).status for _ in range(11)] == [200] * 10 + [429]
    assert (await place.ask("/api/runs", EYE)).status == 200


async def test_a_certificate_that_is_void_takes_nothing_from_the_rate_of_its_member(place: Place) -> None:
    place.members.known["eye"] = REVOKED
    assert [(await place.ask("/", EYE)).status for _ in range(21)] == [401] * 20 + [429]
    place.members.known["eye"] = EYE
    assert (await place.ask("/", EYE)).status == 200


async def test_nothing_but_requests_gets_through(place: Place) -> None:
    async def unused(*_: Any) -> Any:
        raise AssertionError

    await place.app({"type": "websocket", "path": "/api/runs", "headers": [(b"host", HOST.encode())]}, unused, unused)


async def test_on_loopback_everybody_reads_as_an_administrator_and_there_are_no_sessions(place: Place) -> None:
    app = place.page.app(LoopbackDoor())
    listed = await place.ask("/api/runs", app=app, host="localhost:7446")
    assert listed.json["of"] == 2
    for path in ("/session", *(f"/{name}" for name in ENTRY)):
        method = "POST" if path == "/session" else "GET"
        assert (await place.ask(path, app=app, host="localhost:7446", method=method)).status == 404
    assert not ENTRY.keys() & FILES.keys()


def test_an_ipv6_address_has_brackets_in_a_host_header() -> None:
    assert hosts_of(["a.example", "127.0.0.1", "::1"]) == ("a.example", "127.0.0.1", "[::1]")
    assert hosts_of(["A.Example"]) == ("a.example",), "browsers write it so"
