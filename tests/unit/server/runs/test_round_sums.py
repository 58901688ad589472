"""The newest sums of a run's private rounds, as the store has them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from support.memory_coordinator import MemoryCoordinator
from support.private_round import NAMES, ONE, body_of, keying, send, sha256

from pluralllm.common.private_rounds.ring import MemberTail
from pluralllm.common.words.ids import Digest, RoundNumber
from pluralllm.server.composition import gauges_of
from pluralllm.server.observe.page_facts import History, history_facts
from pluralllm.server.rounds import events as ev
from pluralllm.server.rpc.messages import round_message, sum_message
from pluralllm.server.runs.inbox import Inbox
from pluralllm.server.runs.live_run import LiveRun
from pluralllm.server.runs.round_sums import NewestSums, RoundSums, newest_sums, sum_of

SCORES = (0.71, 0.9, None, 0.72)


def tail_of_sum(*scores: float | None) -> tuple[int, ...]:
    tails = [MemberTail(30, place == 0, 30, 100, 1.5, 0.25, score).words() for place, score in enumerate(scores)]
    return tuple(np.sum(tails, axis=0).tolist())


async def summed(place: MemoryCoordinator) -> LiveRun:
    """Returns a run whose first private round has made a version."""
    run = await keying(place)
    for step in (ev.RoundStep.KEYS, ev.RoundStep.SHARES, ev.RoundStep.UPDATE):
        await send(place, run, step, *NAMES)
    await send(place, run, ev.RoundStep.CONFIRMATION, *NAMES[:3])
    await send(place, run, ev.RoundStep.REVEAL, *NAMES[:2])
    inbox, body = Inbox(place.parts.store), body_of(ev.RoundStep.REVEAL, NAMES[2])
    await inbox.put(run, ev.RevealArrived(5.0, ONE, NAMES[2], sha256(body)), body)
    averaged = ev.ModelAveraged(6.0, ONE, Digest("8" * 64), transcript=Digest("7" * 64), tail=tail_of_sum(*SCORES))
    assert ev.event_from_facts("ModelAveraged", ev.event_to_facts(averaged)) == averaged
    await inbox.put(run, averaged)
    return run


async def test_the_round_keeps_what_its_sum_says_about_all_updates_together(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await summed(place)
    sums = await RoundSums(place.parts.store).of(run)
    assert sums.newest is not None
    assert sums.newest == sums.scored
    message = sum_message(sums.newest)
    assert message is not None
    assert (message.round, message.base_version, message.updates, message.clipped_updates) == (1, 0, 4, 1)
    assert (message.weight, message.scored) == (120, 3)
    assert abs(message.mean_loss - 1.5) < 1e-3
    assert abs(message.mean_alignment_score - (0.71 + 0.9 + 0.72) / 3) < 1e-6
    assert [(place, count) for place, count in enumerate(message.score_histogram) if count] == [
        (22, 1),
        (23, 1),
        (28, 1),
    ]
    record = await place.parts.store.round(run.id, ONE)
    assert record is not None
    assert round_message(record, (), sum_of(record, run.spec)).sum == message
    assert not round_message(record, ()).HasField("sum")


async def test_a_run_is_asked_for_its_sums_once_after_each_round(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run, asked = await keying(place), list[int]()
    before = place.parts.store.rounds

    async def rounds(*arguments: object) -> object:
        asked.append(1)
        return await before(*arguments)  # type: ignore[arg-type]

    place.parts.store.rounds = rounds  # type: ignore[method-assign,assignment]
    sums = RoundSums(place.parts.store)
    assert [await sums.of(run) for _ in range(2)] == [NewestSums()] * 2
    assert asked == [1]


async def test_a_sum_without_scores_does_not_hide_the_scores_of_an_earlier_one(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await summed(place)
    record = await place.parts.store.round(run.id, ONE)
    assert record is not None
    later = replace(record, round=RoundNumber(2), tail=tail_of_sum(None, None, None))
    plain = replace(record, round=RoundNumber(3), tail=())
    sums = newest_sums([plain, later, record], run.spec)
    assert sums.newest is not None
    assert sums.scored is not None
    assert (sums.newest.record.round, sums.scored.record.round) == (2, 1)
    history = History()
    history.add_round(1, (), sums.scored)
    facts = history_facts(run, history, (), (), sums)
    assert facts["loss"] == [[1, 0.2498]]
    assert facts["scores_in_sum"].startswith(
        "scores of version 0 inside a sum: mean alignment 0.7767 over 3 of 4 members"
    )
    assert facts["clipped"] == "round 2: 1 of 3 updates were scaled down to the largest norm"
    nothing = history_facts(run, History(), (), (), NewestSums())
    assert (nothing["scores_in_sum"], nothing["clipped"]) == ("", "")


async def test_the_metrics_have_the_mean_and_the_worst_bin_of_the_scores(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    await summed(place)
    families = await gauges_of(place.parts, None, lambda: 0.0).read()
    values = {one.name: one.value for family in families for one in family.samples if "_sum_" in one.name}
    mean, loss = values.pop("pluralllm_sum_alignment_score"), values.pop("pluralllm_sum_loss")
    assert (round(mean, 4), round(loss, 2)) == (0.7767, 1.5)
    assert values == {
        "pluralllm_sum_updates": 4,
        "pluralllm_sum_clipped_updates": 1,
        "pluralllm_sum_scored": 3,
        "pluralllm_sum_worst_score": 22 / 32,
    }
