"""The real daemon with its real worker process, against a real coordinator in this process."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.commands import CLIENT, typed
from support.coordinator_harness import Served, serving, write_delta
from support.cutting_proxy import CuttingProxy
from support.installed_package import METHODS, Site, of_page
from support.open_policy import open_policy
from support.process_harness import process_spec, tiny_embedding_model
from support.session_folder import embeddings
from support.small_survey import KERNEL

from pluralllm.client.daemon.daemon import Daemon
from pluralllm.client.data.private_data import write_group
from pluralllm.client.data.private_file import PrivateFile
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.joining.partner import load_partner
from pluralllm.client.keeping.history import History
from pluralllm.client.link.transport import Transport
from pluralllm.client.process.config import ClientConfig
from pluralllm.client.work.orders import EVALUATE, Evaluate
from pluralllm.client.work.worker_process import WorkerProcess
from pluralllm.common.errors.tree import SessionReplaced, WorkerDied
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.predictor.metrics import MAX_JS_DISTANCE
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.trust.identity import Identity
from pluralllm.common.weights.chunks import CHUNK_BYTES
from pluralllm.common.weights.update_format import update_format
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.ids import Digest, RoundNumber, RunId, TaskId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole, RunSpec, UpdateEncoding
from pluralllm.v1 import operations_pb2
from pluralllm.v1 import resources_pb2 as rpb

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("forked_workers")]
LIMIT_S = 60.0
ALONE = {"min_clients": 1, "target_clients": 1}


@pytest.fixture(scope="module")
def embedding_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedding_model(tmp_path_factory.mktemp("model"))


class Running:
    """One daemon as a task of this process."""

    def __init__(
        self, folder: Path, model: Path, identity: Identity, policy: Policy, address: str | None, **settings: Any
    ) -> None:
        folder.mkdir(exist_ok=True)
        data = folder / "answers.jsonl"
        if not data.is_file():
            write_group(data, next(iter(sample_groups(2, 60, 0).values())))
        self.config = ClientConfig(
            **{
                "data": data,
                "state_dir": folder / "state",
                "identity": identity.folder,
                "coordinator": address or identity.membership.coordinator,
                "cache_dir": embeddings(),
                "embedding_model_path": model,
                "threads": 1,
                **settings,
            }
        )
        (folder / "state").mkdir(exist_ok=True)
        partner = load_partner(self.config)
        assert partner.identity is not None
        self.transport = Transport.of_member(partner.identity)
        self.worker = WorkerProcess()
        self.daemon = Daemon(
            self.config, partner, policy, PrivateFile(data, folder / "state"), self.transport, self.worker
        )
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self.daemon.run(self.stop))

    async def end(self) -> None:
        self.stop.set()
        await asyncio.wait_for(self.task, 30)


@contextlib.asynccontextmanager
async def daemon(
    folder: Path,
    model: Path,
    served: Served,
    policy: Policy | None = None,
    role: GroupRole = GroupRole.TRAIN,
    address: str | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """Runs the daemon of the member ann."""
    identity = await served.member("ann", MemberRole.CLIENT, "G", role)
    running = Running(folder, model, identity, policy or open_policy(), address, **settings)
    try:
        yield running
    finally:
        running.stop.set()
        await asyncio.gather(running.task, return_exceptions=True)
        await running.transport.close()


async def until_run(served: Served, holds: Any, limit_s: float = LIMIT_S) -> rpb.Run:
    async with asyncio.timeout(limit_s):
        while not holds(run := await served.run("r")):
            await served.parts.run_bell.wait(served.parts.run_bell.rings, 0.1)
    return run


def ended(run: rpb.Run) -> bool:
    return run.phase == rpb.RUN_PHASE_ENDED


@pytest.mark.parametrize(("encoding", "predictor"), [("fp32", {}), ("bf16", KERNEL), ("int8", {})])
async def test_a_daemon_trains_evaluates_and_ends_with_the_run(
    encoding: UpdateEncoding, predictor: dict[str, Any], tmp_path: Path, embedding_model: Path
) -> None:
    spec = process_spec(rounds=2, round=ALONE, updates={"encoding": encoding}, predictor=predictor)
    async with serving(tmp_path / "server", SystemClock(), silence_s=5) as served:
        await served.create("r", spec)
        async with daemon(tmp_path / "ann", embedding_model, served, exit_when_run_over=True) as running:
            run = await until_run(served, ended)
            await asyncio.wait_for(running.task, 20)
            pid = running.worker.pid
        assert (run.version, run.outcome) == (2, rpb.RUN_OUTCOME_COMPLETED)
        assert [(score.version, 0 < score.alignment_score < 1) for score in run.evaluations] == [(2, True)]
        assert run.received_bytes == 2 * update_format(layout_for(spec), encoding).size_bytes
        assert pid is None, "the worker process is still there"
        assert list((tmp_path / "ann" / "state" / "drafts").iterdir()) == []
        assert list((tmp_path / "ann" / "state" / "outbox").iterdir()) == []
        seen = History(tmp_path / "ann" / "state" / "history").seen(RunId("r"))
        assert {version: record.updates for version, record in seen.versions.items()} == {0: 0, 1: 1, 2: 1}
        assert {number: sent.acknowledged for number, (sent,) in seen.own_updates.items()} == {1: True, 2: True}


@pytest.mark.parametrize("allowed", [True, False])
async def test_the_base_distance_is_in_the_receipt_only_if_the_policy_lets_it_leave(
    tmp_path: Path, embedding_model: Path, allowed: bool
) -> None:
    metrics = frozenset({"alignment_score", *(["base_distance"] if allowed else [])})
    spec = process_spec(rounds=1, round=ALONE, aggregation={"weighting": "q_fair"})
    async with serving(tmp_path / "server", SystemClock(), silence_s=5) as served:
        await served.create("r", spec)
        policy = open_policy(allowed_metrics=metrics)
        async with daemon(tmp_path / "ann", embedding_model, served, policy, exit_when_run_over=True):
            await until_run(served, ended)
        (row,) = await served.parts.store.receipts(RunId("r"), RoundNumber(1))
        assert (row.receipt.distance is not None) == allowed
        assert 0 < (row.receipt.distance or 0.3) < MAX_JS_DISTANCE


async def test_a_held_out_daemon_evaluates_only(tmp_path: Path, embedding_model: Path) -> None:
    async with serving(tmp_path / "server", SystemClock(), silence_s=5) as served:
        await served.create("r", process_spec(round={**ALONE, "gather_s": 0.1}))
        async with daemon(tmp_path / "ann", embedding_model, served, role=GroupRole.HELD_OUT) as running:
            await asyncio.wait_for(_connected(served), 20)
            assert (await served.run("r")).phase == rpb.RUN_PHASE_WAITING
            assert not running.task.done()


async def _connected(served: Served) -> None:
    while not served.parts.sessions.live(served.clock.now_s()):
        await served.parts.run_bell.wait(served.parts.run_bell.rings, 0.05)


async def _lost(served: Served, reason: str) -> rpb.Run:
    def holds(run: rpb.Run) -> bool:
        return any(reason in person.reason for person in run.participants)

    return await until_run(served, holds)


@pytest.mark.parametrize(
    ("policy", "changes", "reason"),
    [
        (
            open_policy(min_cohort=2),
            {},
            "CONSENT_NEEDED: This partner has not consented to run r: round.min_clients is 1",
        ),
        (open_policy(), {"embedding": {"dimension": 34}}, "EMBEDDING_MISMATCH"),
        (
            open_policy(),
            {"training": {"episodes": {"min_context": 90, "min_targets": 90}}},
            "TOO_FEW_QUESTIONS: Group G has",
        ),
    ],
)
async def test_a_task_this_client_may_not_or_cannot_do_is_reported_with_its_reason_and_nothing_is_pushed(
    tmp_path: Path, embedding_model: Path, policy: Policy, changes: dict[str, Any], reason: str
) -> None:
    async with serving(tmp_path / "server", SystemClock(), silence_s=5) as served:
        await served.create("r", process_spec(round=ALONE, **changes))
        async with daemon(tmp_path / "ann", embedding_model, served, policy) as running:
            run = await _lost(served, reason)
            assert run.received_bytes == 0
            assert running.transport.traffic.sent_bytes == 0
            assert not running.task.done(), "the daemon lives on"


async def test_after_the_owners_consent_the_same_daemon_takes_part_in_the_run_that_it_refused(
    tmp_path: Path, embedding_model: Path
) -> None:
    state = tmp_path / "ann" / "state"
    async with serving(tmp_path / "server", SystemClock(), silence_s=5, poll_hold_s=1) as served:
        await served.create("r", process_spec(rounds=1, round=ALONE))
        async with daemon(tmp_path / "ann", embedding_model, served, open_policy(min_cohort=3)) as running:
            assert (await _lost(served, "CONSENT_NEEDED")).received_bytes == 0
            command = await asyncio.to_thread(typed, CLIENT, "consent", "r", "--state-dir", state, "--yes")
            assert "  round.min_clients is 1, allowed is at least 3 (min_cohort)" in command.stdout.splitlines()
            run = await until_run(served, ended)
            assert (run.version, run.outcome) == (1, rpb.RUN_OUTCOME_COMPLETED)
            assert not running.task.done()


async def test_a_daemon_runs_the_embedder_of_a_package_only_if_its_policy_allows_the_package(
    tmp_path: Path, embedding_model: Path, site: Site
) -> None:
    site.install("town_hall_methods")
    vectors = Embedding.model_validate(of_page("embedding"))
    spec = process_spec(rounds=1, round=ALONE).model_copy(update={"embedding": vectors})
    own_cache: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
    async with serving(tmp_path / "server", SystemClock(), silence_s=5) as served:
        await served.create("r", spec)
        async with daemon(tmp_path / "ann", embedding_model, served, **own_cache):
            assert (await _lost(served, "allowed_embedders is letter-counts of town-hall")).received_bytes == 0
        assert not (tmp_path / "cache").exists()
        policy = open_policy(allowed_embedders=[METHODS], allowed_embedding_models=[])
        async with daemon(tmp_path / "ann", embedding_model, served, policy, **own_cache):
            run = await until_run(served, ended)
        assert (run.version, run.outcome) == (1, rpb.RUN_OUTCOME_COMPLETED)
    assert (tmp_path / "cache" / "embeddings.sqlite3").is_file()


async def test_a_cancelled_task_stops_soon(tmp_path: Path, embedding_model: Path) -> None:
    spec = process_spec(round=ALONE, training={"local_steps": 100_000})
    async with serving(tmp_path / "server", SystemClock(), silence_s=5) as served:
        await served.create("r", spec)
        allowed = open_policy(max_local_steps=100_000)
        async with daemon(tmp_path / "ann", embedding_model, served, allowed) as running:
            await until_run(served, lambda run: any(person.stage == "training" for person in run.participants))
            await served.operations.CancelRun(operations_pb2.CancelRunRequest(name="runs/r"), timeout=10)
            async with asyncio.timeout(20):  # two seconds on an idle machine; the training takes minutes
                while running.daemon.is_working:
                    await served.parts.run_bell.wait(served.parts.run_bell.rings, 0.02)


async def test_a_worker_that_dies_costs_one_try_and_not_the_daemon(tmp_path: Path, embedding_model: Path) -> None:
    spec = process_spec(rounds=1, round=ALONE, training={"local_steps": 100})
    async with serving(tmp_path / "server", SystemClock(), silence_s=5) as served:
        await served.create("r", spec)
        async with daemon(tmp_path / "ann", embedding_model, served) as running:
            await until_run(served, lambda run: any(person.stage == "training" for person in run.participants))
            await running.worker.kill()
            run = await until_run(served, ended)
            assert run.outcome == rpb.RUN_OUTCOME_COMPLETED


async def test_a_private_file_that_changes_under_a_run_costs_neither_a_task_nor_the_run(
    tmp_path: Path, embedding_model: Path
) -> None:
    """The file grows while the daemon runs, and shrinks while it is away; the weight stays that of the first update."""
    questions = next(iter(sample_groups(2, 80, 0).values()))
    (tmp_path / "ann").mkdir()
    data = tmp_path / "ann" / "answers.jsonl"

    async def change(count: int) -> None:
        """Changes the file between two rounds."""
        await served.operations.PauseRun(operations_pb2.PauseRunRequest(name="runs/r"), timeout=10)
        await until_run(served, lambda run: run.phase == rpb.RUN_PHASE_WAITING)
        await asyncio.to_thread(write_group, data, questions[:count])

    async def resume() -> None:
        """Goes on for at least one round."""
        await served.operations.ResumeRun(operations_pb2.ResumeRunRequest(name="runs/r"), timeout=10)
        version = (await served.run("r")).version
        await until_run(served, lambda run: run.version > version)

    await asyncio.to_thread(write_group, data, questions[:60])
    async with serving(tmp_path / "server", SystemClock(), silence_s=5) as served:
        await served.create("r", process_spec(rounds=60, round={**ALONE, "evaluate_every": 100}))
        with capture_logs() as logs:
            async with daemon(tmp_path / "ann", embedding_model, served):
                await until_run(served, lambda run: run.version >= 1)
                await change(80)
                await resume()
                await change(50)
            async with daemon(tmp_path / "ann", embedding_model, served):
                await resume()
        run = await served.run("r")
        receipts = [await served.parts.store.receipts(RunId("r"), RoundNumber(n)) for n in range(1, run.version + 1)]
        assert len({row.receipt.examples for rows in receipts for row in rows}) == 1
        changes = [(line["questions_before"], line["questions"]) for line in logs if line["event"] == "data.changed"]
        assert changes == [(60, 80), (80, 50)]
        assert not [line for line in logs if line["event"] in ("task.failed", "update.refused")]
        [person] = run.participants
        assert "its private file has changed on" in person.reason
        assert f"50 questions now, its weight stays {receipts[0][0].receipt.examples}" in person.reason


async def test_a_second_daemon_of_one_client_ends_the_first_with_a_reason(
    tmp_path: Path, embedding_model: Path
) -> None:
    async with (
        serving(tmp_path / "server", SystemClock(), silence_s=5) as served,
        daemon(tmp_path / "ann", embedding_model, served) as first,
    ):
        await asyncio.wait_for(_connected(served), 20)
        async with daemon(tmp_path / "other", embedding_model, served):
            with pytest.raises(SessionReplaced):
                await asyncio.wait_for(first.task, 40)


async def test_the_worker_answers_in_leaves_and_notices_that_it_is_not_wanted(tmp_path: Path) -> None:
    """The text of an unexpected exception may be private, and the answer goes to the coordinator."""
    worker = WorkerProcess()
    with pytest.raises(WorkerDied, match="KeyError") as died:
        await worker.ask(EVALUATE, Evaluate(Digest("a private text"), tmp_path, 0), lambda *_: None)
    assert "a private text" not in str(died.value)
    assert worker.pid is not None
    await worker.stop()
    assert worker.pid is None


def big_spec() -> RunSpec:
    """Returns the spec of a model of about 64 MB."""
    return process_spec(
        rounds=1,
        round=ALONE,
        predictor={"d_model": 768, "layers": 4, "feedforward": 768, "embedder_layers": 4, "heads": 4},
    )


async def test_a_connection_lost_in_the_middle_of_64_mb_costs_only_the_missing_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real gRPC runs through a proxy that cuts the connection after 30 MB; the transport resumes by itself."""
    spec = big_spec()
    async with serving(tmp_path / "server", SystemClock(), silence_s=600) as served:
        await served.create("r", spec)
        hand = await served.client("ann")
        await hand.evaluate(await hand.task())
        task = await hand.task()
        path = tmp_path / "delta"
        manifest = await asyncio.to_thread(write_delta, path, spec, 1)
        assert manifest.size_bytes > 60_000_000
        cuts: list[float] = []
        proxy = CuttingProxy(served.address, 30_000_000, lambda: cuts.append(time.monotonic()))
        transport = Transport.of_member((await served.member("ann", MemberRole.CLIENT)).at(proxy.address))
        begin, begun = served.parts.intake.begin, list[tuple[int, Any]]()

        async def begin_and_note(*arguments: Any, **limits: Any) -> Any:
            answer = await begin(*arguments, **limits)
            begun.append((transport.traffic.sent_bytes, answer))
            return answer

        monkeypatch.setattr(served.parts.intake, "begin", begin_and_note)
        try:
            await transport.push_update(
                TaskId(task.name), path, manifest, Digest(task.spec_sha256), Digest(task.base_digest), 50, {}
            )
        finally:
            await transport.close()
            proxy.close()
        run = await served.run("r")
        # The chunk that was written when the connection broke is kept, but its call ended before it was counted.
        assert 0 <= manifest.size_bytes - run.received_bytes <= CHUNK_BYTES, "a chunk was taken twice"
        assert len(cuts) == 1, "the connection was not cut"
        sent_before_bytes, missing = begun[-1]
        assert len(begun) == 2
        assert 0 < len(missing) < manifest.chunks
        assert transport.traffic.sent_bytes - sent_before_bytes == sum(map(manifest.chunk_size, missing))
        assert await served.parts.blobs.exists(manifest.digest)
