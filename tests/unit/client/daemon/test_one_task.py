"""The daemon does one task: its work, the numbers that it hands in, and the files that it keeps when something fails."""

import asyncio
import json
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs
from support.open_policy import open_policy
from support.process_harness import process_spec
from support.tasks import task_of

from pluralllm.client.daemon.daemon import KEPT_RUNS, Daemon
from pluralllm.client.daemon.work_under_way import Work
from pluralllm.client.disclosure.measurements import MeasuredScores, MeasuredTraining
from pluralllm.client.disclosure.outgoing import IN_LOG
from pluralllm.client.disclosure.own_scores import KEPT_BACK, OWN_SCORES, OwnScoresFolder
from pluralllm.client.disclosure.policy import METRICS, Policy, RespondentPrivacy
from pluralllm.client.joining.partner import Partner
from pluralllm.client.keeping.drafts import next_state
from pluralllm.client.keeping.working_folders import WORKING_FOLDERS
from pluralllm.client.link.tasks import Greeting, Introduction, RosterPage, RunOver, Scores, SignedRecord, Task, Wait
from pluralllm.client.privacy.accountant import epsilon_of
from pluralllm.client.privacy.entries import Charge, Released, head_of, line_of
from pluralllm.client.process.config import ClientConfig
from pluralllm.client.process.instruments import REGISTRY
from pluralllm.client.work.orders import EVALUATE, PREPARE, TRAIN, Prepared, TrainedUpdate
from pluralllm.common import __version__
from pluralllm.common.errors.tree import (
    Corrupt,
    LeaseLost,
    NormTooLarge,
    NotFinite,
    PluralError,
    RoundClosed,
    StaleSession,
    StorageFull,
    StoreFailed,
    Unreachable,
)
from pluralllm.common.predictor.architecture import layout_for, version_layout
from pluralllm.common.private_rounds.peer_keys import PeerKeyClaim, fingerprint, is_proven
from pluralllm.common.private_rounds.roster import Roster, RosterChange, RosterEntry
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.not_reported import NotReported
from pluralllm.common.words.spec import GroupRole

QUESTIONS = 40
SPEC = process_spec()
SUMS = process_spec(
    predictor={"architecture": "kernel-sums/1", "features": 64, "group_rank": 2}, aggregation={"weighting": "uniform"}
)
FIRST = VersionRecord(
    RunId("r"), ModelVersion(0), RoundNumber(0), Digest("b" * 64), SPEC.sha256(), "", (), created_s=0.0
)


def task(kind: TaskKind = TaskKind.TRAIN, round_number: int = 1, **changes: Any) -> Task:
    """Returns a task of the run's first version."""
    base = {"base_version": ModelVersion(0), "base_record_sha256": FIRST.record_sha256}
    return task_of(SPEC, kind, round_number=round_number, **{**base, **changes})


SMALL_WEIGHTS: dict[str, Any] = {"aggregation": {"max_examples": 1_024}}


@dataclass
class Coordinator:
    """The daemon's transport, with the answers and the errors that a test sets. It notes the calls."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    errors: dict[str, Exception] = field(default_factory=dict)
    spec_json: bytes = SPEC.canonical_json()
    records: tuple[VersionRecord, ...] = (FIRST,)
    address: str = "127.0.0.1:1"
    release: str = ""
    noise: NoiseStatement | None = None  # of the newest update
    audit_head: Any = None
    claims: list[PeerKeyClaim | None] = field(default_factory=list)  # of each Hello
    roster_page: RosterPage | None = None  # None: a coordinator of an older release

    async def hello(self, said: Introduction) -> Greeting:
        self._note("hello", said.noise)
        self.claims.append(said.peer_key)
        return Greeting(time.time(), None, self.release, self.roster_page.head if self.roster_page else None)

    async def roster(self, after: int) -> RosterPage:
        assert self.roster_page is not None
        return replace(self.roster_page, entries=self.roster_page.entries[after:])

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def of(self, name: str) -> tuple[Any, ...]:
        """Returns the arguments of the one call with this name."""
        (call,) = [call for call in self.calls if call[0] == name]
        return call[1:]

    def _note(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, *arguments))
        if name in self.errors:
            raise self.errors[name]

    async def poll(self, held: str | None, following: list[str], held_phase: int = 0) -> Wait:
        self._note("poll", held, following, held_phase)
        return Wait(1.0, "no run is open")

    async def run_spec(self, run: RunId) -> bytes:
        self._note("run_spec", run)
        return self.spec_json

    async def version_records(self, run: RunId, first: int, last: int) -> list[SignedRecord]:
        return [SignedRecord(record, b"") for record in self.records[first : last + 1]]

    async def fetch_model(self, run: RunId, version: int, digest: str, size_bytes: int, target: Path) -> None:
        self._note("fetch_model", version, size_bytes)
        target.write_bytes(b"model")  # noqa: ASYNC240 - a few bytes

    async def push_update(
        self, name: str, path: Path, manifest: Any, spec: str, base: str, examples: int, metrics: Any, noise: Any
    ) -> None:
        content = path.read_bytes()  # noqa: ASYNC240
        self.noise = noise
        self._note("push_update", name, content, manifest.digest, spec, base, examples, dict(metrics))

    async def report_scores(self, name: str, scores: Scores | NotReported) -> None:
        self._note("report_scores", name, scores)

    async def report_failure(self, name: str, reason: str, message: str, *, permanent: bool) -> None:
        self._note("report_failure", reason, message, permanent)

    async def report_progress(self, name: str, stage: str, progress: float) -> None:
        pass

    async def audit_entries(self, after: int, limit: int) -> list[Any]:
        return []


@dataclass
class Worker:
    """A worker whose training and scoring have fixed results."""

    orders: list[str] = field(default_factory=list)
    errors: dict[str, Exception] = field(default_factory=dict)
    loss: float = 1.23456
    scores: MeasuredScores = MeasuredScores(0.71234, 0.81234, 30, 30, 0.02)
    content: bytes = b"delta"
    limits: Any = None

    async def ask(self, command: Any, order: Any, on_progress: Any) -> Any:
        self.orders.append(command.name)
        if command.name in self.errors:
            raise self.errors[command.name]
        if command is PREPARE:
            return Prepared(QUESTIONS, "cpu")
        if command is EVALUATE:
            return self.scores
        assert command is TRAIN
        order.out.write_bytes(self.content)
        next_state(order.residual).write_bytes(b"residual")
        measured = MeasuredTraining(self.loss, 0.34567, 30, 30)
        return TrainedUpdate(manifest_of(order.out).digest, 33, measured, 0)

    async def stop(self) -> None:
        pass


class Data:
    """A private file that does not change."""

    path, questions, sha256, changed_s = Path("answers.jsonl"), QUESTIONS, "0" * 64, None
    is_noised = False

    def check(self) -> None: ...

    def has_changed(self) -> bool:
        return False


class Client:
    """A daemon with its coordinator and worker."""

    def __init__(self, folder: Path, policy: Policy | None = None) -> None:
        self.coordinator, self.worker = Coordinator(), Worker()
        config = ClientConfig(data=folder / "answers.jsonl", state_dir=folder / "state")
        (folder / "state").mkdir(exist_ok=True)
        partner = Partner(ClientId("ann"), "G", GroupRole.TRAIN, "127.0.0.1:1", None)
        self.daemon = Daemon(
            config,
            partner,
            policy or open_policy(),
            cast(Any, Data()),
            cast(Any, self.coordinator),
            cast(Any, self.worker),
        )

    async def do(self, work: Task) -> None:
        await self.daemon._try(work)

    @property
    def outbox(self) -> list[str]:
        return [entry.task for entry in self.daemon._outbox.pending()]


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path)


# Polls


async def test_a_poll_names_the_step_of_the_task_that_the_client_works_on(client: Client) -> None:
    forever = asyncio.create_task(asyncio.sleep(1000))
    client.daemon._work = Work(private := task(phase=2), forever)
    client.daemon._private.heard.hear(private)
    await client.daemon.ask()
    assert client.coordinator.of("poll") == (private.name, [], 2)
    forever.cancel()
    await asyncio.gather(forever, return_exceptions=True)
    client.coordinator.calls.clear()
    await client.daemon.ask()
    assert client.coordinator.of("poll")[2] == 0


# Training


@pytest.mark.parametrize("folder", ["outbox", "models", "drafts", "history", "disclosure", "disclosure/runs", "."])
async def test_a_folder_that_another_program_removes_is_made_again_at_the_next_poll(
    client: Client, tmp_path: Path, folder: str
) -> None:
    shutil.rmtree(tmp_path / "state" / folder)
    with capture_logs() as logs:
        await client.daemon.ask()
    await client.do(task())
    assert "push_update" in client.coordinator.names()
    lost = [line["folder"] for line in logs if line["event"] == "state.folder_lost"]
    expected = {str(tmp_path / "state" / name) for name in WORKING_FOLDERS if folder == "." or name.startswith(folder)}
    assert set(lost) == expected


async def test_an_update_is_trained_stored_and_handed_in(client: Client, tmp_path: Path) -> None:
    await client.do(work := task())
    assert client.worker.orders == ["prepare", "train"]
    name, content, digest, spec, base, examples, metrics = client.coordinator.of("push_update")
    assert (name, content, examples) == (work.name, b"delta", 33)
    assert (spec, base) == (work.spec_sha256, work.base_digest)
    assert metrics == {"loss": 1.23, "base_distance": 0.35}
    assert client.outbox == []
    assert (tmp_path / "state" / "drafts" / "r.residual").read_bytes() == b"residual"
    assert client.daemon._history.seen(RunId("r")).own_updates[RoundNumber(1)][0].digest == digest
    assert "report_failure" not in client.coordinator.names()


async def test_a_version_of_a_run_of_sums_is_fetched_with_the_size_of_its_stage(client: Client) -> None:
    first = replace(FIRST, spec_sha256=SUMS.sha256())
    client.coordinator.spec_json, client.coordinator.records = SUMS.canonical_json(), (first,)
    await client.do(task_of(SUMS, round_number=1, base_version=0, base_record_sha256=first.record_sha256))
    assert client.coordinator.of("fetch_model") == (0, version_layout(SUMS, 0).size_bytes)
    assert version_layout(SUMS, 0) != layout_for(SUMS)


async def test_the_size_of_every_other_version_is_that_of_the_model(client: Client) -> None:
    await client.do(task())
    assert client.coordinator.of("fetch_model") == (0, layout_for(SPEC).size_bytes)


@pytest.mark.parametrize("allowed", [frozenset(), frozenset({"loss"}), frozenset({"base_distance"}), METRICS])
async def test_only_the_metrics_of_the_policy_leave(tmp_path: Path, allowed: frozenset[str]) -> None:
    client = Client(tmp_path, open_policy(allowed_metrics=allowed))
    await client.do(task())
    assert set(client.coordinator.of("push_update")[-1]) == allowed & {"loss", "base_distance"}


@pytest.mark.parametrize("error", [Unreachable(address="a", problem="b"), StaleSession(client="ann")])
async def test_an_update_that_cannot_be_handed_in_is_kept_and_not_trained_again(
    client: Client, error: PluralError
) -> None:
    client.coordinator.errors["push_update"] = error
    await client.do(work := task())
    assert client.outbox == [work.name]
    assert "report_failure" not in client.coordinator.names()
    client.coordinator.errors.clear()
    await client.do(work)
    assert client.worker.orders == ["prepare", "train"]
    assert client.coordinator.names().count("push_update") == 2
    assert client.outbox == []


async def test_a_kept_update_of_another_base_is_trained_again(client: Client) -> None:
    client.coordinator.errors["push_update"] = Unreachable(address="a", problem="b")
    await client.do(task())
    client.coordinator.errors.clear()
    other = replace(FIRST, digest=Digest("d" * 64))
    client.coordinator.records = (other,)
    client.daemon._history._path(RunId("r")).unlink()
    await client.do(task(base_digest=other.digest, base_record_sha256=other.record_sha256))
    assert client.worker.orders.count("train") == 2
    assert client.coordinator.calls[-1][5] == other.digest


@pytest.mark.parametrize("error", [RoundClosed(run="r", asked=1, current=2), LeaseLost(task="t")])
async def test_an_update_that_nobody_needs_any_more_is_dropped_without_a_report(
    client: Client, error: PluralError
) -> None:
    client.coordinator.errors["push_update"] = error
    await client.do(task())
    assert client.outbox == []
    assert "report_failure" not in client.coordinator.names()


@pytest.mark.parametrize(
    ("error", "is_permanent"),
    [
        (StorageFull(what="the blobs"), False),
        (StoreFailed(problem="no network"), False),
        (NormTooLarge(norm=200.0, limit=100.0), True),
    ],
)
async def test_a_refused_update_is_kept_if_the_next_try_may_succeed(
    client: Client, error: PluralError, is_permanent: bool
) -> None:
    client.coordinator.errors["push_update"] = error
    await client.do(work := task())
    assert client.outbox == ([] if is_permanent else [work.name])
    assert client.coordinator.of("report_failure") == (error.reason, str(error), is_permanent)


async def test_a_failure_that_may_quote_an_answer_leaves_without_its_text(client: Client) -> None:
    client.worker.errors["train"] = NotFinite(tensor="secret", count=3)
    await client.do(task())
    reason, message, permanent = client.coordinator.of("report_failure")
    assert (reason, permanent) == ("NOT_FINITE", True)
    assert "secret" not in message
    client.coordinator.calls.clear()
    client.worker.errors["train"] = ValueError("secret")
    await client.do(task())
    assert client.coordinator.of("report_failure") == ("ValueError", IN_LOG, False)


async def test_a_failure_that_cannot_be_reported_is_no_error(client: Client) -> None:
    client.worker.errors["train"] = NotFinite(tensor="t", count=3)
    client.coordinator.errors["report_failure"] = Unreachable(address="a", problem="b")
    await client.do(task())
    assert "report_failure" in client.coordinator.names()


async def test_a_task_that_the_policy_forbids_costs_nothing(tmp_path: Path) -> None:
    client = Client(tmp_path, open_policy(max_local_steps=1))
    await client.do(task())
    assert client.worker.orders == []
    assert client.coordinator.names() == ["run_spec", "report_failure"]
    assert client.coordinator.of("report_failure")[0] == "POLICY_FORBIDS"
    assert client.coordinator.of("report_failure")[2] is True


async def test_a_run_that_demands_noise_is_refused_with_true_answers(client: Client) -> None:
    demanding = process_spec(privacy={"respondents_epsilon": 4.0, "delta": 1e-6, "unit": "respondent"})
    client.coordinator.spec_json = demanding.canonical_json()
    await client.do(task_of(demanding, round_number=1, base_version=0, base_record_sha256=FIRST.record_sha256))
    assert client.worker.orders == []
    reason, message, permanent = client.coordinator.of("report_failure")
    assert (reason, permanent) == ("NOISE_DEMANDED", True)
    assert "epsilon 4 at most" in message
    assert message.startswith("This client uses the true answers; run r takes noised answers only")


@pytest.mark.parametrize(("release", "is_named"), [("9.8.7", True), (__version__, False), ("", False)])
async def test_a_run_of_a_later_release_is_refused_with_the_release_of_the_coordinator(
    client: Client, release: str, is_named: bool
) -> None:
    values = json.loads(SPEC.canonical_json()) | {"predictor": {"architecture": "oracle/9"}}
    client.coordinator.spec_json = json.dumps(values).encode()
    client.coordinator.release = release
    await client.daemon.greet()
    await client.do(task())
    reason, message, _ = client.coordinator.of("report_failure")
    assert reason == "INVALID_SPEC"
    assert "'oracle/9' needs another release" in message
    named = f"the coordinator runs release 9.8.7, this client {__version__}"
    assert (named in message[:400], "the coordinator runs release" in message) == (is_named, is_named)


async def test_hello_declares_the_noise_and_is_said_again_after_a_release(tmp_path: Path) -> None:
    client = Client(tmp_path, open_policy(privacy=RespondentPrivacy(delta=1e-7)))
    await client.daemon.greet()
    assert client.coordinator.of("hello") == (NoiseStatement(noised=False),)
    assert not await client.daemon.must_greet()
    ledger, sha256, data = tmp_path / "state" / "privacy" / "ledger.jsonl", "a" * 64, str(tmp_path / "answers.jsonl")
    facts = {"sequence": 0, "time": "t", "population": "p", "data": data, "sigma": 1.0, "previous": ""}
    charge = line_of(Charge(questions=(sha256,), rho_of_question=0.1, **facts))
    facts = {"sequence": 1, "time": "t", "data": data, "charge": 0, "previous": head_of(charge)}
    ledger.parent.mkdir()
    ledger.write_bytes(charge + line_of(Released(data_sha256=sha256, file="f", sha256=sha256, **facts)))
    assert await client.daemon.must_greet()
    client.coordinator.calls.clear()
    await client.daemon.greet()
    assert client.coordinator.of("hello") == (NoiseStatement(True, epsilon_of(0.1, 1e-7), 1e-7, "respondent"),)


async def test_an_update_that_waited_for_its_receipt_keeps_the_statement_about_its_own_answers(
    tmp_path: Path,
) -> None:
    client = Client(tmp_path, open_policy())
    await client.daemon.greet()
    client.coordinator.errors["push_update"] = Unreachable(address="a", problem="b")
    await client.do(work := task())
    later = Client(tmp_path, open_policy())
    later.daemon._declaration._statement = NoiseStatement(True, 4.0, 1e-6, "respondent")  # as after a release
    await later.daemon.greet()
    await later.do(work)
    assert later.coordinator.noise == NoiseStatement(noised=False)
    await later.do(task(round_number=2))
    assert later.coordinator.noise == NoiseStatement(True, 4.0, 1e-6, "respondent")


async def test_a_hello_during_work_repeats_the_statement_about_the_answers_of_the_work(tmp_path: Path) -> None:
    client, true = Client(tmp_path, open_policy()), NoiseStatement(noised=False)
    await client.daemon.greet()
    client.daemon._work = Work(task(), working := asyncio.create_task(asyncio.sleep(3600)))
    client.daemon._declaration._statement = NoiseStatement(True, 4.0, 1e-6, "respondent")  # as after a release
    client.coordinator.calls.clear()
    await client.daemon.greet()
    assert (client.coordinator.of("hello"), client.daemon._declaration.said) == ((true,), true)
    working.cancel()
    await asyncio.wait([working])
    assert await client.daemon.must_greet(), "the next Hello says it"


async def test_after_a_release_nothing_is_sent_that_follows_from_the_true_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(tmp_path, open_policy())
    await client.daemon.greet()
    client.coordinator.errors["push_update"] = Unreachable(address="a", problem="b")
    await client.do(work := task())
    await client.do(task(TaskKind.EVALUATE))
    residual = client.daemon._drafts.residual(RunId("r"))
    residual.write_bytes(true := b"what rounding took away from the true answers")
    monkeypatch.setattr(Data, "is_noised", True)
    later = Client(tmp_path, open_policy())
    noised = NoiseStatement(True, 4.0, 1e-6, "respondent")
    later.daemon._declaration._statement = noised  # as after a release
    await later.daemon.greet()
    await later.do(work)
    assert later.coordinator.noise == noised
    assert not residual.exists() or residual.read_bytes() != true
    later.worker.orders.clear()
    await later.do(task(TaskKind.EVALUATE))
    assert EVALUATE.name in later.worker.orders, "the scores are computed anew"


async def test_a_version_that_was_made_from_too_few_updates_is_not_trained_from(tmp_path: Path) -> None:
    client = Client(tmp_path, open_policy(min_cohort=2))
    alone = ((ClientId("ben"), Digest("c" * 64), 5),)
    second = VersionRecord(
        RunId("r"), ModelVersion(1), RoundNumber(1), Digest("d" * 64), SPEC.sha256(), FIRST.record_sha256, alone, 0.0
    )
    client.coordinator.records = (FIRST, second)
    base: dict[str, Any] = {"base_version": ModelVersion(1), "base_digest": second.digest}
    base["base_record_sha256"] = second.record_sha256
    await client.do(task(round_number=2, **base))
    assert client.coordinator.of("report_failure")[0] == "POLICY_FORBIDS"
    assert "train" not in client.worker.orders
    client.coordinator.calls.clear()
    await client.do(task(round_number=2, **base))
    assert "fetch_model" not in client.coordinator.names(), "now the client knows it before it fetches anything"


async def test_a_task_that_has_failed_is_tried_again_after_a_pause(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def spoilt(_: Task) -> None:
        raise Corrupt(what="model version 3 of run r", expected="a", got="b")

    monkeypatch.setattr(client.daemon, "_joined_run", spoilt)
    monkeypatch.setattr("pluralllm.client.daemon.daemon.asyncio.sleep", sleep)
    for number in (3, 3, 3, 4):
        await client.daemon._do(task(round_number=number))
    monkeypatch.undo()
    assert client.coordinator.names().count("report_failure") == 4
    assert [round(pause, 9) > 0 for pause in pauses] == [False, True, True, False]


async def test_a_spec_with_another_hash_is_refused_and_fetched_again(client: Client) -> None:
    other = process_spec(seed=12)
    client.coordinator.spec_json = other.canonical_json()
    await client.do(task())
    assert client.coordinator.of("report_failure")[0] == "SPEC_MISMATCH"
    client.coordinator.spec_json = SPEC.canonical_json()
    client.coordinator.calls.clear()
    await client.do(task())
    assert client.coordinator.names().count("run_spec") == 1
    assert "push_update" in client.coordinator.names()
    await client.do(task(round_number=1))
    assert client.coordinator.names().count("run_spec") == 1, "a spec is fetched once for each run"


async def test_a_predictor_that_this_release_does_not_know_is_reported_with_this_release(client: Client) -> None:
    values = {**json.loads(SPEC.canonical_json()), "predictor": {"architecture": "kernel/9"}}
    client.coordinator.spec_json = json.dumps(values).encode()
    with capture_logs() as logs:
        await client.do(task())
    (failed,) = [entry for entry in logs if entry["event"] == "task.failed"]
    assert failed["problem"].startswith("The run spec of run r is not valid")
    assert f"'kernel/9' needs another release of PluralLLM; this is release {__version__}" in failed["problem"]
    assert client.coordinator.of("report_failure")[0] == "INVALID_SPEC"


async def test_the_specs_of_a_hundred_runs_are_kept(client: Client) -> None:
    assert KEPT_RUNS == 100
    for number in range(KEPT_RUNS + 1):
        await client.daemon._joined_run(task(run=f"r{number}"))
    assert len(client.daemon._runs) == KEPT_RUNS
    assert "r0" not in client.daemon._runs
    assert f"r{KEPT_RUNS}" in client.daemon._runs


# Evaluation


async def test_scores_leave_rounded_and_are_the_same_when_they_are_asked_for_again(client: Client) -> None:
    await client.do(task(TaskKind.EVALUATE))
    _, scores = client.coordinator.of("report_scores")
    assert (scores.alignment_score, scores.wasserstein_score, scores.questions) == (0.71, 0.81, 30)
    assert REGISTRY.get_sample_value("pluralllm_client_context_gain") == 0.02
    client.worker.scores = MeasuredScores(0.1, 0.1, 30, 30, 0.02)
    client.coordinator.calls.clear()
    await client.do(task(TaskKind.EVALUATE, round_number=2))
    assert client.coordinator.of("report_scores")[1] == scores
    assert client.worker.orders.count("evaluate") == 1


async def test_scores_of_noised_answers_leave_in_thousandths(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Data, "is_noised", True)
    await client.do(task(TaskKind.EVALUATE))
    _, scores = client.coordinator.of("report_scores")
    assert (scores.alignment_score, scores.wasserstein_score, scores.context_gain) == (0.712, 0.812, 0.02)


async def test_a_release_while_true_answers_are_scored_gives_the_scores_no_more_digits(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = client.worker.ask

    async def release_and_score(command: Any, order: Any, on_progress: Any) -> Any:
        monkeypatch.setattr(Data, "is_noised", True)
        return await score(command, order, on_progress)

    monkeypatch.setattr(client.worker, "ask", release_and_score)
    await client.do(task(TaskKind.EVALUATE))
    assert client.coordinator.of("report_scores")[1].alignment_score == 0.71


async def test_the_wasserstein_score_stays_if_the_policy_does_not_list_it(tmp_path: Path) -> None:
    client = Client(tmp_path, open_policy(allowed_metrics=METRICS - {"wasserstein_score"}))
    await client.do(task(TaskKind.EVALUATE))
    _, scores = client.coordinator.of("report_scores")
    assert scores.wasserstein_score is None
    assert scores.alignment_score == 0.71


@pytest.mark.parametrize(("questions", "reports"), [(30, True), (29, False)])
async def test_scores_of_too_few_questions_stay_and_cost_no_budget(
    tmp_path: Path, questions: int, reports: bool
) -> None:
    client = Client(tmp_path, open_policy(min_questions_behind=30, max_evaluations_of_run=1))
    client.worker.scores = MeasuredScores(0.7, 0.8, questions, questions, 0.02)
    await client.do(task(TaskKind.EVALUATE))
    _, answer = client.coordinator.of("report_scores")
    assert isinstance(answer, Scores) == reports
    assert reports or answer is NotReported.TOO_FEW_QUESTIONS
    assert (client.daemon._budgets.spent(RunId("r")) is not None) == reports


async def test_a_spent_budget_is_answered_without_work(tmp_path: Path) -> None:
    client = Client(tmp_path, open_policy(max_evaluations_of_run=1))
    await client.do(task(TaskKind.EVALUATE))
    second = replace(FIRST, version=ModelVersion(1), digest=Digest("d" * 64))
    client.coordinator.calls.clear()
    await client.do(task(TaskKind.EVALUATE, base_version=ModelVersion(1), base_digest=second.digest))
    assert client.coordinator.of("report_scores")[1] is NotReported.BUDGET_SPENT
    assert client.worker.orders.count("evaluate") == 1


async def test_an_evaluation_that_fails_has_counted(tmp_path: Path) -> None:
    client = Client(tmp_path, open_policy(max_evaluations_of_run=1))
    client.worker.errors["evaluate"] = ValueError("secret")
    await client.do(task(TaskKind.EVALUATE))
    assert client.daemon._budgets.spent(RunId("r")) == "max_evaluations_of_run"


# The end of a run


async def test_a_run_that_is_over_leaves_nothing_behind(client: Client, tmp_path: Path) -> None:
    client.coordinator.errors["push_update"] = Unreachable(address="a", problem="b")
    await client.do(task())
    (tmp_path / "state" / "drafts" / "r.residual").write_bytes(b"old")
    over = RunOver(RunId("r"), "cancelled", "enough", ModelVersion(0), FIRST.digest)
    assert await client.daemon.take(over) == 0.0
    assert client.outbox == []
    assert not (tmp_path / "state" / "drafts" / "r.residual").exists()
    assert client.daemon._history.open_runs() == set()
    assert client.daemon._runs == {}


async def test_a_daemon_may_end_with_the_first_run(client: Client) -> None:
    client.daemon._config = client.daemon._config.model_copy(update={"exit_when_run_over": True})
    over = RunOver(RunId("r"), "cancelled", "enough", ModelVersion(0), FIRST.digest)
    assert await client.daemon.take(over) is None


# The roster of peer keys


def page_of(*entries: RosterEntry) -> RosterPage:
    return RosterPage(entries, Roster().extended(entries).head)


async def test_hello_states_the_peer_key_and_its_proof_and_the_same_ones_each_time(client: Client) -> None:
    for _ in range(2):
        await client.daemon.greet()
    claim, again = client.coordinator.claims
    assert claim is not None
    assert is_proven(claim.key_der, claim.proof, "", "ann")
    assert claim == again


async def test_a_roster_that_goes_back_keeps_the_daemon_out_of_private_rounds_only(tmp_path: Path) -> None:
    client = Client(tmp_path, open_policy(private_rounds={"hidden_among": 1}))
    await client.daemon.greet()
    claim = client.coordinator.claims[0]
    assert claim is not None
    own = RosterEntry(1, "ann", "G", fingerprint(claim.key_der), RosterChange.ADDED)
    ben = RosterEntry(2, "ben", "G", "b" * 64, RosterChange.ADDED)
    for page in (page_of(own, ben), page_of(own)):
        client.coordinator.roster_page = page
        with capture_logs() as logs:
            await client.daemon.greet()
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["roster.diverged"]
    await client.do(task())
    assert "push_update" in client.coordinator.names()
    private = process_spec(private_rounds={}, round={"min_clients": 3, "target_clients": 3}, **SMALL_WEIGHTS)
    first = replace(FIRST, spec_sha256=private.sha256())
    client.coordinator.calls.clear()
    client.coordinator.spec_json, client.coordinator.records = private.canonical_json(), (first,)
    await client.do(task_of(private, round_number=1, base_version=0, run="s", base_record_sha256=first.record_sha256))
    assert client.coordinator.of("report_failure")[::2] == ("ROSTER_DIVERGED", True)
    assert "fetch_model" not in client.coordinator.names()


@pytest.mark.parametrize("fails", [False, True])
async def test_scores_that_the_policy_keeps_back_in_private_rounds_are_measured_for_the_partner_only(
    tmp_path: Path, fails: bool
) -> None:
    client = Client(tmp_path, open_policy())
    client.worker.errors = {"evaluate": ValueError("secret")} if fails else {}
    private = process_spec(private_rounds={}, round={"min_clients": 3, "target_clients": 3}, **SMALL_WEIGHTS)
    first = replace(FIRST, spec_sha256=private.sha256())
    client.coordinator.spec_json, client.coordinator.records = private.canonical_json(), (first,)
    with capture_logs() as logs:
        await client.do(task(TaskKind.EVALUATE, spec_sha256=private.sha256(), base_record_sha256=first.record_sha256))
    assert client.coordinator.of("report_scores")[1] is NotReported.KEPT_BACK
    assert "report_failure" not in client.coordinator.names()
    assert client.daemon._budgets.spent(RunId("r")) is None, "what stays here costs no budget"
    own = OwnScoresFolder(tmp_path / "state" / OWN_SCORES).of(RunId("r"))
    assert [(one.measured, one.left) for one in own] == ([] if fails else [(client.worker.scores, KEPT_BACK)])
    [line] = [line for line in logs if line["event"] == "evaluation.not_reported"]
    assert (line["key"], line["limit"]) == ("private_rounds.evaluation", "sum"), "the log names the key to change"
