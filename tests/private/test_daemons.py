"""Whole private rounds of real daemons over a real gRPC server. Only the worker's training is made up."""

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from private.test_service import CLIP_NORM, LAYOUT, MOST_WEIGHT, SPEC, clean, stored
from structlog.testing import capture_logs
from support.coordinator_harness import Served, serving
from support.open_policy import open_policy
from support.private_members import NAMES

from pluralllm.client.daemon.daemon import Daemon
from pluralllm.client.data.private_data import write_group
from pluralllm.client.data.private_file import PrivateFile
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.client.disclosure.measurements import MeasuredScores, MeasuredTraining
from pluralllm.client.disclosure.own_scores import KEPT_BACK, OWN_SCORES, OwnScoresFolder, in_sum_of
from pluralllm.client.disclosure.policy import Policy, RoundPrivacy
from pluralllm.client.joining.partner import load_partner
from pluralllm.client.link.transport import Transport
from pluralllm.client.private_rounds import verification
from pluralllm.client.private_rounds.pins import save_pins
from pluralllm.client.process.config import ClientConfig, JoinConfig
from pluralllm.client.verify_command import verified
from pluralllm.client.work.masking import mask_update
from pluralllm.client.work.orders import EVALUATE, MASK, PREPARE, Mask, Prepared, Train, TrainedUpdate
from pluralllm.common.errors.tree import LeaseLost, NotFound
from pluralllm.common.private_rounds.peer_keys import fingerprint, public_der
from pluralllm.common.private_rounds.ring import DISTANCE, Ring
from pluralllm.common.private_rounds.transcript import Transcript
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.trust.identity import Identity, peer_key
from pluralllm.common.weights.layout import write_weights
from pluralllm.common.weights.server_optimizer import ServerOptimizer, optimizer_of_round
from pluralllm.common.words.ids import ModelVersion, RoundNumber, RunId, TaskId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.aggregation import private_version
from pluralllm.server.rounds.events import RunPaused, RunResumed
from pluralllm.v1 import resources_pb2 as rpb

LIMIT_S = 40.0
ROUNDS = 2
GAMMA = 2.0
MOMENTUM = SPEC.aggregation.momentum
MEMBERS = NAMES[:4]
POLICY = open_policy(private_rounds=RoundPrivacy(hidden_among=2))
QUESTIONS = next(iter(sample_groups(2, 60, 0).values()))


class Worker:
    """A worker that makes up a delta, and masks it as the real one does."""

    def __init__(self, name: str, deltas: dict[int, NDArray[np.float32]]) -> None:
        self.name, self.deltas = name, deltas  # by round
        self.limits: Any = None
        self.scored_questions = 40

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def ask(self, command: Any, order: Any, on_progress: Any) -> Any:
        if command is PREPARE:
            return Prepared(len(QUESTIONS), "cpu")
        if command is EVALUATE:
            return MeasuredScores(0.7, 0.8, self.scored_questions, 40, 0.02)
        if command is MASK:
            assert isinstance(order, Mask)
            return await asyncio.to_thread(mask_update, order, lambda done, total: None)
        assert isinstance(order, Train)
        delta = np.random.default_rng(order.seed).normal(0, 0.01, LAYOUT.values).astype(np.float32)
        self.deltas[order.round_number] = delta
        manifest = write_weights(order.out, LAYOUT, [delta])

        return TrainedUpdate(
            manifest.digest, self.examples, MeasuredTraining(1.0, self.distance(order.round_number), 40, 40), 0
        )

    @property
    def examples(self) -> int:
        return 10 + len(self.name) + ord(self.name[0]) % 7

    def distance(self, number: int) -> float:
        """Returns the distance of the base version of a round, as it leaves: with two decimals."""
        return round(0.2 + (ord(self.name[0]) % 4) / 10 - 0.02 * number, 2)


class Member:
    """One daemon as a task of this process."""

    def __init__(
        self, folder: Path, identity: Identity, pins: Mapping[str, str], worker: Worker, policy: Policy = POLICY
    ) -> None:
        folder.mkdir(exist_ok=True)
        data, state = folder / "answers.jsonl", folder / "state"
        if not data.is_file():
            write_group(data, QUESTIONS)
            state.mkdir()
        save_pins(state / "peers.toml", pins)
        config = ClientConfig(
            data=data,
            state_dir=state,
            identity=identity.folder,
            coordinator=identity.membership.coordinator,
            exit_when_run_over=True,
        )
        partner = load_partner(config)
        assert partner.identity is not None
        self.state, self.worker = state, worker
        self.transport = Transport.of_member(partner.identity)
        self.daemon = Daemon(config, partner, policy, PrivateFile(data, state), self.transport, cast(Any, self.worker))
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self.daemon.run(self.stop))

    async def end(self) -> None:
        self.stop.set()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.transport.close()


class Members:
    """The daemons of some members, each of which has pinned all others."""

    def __init__(self, folder: Path, served: Served, worker: type[Worker] = Worker) -> None:
        self._folder, self._served, self._worker = folder, served, worker
        self.pins: dict[str, str] = {}
        self.of: dict[str, Member] = {}

    async def start(self, *names: str, alone: str = "", policy: Policy = POLICY) -> None:
        """Starts daemons. alone: the member that has pinned nobody."""
        identities = {name: await self._served.member(name, MemberRole.CLIENT, f"group of {name}") for name in names}
        self.pins |= {name: fingerprint(public_der(peer_key(one.folder))) for name, one in identities.items()}
        for name, identity in identities.items():
            worker = self.of[name].worker if name in self.of else self._worker(name, {})
            self.of[name] = Member(self._folder / name, identity, {} if name == alone else self.pins, worker, policy)

    async def run_to_its_end(self) -> rpb.Run:
        """Waits until the run has ended and every daemon knows it. Returns the run."""
        run = await until(self._served, ended)
        await asyncio.wait_for(asyncio.gather(*(one.task for one in self.of.values())), 20)
        return run

    def never_checks(self, name: str) -> None:
        """Lets a started member's coin never fall for the check of a version."""
        check = self.of[name].daemon._private._means.verification
        check._knowledge = replace(check._knowledge, verify_share=0.0)


@contextlib.asynccontextmanager
async def members(folder: Path, served: Served, worker: type[Worker] = Worker) -> AsyncIterator[Members]:
    folder.mkdir()  # noqa: ASYNC240
    started = Members(folder, served, worker)
    try:
        yield started
    finally:
        for member in started.of.values():
            await member.end()


async def until(served: Served, holds: Any) -> rpb.Run:
    async with asyncio.timeout(LIMIT_S):
        while not holds(run := await served.run("r")):
            await served.parts.run_bell.wait(served.parts.run_bell.rings, 0.05)
    return run


def ended(run: rpb.Run) -> bool:
    return run.phase == rpb.RUN_PHASE_ENDED


def spec_of(rounds: int) -> RunSpec:
    together = SPEC.round.model_copy(update={"gather_s": 60.0})
    moving = SPEC.aggregation.model_copy(update={"optimizer": "fedavgm"})
    return SPEC.model_copy(update={"rounds": rounds, "round": together, "aggregation": moving})


async def assert_steps(served: Served, workers: list[Worker]) -> None:
    """Asserts that each version is the server optimizer's step from the plain mean of the deltas, within the ring's error."""
    total = sum(worker.examples for worker in workers)
    tolerance = 2 * len(workers) * MOST_WEIGHT / Ring(len(MEMBERS), CLIP_NORM, MOST_WEIGHT).scale / total + 1e-6
    step = np.zeros(LAYOUT.values)
    for number in range(1, ROUNDS + 1):
        mean = sum(worker.examples * worker.deltas[number].astype(np.float64) for worker in workers) / total
        step = MOMENTUM * step + mean
        made = (await stored(served, number)).astype(np.float64) - await stored(served, number - 1)
        assert np.abs(made - step).max() < tolerance


async def test_daemons_that_are_restarted_after_any_line_of_their_notebooks_make_the_plain_mean(tmp_path: Path) -> None:
    async with serving(tmp_path / "server", SystemClock(), silence_s=5, poll_hold_s=2.0) as served:
        await served.create("r", spec_of(ROUNDS))
        async with members(tmp_path / "clients", served) as some:
            await some.start(*MEMBERS)
            loses_its_lease_once(some.of[MEMBERS[3]])
            steps = ("keys", "shares", "update", "confirm")
            async with asyncio.timeout(LIMIT_S):
                await asyncio.gather(
                    paused(served),
                    *(restarted(served, some, name, step) for name, step in zip(MEMBERS, steps, strict=True)),
                )
            await until(served, lambda run: not any(notebooks_of(one) for one in some.of.values()))
            assert (await served.run("r")).round == 1, "no task of a later round has ended the first one"
            await served.parts.coordinator.dispatch(served.parts.runs.get("r"), RunResumed(0.0))
            run = await some.run_to_its_end()
            await assert_verified(served, some.of[MEMBERS[0]])
        assert (run.outcome, run.version) == (rpb.RUN_OUTCOME_COMPLETED, ROUNDS)
        await assert_steps(served, [one.worker for one in some.of.values()])
        assert await clean(served, tmp_path) == ROUNDS
        scored, newest = run.scored_sum, run.newest_sum
        assert (scored.round, scored.base_version, scored.scored, scored.updates) == (1, 0, 4, 4), "version 0 was due"
        assert scored.mean_alignment_score == pytest.approx(0.7, abs=1e-6)
        assert (newest.round, newest.scored, newest.clipped_updates) == (ROUNDS, 0, 0)
        for one in some.of.values():
            left = {kept.version: kept.left for kept in OwnScoresFolder(one.state / OWN_SCORES).of(RunId("r"))}
            assert left == {0: in_sum_of(RoundNumber(1)), ROUNDS: KEPT_BACK}
            assert [path.name for path in (one.state / "private").iterdir()] == ["CACHEDIR.TAG"]
            assert not [*(one.state / "outbox").iterdir(), *(one.state / "verification").iterdir()]
            assert not [*(one.state / "drafts").iterdir()]


async def test_daemons_weight_their_updates_by_their_own_distances_over_restarts_and_without_adding_the_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "ALWAYS_BYTES", 0)  # versions are checked by a coin, which falls for one member
    fair = SPEC.aggregation.model_copy(update={"weighting": "agnostic", "fairness": GAMMA})
    spec = spec_of(3).model_copy(update={"aggregation": fair})
    async with serving(tmp_path / "server", SystemClock(), silence_s=5) as served:
        await served.create("r", spec)
        async with members(tmp_path / "clients", served) as some:
            await some.start(*MEMBERS)
            some.never_checks(MEMBERS[1])
            async with asyncio.timeout(LIMIT_S):
                while not has_receipt(some.of[MEMBERS[0]], 2):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                await some.of[MEMBERS[0]].end()  # after its receipt for round 2, before that round has made a version
                await some.start(MEMBERS[0])
            run = await some.run_to_its_end()
        workers = [one.worker for one in some.of.values()]
        assert not some.of[MEMBERS[1]].daemon._private._means.verification._true
        assert (run.outcome, run.version) == (rpb.RUN_OUTCOME_COMPLETED, 3)
        factors = dict.fromkeys(MEMBERS, 1.0)
        for number in (1, 2, 3):
            if number > 1:
                before = sum(round(4096 * one.distance(number - 1)) for one in workers) / 4096 / len(workers)
                factors = {
                    one.name: min(3, max(1 / 3, factors[one.name] * math.exp(GAMMA * (one.distance(number) - before))))
                    for one in workers
                }
            shares = np.array([factors[one.name] for one in workers])
            mean = shares / shares.sum() @ np.array([one.deltas[number].astype(np.float64) for one in workers])
            made = (await stored(served, number)).astype(np.float64) - await stored(served, number - 1)
            assert np.abs(made - mean).max() < 2e-6
        assert shares.max() > 1.5 * shares.min(), "the factors differ by much"
        assert await clean(served, tmp_path) == 3
        assert all(not [*(one.state / "drafts").iterdir()] for one in some.of.values())


def has_receipt(member: Member, number: int) -> bool:
    history = member.state / "history" / "r.json"
    noted = json.loads(history.read_text()) if history.is_file() else {}
    return any(one["acknowledged"] for one in noted.get("own_updates", {}).get(str(number), []))


async def assert_verified(served: Served, member: Member) -> None:
    """Asserts that the command `verify` computes each version again, and refuses a round that this client has not seen."""
    await assert_verified_to(served, member, dict.fromkeys(range(1, ROUNDS + 1), MEMBERS))


async def assert_verified_to(served: Served, member: Member, names: Mapping[int, tuple[str, ...]]) -> None:
    """Asserts that `verify` finds the members `names` in the sum of each round. Each round has made a version."""
    identity = await served.member(member.worker.name, MemberRole.CLIENT)
    paths = JoinConfig(state_dir=member.state)
    for number, expected in names.items():
        assert await verified(paths, identity, RunId("r"), RoundNumber(number)) == (number, tuple(sorted(expected)))
    with pytest.raises(NotFound):
        await verified(paths, identity, RunId("r"), RoundNumber(max(names) + 1))


def loses_its_lease_once(member: Member) -> None:
    """Lets a member's first upload fail as after a silence; the member then has its slot again, and sends the same file."""
    push = member.transport.push_update
    lost: list[TaskId] = []

    async def push_update(task: TaskId, *rest: Any) -> None:
        if not lost:
            lost.append(task)
            raise LeaseLost(task=task)
        await push(task, *rest)

    member.transport.push_update = push_update  # type: ignore[assignment,method-assign]


async def restarted(served: Served, some: Members, name: str, step: str) -> None:
    """Restarts a daemon once its notebook of the first round has the line of a step; at the latest after the round."""
    while not has_line(some.of[name], step) and served.parts.runs.get("r").state.version == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    await some.of[name].end()
    await some.start(name)


async def paused(served: Served) -> None:
    """Pauses the run when its first round is open: the round goes on, and no other follows."""
    while (run := served.parts.runs.get("r")).state.round == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    await served.parts.coordinator.dispatch(run, RunPaused(0.0))


def notebooks_of(member: Member) -> list[Path]:
    return list((member.state / "private").glob("*/notebook"))


def has_line(member: Member, step: str) -> bool:
    notebook = member.state / "private" / "r.1" / "notebook"
    return notebook.is_file() and f'"step":"{step}"' in notebook.read_text()


async def test_a_client_that_has_pinned_too_few_deals_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    async with serving(tmp_path / "server", SystemClock(), silence_s=5) as served:
        await served.create("r", spec_of(1))
        with capture_logs() as logs:
            async with members(tmp_path / "clients", served) as some:
                await some.start(*MEMBERS, alone=MEMBERS[0])
                some.of[MEMBERS[1]].worker.scored_questions = 0
                run = await until(served, ended)
        (failed,) = [line for line in logs if line["event"] == "task.failed"]
        assert (failed["reason"], failed["permanent"]) == ("TOO_FEW_KNOWN", True)
        assert "pluralllm-client peers pin" in failed["problem"]
        assert run.outcome == rpb.RUN_OUTCOME_COMPLETED
        assert run.newest_sum.updates == 3
        assert not run.HasField("scored_sum"), "two scores of three members would not be hidden, so they stay"
        record = await served.parts.store.version(RunId("r"), ModelVersion(1))
        assert record is not None
        assert [client for client, *_ in record.updates] == sorted(MEMBERS[1:])


def crafting(spec: RunSpec, number: int) -> ServerOptimizer:
    honest = optimizer_of_round(spec, number)
    return lambda base, delta, moments: honest(base, delta + 1e-4, moments)


class FarTranscript(Transcript):
    """A transcript that claims a larger mean distance than the sum has: fairness-aware factors follow from it."""

    @classmethod
    def of(cls, *arguments: Any) -> Transcript:
        true = Transcript.of(*arguments)
        return replace(true, tail=tuple(2 * word if n == DISTANCE else word for n, word in enumerate(true.tail)))


@pytest.mark.parametrize(
    ("name", "lie"),
    [("optimizer_of_round", crafting), ("Transcript", FarTranscript)],
    ids=["another version", "another mean distance"],
)
async def test_a_version_that_is_not_the_sum_of_its_round_is_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, lie: Any
) -> None:
    monkeypatch.setattr(private_version, name, lie)
    async with serving(tmp_path / "server", SystemClock(), silence_s=5) as served:
        await served.create("r", spec_of(2))
        with capture_logs() as logs:
            async with members(tmp_path / "clients", served) as some:
                await some.start(*MEMBERS)
                async with asyncio.timeout(LIMIT_S):
                    while sum(line["event"] == "task.failed" for line in logs) < len(MEMBERS):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
        failed = [line for line in logs if line["event"] == "task.failed"]
        assert {(line["reason"], line["permanent"]) for line in failed} == {("AGGREGATE_DIFFERS", True)}
        for one in some.of.values():
            assert list(one.worker.deltas) == [1]
            kept = {path.name for path in (one.state / "evidence" / "r.1").iterdir()}
            assert kept >= {"transcript.json", "base", "computed", "problem.txt", *(f"{n}.masked" for n in MEMBERS)}
            assert not list((one.state / "verification").iterdir())
