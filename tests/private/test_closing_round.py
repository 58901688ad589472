"""The closing round: the scores of the last version of all groups are known as a sum, and no single one leaves its machine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drill.trial import ALL
from private.test_daemons import MEMBERS, Member, Worker, assert_verified_to, members, spec_of
from private.test_service import LAYOUT, clean, stored
from structlog.testing import capture_logs
from support.coordinator_harness import Served, serving

from pluralllm.client.daemon import private_round
from pluralllm.client.disclosure.measurements import MeasuredScores
from pluralllm.client.disclosure.own_scores import OWN_SCORES, OwnScoresFolder, in_sum_of
from pluralllm.client.work.closing import untrained
from pluralllm.client.work.orders import EVALUATE, TrainedUpdate
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.weights.layout import write_weights
from pluralllm.common.words.ids import ModelVersion, RoundNumber, RunId
from pluralllm.common.words.roles import GroupRole, MemberRole
from pluralllm.common.words.spec import RunSpec
from pluralllm.v1 import resources_pb2 as rpb

HELD_OUT = ("fay", "gus")
SCORES = {"ann": 0.61, "bob": 0.71, "cleo": 0.72, "dora": 0.73, "fay": 0.51, "gus": 0.74}


class ScoringWorker(Worker):
    """A worker whose group has a score of its own."""

    async def ask(self, command: Any, order: Any, on_progress: Any) -> Any:
        if command is EVALUATE:
            return MeasuredScores(SCORES[self.name], None, 40, 40, 0.02)
        return await super().ask(command, order, on_progress)


def closing_spec() -> RunSpec:
    spec = spec_of(1)
    assert spec.private_rounds is not None
    tables = {"private_rounds": spec.private_rounds.model_copy(update={"closing_scores": True})}
    closing = spec.model_copy(update={**tables, "format": "pluralllm.run/4"})
    assert closing.closes
    return closing


async def held_out(served: Served) -> None:
    for name in HELD_OUT:
        await served.member(name, MemberRole.CLIENT, f"group of {name}", GroupRole.HELD_OUT)


async def test_the_scores_of_the_last_version_are_a_sum_over_all_groups_and_the_model_stays_as_it_is(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "server", SystemClock(), silence_s=5) as served:
        await served.create("r", closing_spec())
        await held_out(served)
        with capture_logs() as logs:
            async with members(tmp_path / "clients", served, ScoringWorker) as some:
                await some.start(*MEMBERS, *HELD_OUT)
                run = await some.run_to_its_end()
                await assert_verified_to(served, some.of[MEMBERS[0]], {1: MEMBERS, 2: (*MEMBERS, *HELD_OUT)})
        assert not [line for line in logs if line["event"] in ("task.failed", "task.broken")]
        assert (run.outcome, run.version) == (rpb.RUN_OUTCOME_COMPLETED, 2)
        scored = run.scored_sum
        assert (scored.round, scored.base_version, scored.scored, scored.updates) == (2, 1, 6, 6)
        assert (scored.weight, scored.HasField("mean_loss")) == (6, False), "nobody's number of questions is in the sum"
        assert abs(scored.mean_alignment_score - sum(SCORES.values()) / 6) < 1e-6
        assert [n for n, count in enumerate(scored.score_histogram) if count] == [16, 19, 22, 23]
        assert all(one.not_reported == rpb.NOT_REPORTED_KEPT_BACK for one in run.evaluations)
        assert (await stored(served, 2) == await stored(served, 1)).all()
        last = await served.parts.store.version(RunId("r"), ModelVersion(2))
        before = await served.parts.store.version(RunId("r"), ModelVersion(1))
        assert last is not None
        assert before is not None
        assert (last.digest, last.moments) == (before.digest, before.moments)
        assert await clean(served, tmp_path) == 2
        for one in some.of.values():
            assert left_of(one) == in_sum_of(RoundNumber(2))
            assert not [*(one.state / "drafts").iterdir(), *(one.state / "outbox").iterdir()]
        for name in HELD_OUT:
            assert not some.of[name].worker.deltas, "a group that is held out has trained"


def left_of(member: Member) -> str:
    kept = OwnScoresFolder(member.state / OWN_SCORES).of(RunId("r"))
    return next(one.left for one in kept if one.version == 1)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.skipif(
    not ALL, reason="tests/unit shows both halves: the sum is refused, and the run is complete; make faults"
)
async def test_an_update_that_is_not_0_moves_nothing_and_costs_the_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lying(spec: RunSpec, out: Path) -> TrainedUpdate:
        honest = untrained(spec, out)
        if MEMBERS[1] not in out.parts:
            return honest
        manifest = write_weights(out, LAYOUT, [np.full(LAYOUT.values, 1e-3, np.float32)])
        return replace(honest, digest=manifest.digest)

    monkeypatch.setattr(private_round, "untrained", lying)
    async with serving(tmp_path / "server", SystemClock(), silence_s=5) as served:
        await served.create("r", closing_spec())
        async with members(tmp_path / "clients", served, ScoringWorker) as some:
            await some.start(*MEMBERS)
            run = await some.run_to_its_end()
        assert (run.outcome, run.version) == (rpb.RUN_OUTCOME_COMPLETED, 1)
        assert "without closing scores: The sum" in run.outcome_reason, run.outcome_reason
        assert "nobody trains in it" in run.outcome_reason
        assert await clean(served, tmp_path) == 1
