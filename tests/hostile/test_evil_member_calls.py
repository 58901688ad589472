"""A member calls as often as it can, and calls what it may not: others notice nothing, and no disk fills."""

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs
from support.coordinator_harness import (
    BOOTSTRAP,
    HandClient,
    Served,
    advance,
    pass_first_evaluation,
    serving,
    small_spec,
    until_phase,
    write_delta,
)

from pluralllm.client.link.rests import rest_s
from pluralllm.client.link.tasks import Introduction
from pluralllm.client.link.transport import Transport
from pluralllm.common.errors.membership import RoleForbids, TooManyCalls
from pluralllm.common.errors.tree import AlreadyCommitted, InvalidArgument, PluralError, WrongLayout, reason_of
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.words.ids import ClientId, RunId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.operator.remote import Remote
from pluralllm.server.members.access import Principal
from pluralllm.server.rpc.first_message import HURRIED, PATIENT
from pluralllm.server.rpc.messages import event_message
from pluralllm.server.runs import troubles
from pluralllm.server.runs.intake import Intake
from pluralllm.server.runs.overview import COMES_AND_GOES
from pluralllm.server.runs.presence import COMING_EACH_S, COMINGS_AT_ONCE
from pluralllm.server.storage.store import ClientRecord
from pluralllm.v1 import federation_pb2 as pb
from pluralllm.v1 import operations_pb2 as ops
from pluralllm.v1 import operations_pb2_grpc
from pluralllm.v1 import resources_pb2 as rpb

SPEC = small_spec(rounds=1)
CYCLES = 121  # of a client that comes and goes, 12 s each; the last one finds no token
ADMIN = Principal(ClientId("admin"), MemberRole.ADMIN)


async def repeated(attack: Any, times: int) -> Counter[str]:
    """Calls `attack` so many times, twenty at a time. Returns the refusals by name."""
    outcomes: Counter[str] = Counter()

    async def attacks(share: int) -> None:
        for _ in range(share):
            try:
                await attack()
                outcomes["none"] += 1
            except PluralError as error:
                outcomes[type(error).__name__] += 1

    await asyncio.gather(*(attacks(times // 20) for _ in range(20)))
    return outcomes


class Writes:
    """Counts the rows of clients that a coordinator writes."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[ClientRecord] = []
        real = served.parts.store.save_client

        async def counted(record: ClientRecord) -> None:
            self.rows.append(record)
            await real(record)

        monkeypatch.setattr(served.parts.store, "save_client", counted)


@contextlib.asynccontextmanager
async def latencies(served: Served, client: HandClient) -> AsyncIterator[list[float]]:
    """Makes calls as a member while the block runs: it reads, reports its state, and says Hello once a second."""
    observer = served.channel_of(await served.member("olga", MemberRole.OBSERVER))
    stub: Any = operations_pb2_grpc.OperationsServiceStub(observer)
    times_s: list[float] = []

    async def calls() -> None:
        number = 0
        while True:
            number += 1
            started_s = time.monotonic()
            if number % 40 == 0:
                await client.hello()
            elif number % 2:
                await stub.GetRun(ops.GetRunRequest(name="runs/r"), timeout=20)
            else:
                await client.poll()
            times_s.append(time.monotonic() - started_s)
            await asyncio.sleep(max(0.0, 0.025 - times_s[-1]))

    calling = asyncio.create_task(calls())
    try:
        yield times_s
    finally:
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calling


async def test_a_flood_of_hellos_is_refused_writes_nothing_and_delays_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "state", SystemClock()) as served:
        ann, mallory = await served.client("ann"), await served.client("mallory")
        await served.create("r", SPEC, start=False)
        writes = Writes(served, monkeypatch)

        async def another_daemon() -> None:
            mallory.instance = f"daemon-{time.monotonic()}"
            await mallory.hello()

        async with latencies(served, ann) as times_s:
            outcomes = await repeated(another_daemon, 2000)
        assert outcomes["TooManyCalls"] >= 1900
        assert set(outcomes) == {"none", "TooManyCalls"}
        assert writes.rows == []
        assert len(times_s) > 20
        assert sorted(times_s)[math.ceil(0.99 * len(times_s)) - 1] < 0.5, "the test and the coordinator share a process"
        entries = [entry for entry, _ in await served.registry.audit.entries(0, 1000)]
        assert [entry.result for entry in entries if entry.actor == "mallory"].count("TOO_MANY_CALLS") == 1


async def test_one_call_too_often_leaves_the_other_calls_and_the_other_members_alone(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", SystemClock()) as served:
        ann, mallory = await served.client("ann"), await served.client("mallory")
        for _ in range(9):  # and one to come in
            await mallory.hello()
        with pytest.raises(TooManyCalls) as refusal:
            await mallory.hello()
        assert (refusal.value.name, refusal.value.rpc) == ("mallory", "Hello")
        assert 0 < refusal.value.retry_s <= 1
        await mallory.poll()
        await ann.hello()


async def test_a_flood_of_polls_is_refused_above_five_hundred_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", SystemClock(), calls_per_member=1000) as served:
        mallory = await served.client("mallory")
        started_s = time.monotonic()
        outcomes = await repeated(mallory.poll, 1500)
        least = 500 + 50 * (time.monotonic() - started_s)
        assert abs(outcomes["none"] - least) <= 20, outcomes
        assert outcomes["TooManyCalls"] == 1500 - outcomes["none"]


async def test_a_revoked_certificate_fills_no_log_and_takes_no_calls_from_its_owner(tmp_path: Path) -> None:
    """Ten calls may come at once, and one a second after them."""
    async with serving(tmp_path / "state", SystemClock(), calls_per_second=1) as served:
        thief = await served.client("ann")
        await served.registry.revoke(BOOTSTRAP, "ann", "key stolen")
        (served.identities / "ann" / "credentials.pem").unlink()
        served.channels["thief"] = served.channels.pop("ann")
        owner = await served.client("ann")
        with capture_logs() as logs:
            outcomes = await repeated(thief.poll, 200)
            for _ in range(5):
                await owner.poll()
        assert set(outcomes) == {"CertificateRevoked", "TooManyCalls"}
        assert outcomes["TooManyCalls"] > 150
        assert len([line for line in logs if line["event"].startswith("audit")]) < 10


async def test_calls_that_a_role_forbids_fill_no_log_whatever_they_name(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", SystemClock(), calls_per_second=1000) as served:
        await served.client("mallory")
        stub: Any = operations_pb2_grpc.OperationsServiceStub(served.channels["mallory"])
        before, number = served.registry.audit.head[0], iter(range(10_000))

        async def forbidden() -> None:
            with contextlib.suppress(Exception):
                await stub.CancelRun(ops.CancelRunRequest(name=f"runs/{next(number)}"), timeout=20)

        with capture_logs() as logs:
            await repeated(forbidden, 1000)
        entries = [entry for entry, _ in await served.registry.audit.entries(before, 1000)]
        assert {entry.result for entry in entries} == {reason_of(RoleForbids)}
        assert len(entries) == 100
        assert len([line for line in logs if line["event"].startswith("audit.")]) <= 102


async def ready(served: Served, tmp_path: Path) -> tuple[HandClient, HandClient, pb.Task]:
    ann, mallory = await served.client("ann"), await served.client("mallory")
    await served.create("r", SPEC)
    await pass_first_evaluation(ann, mallory)
    return ann, mallory, await mallory.task()


async def events(served: Served) -> Counter[str]:
    return Counter(record.kind for record in await served.parts.store.events(RunId("r"), 0, 10_000))


async def test_refused_updates_become_few_events_in_the_open_round_and_none_afterwards(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", calls_per_second=1000) as served:
        ann, mallory, task = await ready(served, tmp_path)
        path = tmp_path / "delta"
        manifest = write_delta(path, SPEC, 1)
        wrong: list[dict[str, Any]] = [{"spec_sha256": "0" * 64}, {"base_digest": "1" * 64}, {"examples": 0}]
        for changes in wrong:
            await advance(served, 1.0)
            outcomes = await repeated(lambda changes=changes: mallory.begin(task, manifest, **changes), 100)
            assert outcomes["none"] == 0
        recorded = (await events(served))["UpdateRefused"]
        assert 1 <= recorded <= 5
        run = await served.run("r")
        people = {person.client: person.reason for person in run.participants}
        assert people["mallory"] == "300 updates refused"
        assert people["ann"] == ""
        await mallory.push(task, path, manifest)
        other = write_delta(tmp_path / "other", SPEC, 2)
        assert (await repeated(lambda: mallory.begin(task, other), 100))["AlreadyCommitted"] == 100
        assert (await events(served))["UpdateRefused"] == recorded
        ann_task = await ann.task()
        await ann.push(ann_task, tmp_path / "ann", write_delta(tmp_path / "ann", SPEC, 3))
        await until_phase(served, "r", rpb.RUN_PHASE_EVALUATING)
        for client in (ann, mallory):
            await client.evaluate(await client.task())
        await until_phase(served, "r", rpb.RUN_PHASE_ENDED)
        before = await events(served)
        with capture_logs() as logs, pytest.raises(AlreadyCommitted):
            await mallory.begin(task, other)
        await repeated(lambda: mallory.begin(task, other), 100)
        assert await events(served) == before
        assert not [line for line in logs if line["event"] == "update.refused"]


async def test_a_long_text_of_a_member_comes_into_a_log_and_out_of_an_old_log_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "state", calls_per_second=1000) as served:
        _, mallory, task = await ready(served, tmp_path)
        manifest = write_delta(tmp_path / "delta", SPEC, 1)

        def refusing(*_: object) -> None:
            raise WrongLayout(problem="\x1b" + "A" * 3_000_000)

        monkeypatch.setattr(Intake, "_check_announcement", refusing)
        with monkeypatch.context() as earlier:
            earlier.setattr(troubles, "MAX_PROBLEM", 3_000_000)
            with pytest.raises(PluralError):
                await mallory.begin(task, manifest)
        with pytest.raises(PluralError):
            await mallory.begin(task, manifest)
        records = await served.parts.store.events(RunId("r"), 0, 10_000)
        old, new = [record for record in records if record.kind == "UpdateRefused"]
        assert len(str(old.facts["message"])) > 1_000_000
        assert len(str(new.facts["message"])) < 500
        assert "\x1b" not in str(new.facts["message"])
        assert event_message(old, ADMIN).ByteSize() < 3_000
        assert (await served.run("r")).ByteSize() < 10_000


async def test_refusals_in_one_round_after_another_leave_no_events_behind(tmp_path: Path) -> None:
    """A task of a past round is refused without an event, so that rounds in turn do not push each other out."""
    spec = small_spec(rounds=3)
    async with serving(tmp_path / "state", calls_per_second=1000) as served:
        ann, mallory = await served.client("ann"), await served.client("mallory")
        await served.create("r", spec)
        await pass_first_evaluation(ann, mallory)
        tasks = []
        for number in range(2):
            for client in (ann, mallory):
                task = await client.task()
                tasks.append(task)
                path = tmp_path / f"{client.name}-{number}"
                await client.push(task, path, write_delta(path, spec, number))
        await mallory.task()
        other = write_delta(tmp_path / "other", spec, 9)
        for _ in range(5):
            for task in tasks[1::2]:
                await repeated(lambda task=task: mallory.begin(task, other), 20)
        assert (await events(served))["UpdateRefused"] == 0


async def test_metrics_of_unknown_names_are_not_kept(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        _, mallory, task = await ready(served, tmp_path)
        path = tmp_path / "delta"
        manifest = write_delta(path, SPEC, 1)
        names = {"loss": 0.5, "x" * 100_000: 1.0, "event": 2.0, "\x1b[2J": 3.0}
        with capture_logs() as logs:
            await mallory.begin(task, manifest, metrics=names)
            await mallory.put(task, path, manifest, range(manifest.chunks))
            await mallory.commit(task, manifest)
        [line] = [line for line in logs if line["event"] == "update.accepted"]
        assert {key: value for key, value in line.items() if key.startswith("metric_")} == {"metric_loss": 0.5}
        assert len(str(line)) < 1000
        with pytest.raises(InvalidArgument, match="at most 50"):
            await mallory.begin(task, manifest, metrics={str(number): 1.0 for number in range(51)})


@pytest.mark.parametrize(("runs", "is_refused"), [(1000, False), (1001, True)])
async def test_a_poll_follows_a_thousand_runs_at_most(tmp_path: Path, runs: int, is_refused: bool) -> None:
    async with serving(tmp_path / "state") as served:
        mallory = await served.client("mallory")
        following = [f"r{number}" for number in range(runs)]
        if not is_refused:
            await mallory.poll(following=following)
            return
        with pytest.raises(InvalidArgument, match="names 1001 runs, at most 1000"):
            await mallory.poll(following=following)


async def test_a_client_that_fails_for_good_and_comes_back_at_once_makes_few_events(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", hellos_per_minute=60_000) as served:
        _, mallory, task = await ready(served, tmp_path)
        request = pb.ReportFailureRequest(task=task.name, kind=pb.FAILURE_KIND_PERMANENT, reason="X", message="y")
        for _ in range(100):
            await mallory.call("ReportFailure", request)
            await mallory.hello()
            await mallory.poll()
        seen = await events(served)
        assert seen["PlaceLost"] <= 3
        assert seen["ClientReturned"] <= 3


async def test_a_member_that_sends_headers_only_leaves_the_open_calls_to_others(tmp_path: Path) -> None:
    methods = ("FederationService/Poll", "FederationService/PutChunks", "OperationsService/WatchRun")
    async with serving(tmp_path / "state", max_concurrent_rpcs=PATIENT + HURRIED + 16) as served:
        ann = await served.client("ann")
        channel: Any = served.channel_of(await served.member("mallory", MemberRole.CLIENT, "group of mallory"))
        await channel.channel_ready()

        def attack() -> set[asyncio.Task[grpc.StatusCode]]:
            calls = [channel.stream_stream(f"/pluralllm.v1.{methods[number % 3]}")(timeout=60) for number in range(120)]
            return {asyncio.create_task(call.code()) for call in calls}

        async with asyncio.timeout(20):  # a moment, where each of them could wait for half a minute
            waiting = attack()
            for _ in range(20):
                await ann.poll()
            while len(waiting) > PATIENT:
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert set(await asyncio.gather(*attack())) == {grpc.StatusCode.OUT_OF_RANGE}
            for _ in range(20):
                await ann.poll()
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()


@pytest.mark.parametrize("comes_by", ["Hello", "Poll"])
async def test_a_member_that_comes_and_goes_for_hours_leaves_few_events(tmp_path: Path, comes_by: str) -> None:
    spec = small_spec(round={"min_clients": 2, "target_clients": 3, "gather_s": 1e6})
    async with serving(tmp_path / "state", silence_s=7, hellos_per_minute=6000) as served:
        ann, mallory = await served.client("ann"), await served.client("mallory")
        await served.member("zoe", MemberRole.CLIENT, "Z")  # never connects, so the run waits for it
        await served.create("r", spec)
        run = served.parts.runs.get(RunId("r"))
        for _ in range(CYCLES):
            await (mallory.hello() if comes_by == "Hello" else mallory.poll())
            await ann.poll()
            await served.coordinator.advance(run)
            await advance(served, 6)
            await ann.poll()
            await served.coordinator.advance(run)
            await advance(served, 6)
            await served.coordinator.advance(run)  # sees that mallory is gone; the loop looks after 50 ms of real time
        events = await served.parts.store.events(RunId("r"), 0, 10_000)
        await mallory.poll()
        await ann.poll()
        await served.coordinator.advance(run)
        message = await served.run("r")
        shown = {person.client: person for person in message.participants}
    comings = COMINGS_AT_ONCE + CYCLES * 12 / COMING_EACH_S
    assert (
        2 * COMINGS_AT_ONCE < len(events) <= 4 * comings + 10
    )  # a coming, a going, and what the gathering run makes of them
    assert (shown["ann"].reason, shown["mallory"].reason) == ("", COMES_AND_GOES)
    assert "(1 now, at least 3)" in message.next


async def test_an_honest_client_waits_for_its_next_hello_and_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", SystemClock()) as served:
        identity = await served.member("ann", MemberRole.CLIENT, "A")
        transport = Transport.of_member(identity)
        started_s = time.monotonic()
        for _ in range(12):
            while True:  # as the daemon's loop does
                try:
                    await transport.hello(Introduction("A", GroupRole.TRAIN, 50))
                    break
                except TooManyCalls as refusal:
                    await asyncio.sleep(rest_s(refusal.retry_s))
        assert 1.5 < time.monotonic() - started_s < 15
        await transport.close()


async def test_an_administrators_command_that_reads_many_pages_waits_for_the_next_ones(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", SystemClock(), calls_per_second=1) as served:
        identity = load_identity(served.identities / "admin", "").at(served.address)
        remote = Remote.of_member(identity)
        started_s = time.monotonic()
        for _ in range(12):
            assert await asyncio.to_thread(remote.runs) == []
        assert 1.5 < time.monotonic() - started_s < 20
        await asyncio.to_thread(remote.close)
