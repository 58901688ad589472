"""A hostile coordinator's answers: they touch no file of the partner, reach no terminal raw, and do not drive the client."""

import asyncio
import base64
import contextlib
import datetime
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import structlog
from cryptography.hazmat.primitives.serialization import Encoding
from hostile.evil_coordinator import EvilCoordinator, IdleWorker, evil, victim
from support.plain_server import serving_scripted
from support.process_harness import process_spec

from pluralllm.client.daemon import daemon, renewal
from pluralllm.client.daemon.pace import IDLE_POLLS
from pluralllm.client.daemon.renewal import Renewal
from pluralllm.client.disclosure.budgets import Budgets
from pluralllm.client.joining import joining
from pluralllm.client.joining.enrolment import Joined
from pluralllm.client.link.transport import Transport
from pluralllm.common.errors.grpc_status import from_rpc_error, to_status
from pluralllm.common.errors.membership import CertificateRevoked, InviteInvalid
from pluralllm.common.errors.tree import NotFound, PluralError, PolicyForbids, StaleSession, fields_of
from pluralllm.common.process.exits import BROKEN, run_command
from pluralllm.common.trust.certificates import CertificateFacts, new_key
from pluralllm.common.trust.invite import Invite
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.operator.plain_values import plain
from pluralllm.server.members.signing import sign_authority
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1 import resources_pb2 as resources

SHA = "a" * 64
LIMIT_S = 30.0
ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202e\r"
ACROSS = ("../../victim", "../identity", "/etc/x", "..", "a/../../b", "a\0b", "x" * 300)


def task(run: str, name: str = "") -> pb.PollResponse:
    facts: dict[str, Any] = {"run": run, "name": name or f"runs/{run}/rounds/1/tasks/train-ann", "cohort_size": 5}
    shas: dict[str, Any] = {"spec_sha256": SHA, "base_digest": SHA, "base_record_sha256": SHA}
    return pb.PollResponse(task=pb.Task(kind=pb.TASK_KIND_TRAIN, round=1, **facts, **shas))


def over(run: str) -> pb.PollResponse:
    return pb.PollResponse(run_over=pb.RunOver(run=run, outcome=resources.RUN_OUTCOME_COMPLETED, reason="x"))


@contextlib.asynccontextmanager
async def led_by(coordinator: EvilCoordinator, folder: Path) -> AsyncIterator[tuple[str, IdleWorker]]:
    """Runs a client for a while that a hostile coordinator leads. Yields the coordinator's address and the client's worker."""
    async with serving_scripted(coordinator) as address, victim(folder, address) as worker, asyncio.timeout(LIMIT_S):
        yield address, worker


def files_below(folder: Path) -> dict[str, str]:
    """Returns the hash of each file in a folder and below."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("run", ACROSS)
@pytest.mark.parametrize("kind", ["over", "task", "task name"])
async def test_an_answer_touches_no_file_of_the_partner(run: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "state" / "identity").mkdir(parents=True)
    for name in ("identity/identity.json", "victim.json", "history"):
        path = tmp_path / "state" / name
        path.parent.mkdir(exist_ok=True)
        if name != "history":
            path.write_text('{"mine": true}')
    (tmp_path / "victim.json").write_text('{"mine": true}')
    answers = {"over": over(run), "task": task(run), "task name": task("first", f"runs/first/rounds/1/tasks/{run}")}
    before = files_below(tmp_path)
    coordinator = evil([answers[kind], pb.PollResponse(wait=pb.Wait(reason="again"))])
    with structlog.testing.capture_logs() as logs:
        async with led_by(coordinator, tmp_path) as (address, worker):
            await coordinator.polled.wait()
        assert worker.orders == []
    after = files_below(tmp_path)
    for name in ("disclosure/secret", "identity/peer-key.pem", "private/CACHEDIR.TAG"):
        after.pop(f"state/{name}", None)  # the client makes it at its first start, whoever answers
    assert after == before
    [broken] = [line for line in logs if line["event"] == "coordinator.broke_protocol"]
    assert (broken["log_level"], broken["call"], broken["coordinator"]) == ("error", "Poll", address)
    assert broken["field"] in {"run_over.run", "task.run", "task.name"}
    assert not any(call.startswith(("GetRunSpec", "ReportFailure")) for call in coordinator.calls)


async def test_a_coordinator_that_asks_for_no_wait_is_polled_about_once_a_second(tmp_path: Path) -> None:
    waits = [pb.PollResponse(wait=pb.Wait(reason=f"{ESCAPES} {number}")) for number in range(10_000)]
    coordinator = evil(waits)
    with structlog.testing.capture_logs() as logs:
        async with serving_scripted(coordinator) as address, victim(tmp_path, address):
            await asyncio.sleep(3.0)
    assert coordinator.calls.count("Poll") <= IDLE_POLLS + 3 + 2
    reasons = [line["reason"] for line in logs if line["event"] == "client.waiting"]
    assert 1 <= len(reasons) <= 6
    assert all(reason.isprintable() for reason in reasons)


@pytest.mark.parametrize("refusal_type", [StaleSession, CertificateRevoked])
async def test_a_coordinator_that_refuses_each_poll_is_called_about_once_a_second(
    refusal_type: type[PluralError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls = 0

    async def refuses(*_: object) -> None:
        nonlocal polls
        polls += 1
        raise refusal_type(**dict.fromkeys(fields_of(refusal_type), "x"))

    async def recovers(*_: object) -> None:
        """Goes on with the next certificate, which the coordinator refuses as well."""

    monkeypatch.setattr(Transport, "poll", refuses)
    monkeypatch.setattr(Renewal, "recover", recovers)
    async with serving_scripted(evil([])) as address, victim(tmp_path, address):
        await asyncio.sleep(3.0)
    assert 2 <= polls <= IDLE_POLLS + 2 * 3 + 2  # a bucket that is empty gives up to two a second (test_pace.py)


async def test_renewed_certificates_without_a_life_are_asked_for_with_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 5:
            raise asyncio.CancelledError

    now_s = time.time()
    facts = CertificateFacts("1", "k", "f", MemberRole.CLIENT, ClientId("n"), now_s - 300, now_s - 300)
    identity: Any = SimpleNamespace(facts=facts)
    monkeypatch.setattr(renewal, "stored_identity", lambda kept: kept)
    monkeypatch.setattr(renewal, "renew", lambda kept, *_: asyncio.to_thread(lambda: kept))
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await Renewal(identity, Transport.in_plain_text("127.0.0.1:1", ClientId("ann"))).keep()
    assert min(pauses) >= renewal.SHORTEST_PAUSE_S / 2


async def test_a_daemon_stops_though_its_last_report_gets_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working, reporting = asyncio.Event(), asyncio.Event()

    async def hangs(event: asyncio.Event) -> None:
        event.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(daemon, "STOP_REPORT_S", 0.2)
    monkeypatch.setattr(Transport, "run_spec", lambda *_: hangs(working))
    monkeypatch.setattr(Transport, "report_failure", lambda *_, **__: hangs(reporting))
    async with asyncio.timeout(LIMIT_S), serving_scripted(evil([task("first")])) as address, victim(tmp_path, address):
        await working.wait()
    assert reporting.is_set()


async def test_run_specs_of_refused_runs_are_kept_up_to_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "KEPT_RUNS", 2)
    spec_json = process_spec().canonical_json()
    sha256 = hashlib.sha256(spec_json).hexdigest()
    tasks = [task(f"r{number}") for number in range(5)]
    for answer in tasks:
        answer.task.spec_sha256 = sha256
    following: list[int] = []
    polled_often, poll = asyncio.Event(), Transport.poll

    async def noted(self: Transport, held: Any, runs: Any, held_phase: int = 0) -> Any:
        following.append(len(runs))
        if len(following) > 2 * len(tasks):
            polled_often.set()
        return await poll(self, held, runs, held_phase)

    monkeypatch.setattr(Transport, "poll", noted)
    coordinator = evil(tasks, pb.GetRunSpecResponse(spec_json=spec_json, spec_sha256=sha256))
    async with serving_scripted(coordinator) as address, victim(tmp_path, address), asyncio.timeout(LIMIT_S):
        await polled_often.wait()
    assert max(following) == 2


async def test_a_client_asks_again_when_a_new_day_has_a_new_budget_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = iter([False, True])
    monkeypatch.setattr(Budgets, "may_ask_again", lambda _: next(days, False))
    coordinator = evil([pb.PollResponse(wait=pb.Wait(reason=f"{number}")) for number in range(4)])
    async with serving_scripted(coordinator) as address, victim(tmp_path, address), asyncio.timeout(LIMIT_S):
        await coordinator.polled.wait()
    assert coordinator.calls[:4] == ["Hello", "Poll", "Hello", "Poll"]
    assert coordinator.calls.count("Hello") == 2


async def test_a_spec_that_is_not_the_one_of_the_task_is_not_read_and_named_in_the_log(tmp_path: Path) -> None:
    wrong = pb.GetRunSpecResponse(spec_json=b"{}", spec_sha256=SHA)
    coordinator = evil([task("first")], wrong)
    with structlog.testing.capture_logs() as logs:
        async with led_by(coordinator, tmp_path) as (_, worker):
            await coordinator.failed.wait()
        assert worker.orders == []
    assert any(line["event"] == "coordinator.broke_protocol" and line["call"] == "GetRunSpec" for line in logs)


async def test_a_spec_with_another_hash_than_the_task_states_is_not_worked_on(tmp_path: Path) -> None:
    spec_json = process_spec().canonical_json()
    spec = pb.GetRunSpecResponse(spec_json=spec_json, spec_sha256=hashlib.sha256(spec_json).hexdigest())
    coordinator = evil([task("first")], spec)
    async with led_by(coordinator, tmp_path) as (_, worker):
        await coordinator.failed.wait()
    assert worker.orders == []
    assert "ReportFailure SPEC_MISMATCH" in coordinator.calls
    assert "GetManifest" not in coordinator.calls


def refusal(error: Any) -> Any:
    """Returns a failed call as gRPC raises it, with the status of a typed error."""
    status, call = to_status(error), grpc.RpcError()
    facts: Any = call
    facts.code = lambda: status.code
    facts.details = lambda: status.details
    facts.trailing_metadata = lambda: status.trailing_metadata
    return call


def test_the_facts_of_an_error_reach_the_terminal_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise from_rpc_error(refusal(NotFound(what="run", name=ESCAPES)), "here")

    with pytest.raises(SystemExit):
        run_command(command)
    shown = capsys.readouterr().err
    assert "\\x1b[2J" in shown
    assert all(char.isprintable() or char == "\n" for char in shown)


def test_an_error_of_this_machine_with_texts_of_a_spec_is_shown_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise PolicyForbids(key="allowed_embedding_models", asked=ESCAPES, allowed="none")

    with pytest.raises(SystemExit):
        run_command(command)
    assert all(char.isprintable() or char == "\n" for char in capsys.readouterr().err)


@pytest.mark.parametrize("error", [KeyError(ESCAPES), OSError(ESCAPES)])
def test_an_error_that_nobody_expected_is_one_line_with_its_place(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_command(command)
    shown = capsys.readouterr().err
    assert ended.value.code == BROKEN
    assert shown.endswith("\n")
    assert shown[:-1].isprintable()
    assert "\\x1b" in shown
    assert "test_evil_answers.py:" in shown


def test_texts_in_an_answer_to_an_operator_are_printable() -> None:
    run = resources.Run(name="runs/first", next=ESCAPES, outcome_reason=ESCAPES)
    run.participants.add(client="ann", group=ESCAPES, reason=ESCAPES, stage=ESCAPES)
    run.refusals.add(client="ann", message=ESCAPES)
    escaped = "\\x1b[2J\\x1b]0;owned\\x07\\u202e\\r"
    (person,), (refused,) = plain(run)["participants"], plain(run)["refusals"]
    texts = [plain(run)["next"], plain(run)["outcome_reason"], refused["message"]]
    assert {*texts, *(person[field] for field in ("group", "reason", "stage"))} == {escaped}
    event = resources.RunEvent(kind="PlaceLost")
    event.facts.update({"client": "ann", "reason": ESCAPES, ESCAPES: [ESCAPES]})
    assert plain(event)["facts"] == {"client": "ann", "reason": escaped, escaped: [escaped]}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Joined(b"", MemberRole.CLIENT, "Other", GroupRole.TRAIN, awaiting_approval=False), "group is G"),
        (
            Joined(b"", MemberRole.CLIENT, "G", GroupRole.HELD_OUT, awaiting_approval=False),
            "role of the group is train",
        ),
        (Joined(b"", MemberRole.CLIENT, "G", None, awaiting_approval=False), "role of the group is train"),
        (Joined(b"", MemberRole.ADMIN, "G", GroupRole.TRAIN, awaiting_approval=False), "role is client"),
    ],
)
def test_the_answer_to_join_must_be_what_the_invite_promised(
    answer: Joined, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invite_of_ann: Invite
) -> None:
    monkeypatch.setattr(joining, "spend", lambda *_: answer)
    with pytest.raises(InviteInvalid, match=problem):
        joining.join(invite_of_ann, tmp_path / "identity", "pluralllm-client", frozenset({MemberRole.CLIENT}))
    assert not (tmp_path / "identity" / "identity.json").exists()


@pytest.fixture
def invite_of_ann() -> Invite:
    key = new_key()
    root = sign_authority("f", key, None, key, 86_400.0, time.time())
    return Invite(
        federation="f",
        name="ann",
        role=MemberRole.CLIENT,
        group="G",
        coordinator="127.0.0.1:1",
        enrolment="127.0.0.1:2",
        authority=base64.b64encode(root.public_bytes(Encoding.DER)).decode(),
        token="t" * 43,
        expires=datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC),
    )
