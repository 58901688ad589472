"""Private rounds of a run whose updates are terms of sums, played by real daemons; only the worker's terms are made up."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from private.test_daemons import Worker, members, until
from private.test_service import clean, stored
from structlog.testing import capture_logs
from support.coordinator_harness import serving, small_spec
from support.private_members import NAMES

from pluralllm.client.disclosure.measurements import MeasuredTraining
from pluralllm.client.process.config import JoinConfig
from pluralllm.client.verify_command import verified
from pluralllm.client.work.masking import mask_update
from pluralllm.client.work.orders import MASK, TRAIN, Mask, Train, TrainedUpdate
from pluralllm.common.predictor.architecture import update_layout
from pluralllm.common.private_rounds.ring import NOT_ZERO, WEIGHT
from pluralllm.common.private_rounds.sum_files import ring_of
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.sums.solver import SummedAnswers, members_digest, next_values, summed
from pluralllm.common.weights.layout import flat_values, read_layout, write_weights
from pluralllm.common.weights.update_format import update_format
from pluralllm.common.words.ids import ModelVersion, RoundNumber, RunId
from pluralllm.common.words.roles import MemberRole
from pluralllm.v1 import resources_pb2 as rpb

MEMBERS = NAMES[:4]
FEATURES, RANK, ROUNDS = 16, 2, 3
SILENT = MEMBERS[3]  # its group has too few points for the second stage
SPEC = small_spec(
    rounds=ROUNDS,
    predictor={"architecture": "kernel-sums/1", "features": FEATURES, "group_rank": RANK, "subspace_rounds": 1},
    private_rounds={"colluders": 1, "step_s": 1000.0, "closing_scores": False},
    round={"min_clients": 3, "target_clients": 4, "gather_s": 60.0, "grace_after_quorum_s": 1e6, "evaluate_every": 9},
    aggregation={"weighting": "uniform", "max_examples": 50, "max_delta_norm": 500.0},
)
Floats = NDArray[np.float32]


class SumsWorker(Worker):
    """A worker whose group has random features and answers. It also keeps the numbers of each term without masks."""

    def __init__(self, name: str, deltas: dict[int, Floats]) -> None:
        super().__init__(name, deltas)
        rng = np.random.default_rng(list(name.encode()))
        self.features = rng.normal(size=(20, FEATURES)) * np.linspace(1, 0.2, FEATURES)
        self.answers, self.own = rng.normal(size=20), rng.normal(size=FEATURES)
        self.numbers: dict[int, NDArray[np.uint32]] = {}
        self._round = 0

    async def ask(self, command: Any, order: Any, on_progress: Any) -> Any:
        if command is TRAIN:
            assert isinstance(order, Train)
            self._round = order.round_number
            values = flat_values(order.base, read_layout(order.base))
            term = self.deltas[self._round] = self.term(values)
            manifest = write_weights(order.out, update_layout(SPEC, self._round - 1), [term])
            return TrainedUpdate(manifest.digest, self.examples, MeasuredTraining(1.0, 0.0, 40, 0), 0)
        if command is MASK:
            assert isinstance(order, Mask)
            plain = replace(order, out=order.out.with_name(f"plain of {self.name}"), streams=())
            await asyncio.to_thread(mask_update, plain, lambda done, total: None)
            form = update_format(read_layout(order.delta), "ring32")
            self.numbers[self._round] = np.fromfile(plain.out, "<u4", offset=len(form.header))
            plain.out.unlink()
        return await super().ask(command, order, on_progress)

    def term(self, values: Floats) -> Floats:
        """Returns this group's answer to a version, as client.work.sums has it."""
        prior = values[-FEATURES:].astype(np.float64)
        if values.size == FEATURES:
            return (self.features.T @ (self.answers - self.features @ prior)).astype(np.float32)
        own = np.zeros(FEATURES) if self.name == SILENT else self.own
        return np.outer(values[:-FEATURES].reshape(RANK, FEATURES) @ own, own).astype(np.float32).ravel()


async def test_a_run_of_sums_ends_with_the_bits_of_its_terms_without_masks_and_everybody_verifies_it(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "server", SystemClock(), silence_s=5) as served:
        await served.create("r", SPEC)
        with capture_logs() as logs:
            async with members(tmp_path / "clients", served, SumsWorker) as some:
                await some.start(*MEMBERS)
                run = await some.run_to_its_end()
                identity = await served.member(MEMBERS[0], MemberRole.CLIENT)
                paths = JoinConfig(state_dir=some.of[MEMBERS[0]].state)
                last = await verified(paths, identity, RunId("r"), RoundNumber(ROUNDS))
        assert (run.outcome, run.version) == (rpb.RUN_OUTCOME_COMPLETED, ROUNDS)
        assert last == (ROUNDS, tuple(sorted(MEMBERS)))
        checked = sorted(line["version"] for line in logs if line["event"] == "private.verified")
        assert checked == [1, 1, 1, 1, 2, 2, 2, 2, ROUNDS], "each client checks a version before it answers"
        assert await clean(served, tmp_path) == ROUNDS
        workers = [some.of[name].worker for name in sorted(MEMBERS)]
        versions = [await stored(served, number) for number in range(ROUNDS + 1)]
    again = played(workers, rounded)
    assert all(np.array_equal(made, kept) for made, kept in zip(again, versions, strict=True))
    exact = played(workers, as_answered)
    for private, plain in zip(versions[1:], exact[1:], strict=True):
        assert np.linalg.norm(private - plain) < 1e-5 * np.linalg.norm(plain)


class OneTooLong(SumsWorker):
    """A worker whose term is longer than the run allows, if it is the first member's."""

    def term(self, values: Floats) -> Floats:
        answer = super().term(values)
        return answer * np.float32(501 / np.linalg.norm(answer)) if self.name == MEMBERS[0] else answer


async def test_a_client_whose_term_is_too_long_takes_no_part_and_tells_nobody_how_long_it_is(tmp_path: Path) -> None:
    async with serving(tmp_path / "server", SystemClock(), silence_s=5) as served:
        await served.create("r", SPEC)
        with capture_logs() as logs:
            async with members(tmp_path / "clients", served, OneTooLong) as some:
                await some.start(*MEMBERS)
                await until(served, lambda run: run.version >= 1)
        (failed,) = [line for line in logs if line["event"] == "task.failed"]
        assert (failed["reason"], failed["permanent"]) == ("TERM_TOO_LONG", True)
        assert "has the L2 norm 501, the run allows 500" in failed["problem"]
        (lost,) = [line for line in logs if line["event"] == "run.event" and line["kind"] == "PlaceLost"]
        assert "501" not in str(lost)
        assert "longer than the run's bound" in str(lost)
        record = await served.parts.store.version(RunId("r"), ModelVersion(1))
        assert record is not None
        assert [client for client, *_ in record.updates] == sorted(MEMBERS[1:])


def rounded(workers: list[Any], number: int, _values: Floats) -> SummedAnswers:
    """Returns the sum of the terms of a round as the ring has it, but without masks."""
    total = sum((one.numbers[number] for one in workers), np.zeros_like(workers[0].numbers[number]))
    ring, weight = ring_of(SPEC, len(MEMBERS)), int(total[WEIGHT])
    assert weight == sum(min(one.examples, 50) for one in workers)
    values = total[64:].view(np.int32).astype(np.float64) / ring.scale
    return SummedAnswers(values, int(total[NOT_ZERO]), weight, members_digest((one.name, weight) for one in workers))


def as_answered(workers: list[Any], _number: int, values: Floats) -> SummedAnswers:
    """Returns the sum of the terms of a plain round."""
    terms = [one.term(values) for one in workers]
    return summed(terms, [(one.name, one.examples) for one in workers], terms[0].size, 50)


def played(workers: list[Any], answers: Any) -> list[Floats]:
    """Returns the values of all versions that the solver makes of these answers."""
    versions, solver = [np.zeros(FEATURES, np.float32)], None
    for base in range(ROUNDS):
        total = answers(workers, base + 1, versions[-1])
        made, solver = next_values(SPEC, base, versions[-1], total, solver)
        versions.append(made)
    return versions
