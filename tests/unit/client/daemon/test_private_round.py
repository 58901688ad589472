"""The steps that the daemon's private rounds hear of, and the pins that take a refusal back."""

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.process_harness import process_spec
from support.tasks import task_of

from pluralllm.client.daemon import private_round
from pluralllm.client.daemon.private_round import Heard, PrivateRound, PrivateRounds
from pluralllm.client.keeping.history import History
from pluralllm.client.private_rounds.notebooks import Notebooks
from pluralllm.client.private_rounds.pins import save_pins
from pluralllm.common.errors.private_rounds import TooFewKnown, WrongStep
from pluralllm.common.errors.tree import LeaseLost, PluralError, RoundClosed, Unreachable
from pluralllm.common.words.ids import Digest, RoundNumber, RunId
from pluralllm.common.words.names import TaskKind

TASK = task_of(process_spec(), round_number=3)
ANN = {"ann": "a" * 64}


async def test_a_step_is_news_once_and_wakes_whoever_waits_for_another_step() -> None:
    heard = Heard()
    assert heard.hear(replace(TASK, phase=1))
    assert not heard.hear(replace(TASK, phase=1))
    waiting = asyncio.ensure_future(heard.other_than(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert heard.hear(replace(TASK, phase=2))
    await asyncio.wait_for(waiting, 5)
    await asyncio.wait_for(heard.other_than(1), 5)
    assert heard.hear(task_of(process_spec(), round_number=4, phase=2)), "another task"


async def test_a_round_that_waits_to_ask_again_ends_although_the_news_of_another_task_comes_with_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def wrong_step(*_: Any, **__: Any) -> None:
        raise WrongStep(problem="the round is unmasking")

    monkeypatch.setattr(PrivateRound, "_step", wrong_step)
    for turns in range(1, 6):
        heard = Heard()
        heard.hear(replace(TASK, phase=4))
        playing = PrivateRound(cast(Any, SimpleNamespace(transport=None)), heard, TASK, cast(Any, None))
        waiting = asyncio.ensure_future(playing._is_taken(cast(Any, None), 4, checked=True))
        for _ in range(turns):
            await asyncio.sleep(0)
        heard.hear(task_of(process_spec(), TaskKind.EVALUATE, round_number=3))
        for _ in range(turns % 2):
            await asyncio.sleep(0)
        waiting.cancel()
        done, _ = await asyncio.wait([waiting], timeout=5)
        assert done
        assert waiting.cancelled() or turns % 2, "the news ended the wait, and the cancellation was lost"


def rounds_in(folder: Path) -> PrivateRounds:
    notebooks = Notebooks(folder / "private", History(folder / "history"))
    dropped: list[str] = []
    means = SimpleNamespace(
        name="ann", pins=folder / "peers.toml", notebooks=notebooks, transport=None, dropped=dropped
    )
    means.outbox = SimpleNamespace(drop=dropped.append)
    return PrivateRounds(cast(Any, means))


async def test_pins_that_change_after_a_refusal_take_it_back_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(*_: Any) -> None:
        raise TooFewKnown(members=4, pinned=1, needed=4)

    monkeypatch.setattr(private_round.PrivateRound, "play", refuses)
    rounds = rounds_in(tmp_path)
    save_pins(tmp_path / "peers.toml", {})
    assert not rounds.has_new_pins()
    with pytest.raises(TooFewKnown):
        await rounds.play(TASK, cast(Any, None))
    assert not rounds.has_new_pins()
    (tmp_path / "peers.toml").write_text("no pins")
    assert not rounds.has_new_pins(), "a bad file"
    save_pins(tmp_path / "peers.toml", ANN)
    assert [rounds.has_new_pins(), rounds.has_new_pins()] == [True, False]


async def test_pins_that_come_while_a_round_is_refused_take_the_refusal_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(playing: PrivateRound) -> None:
        await playing._myself(cast(Any, SimpleNamespace(terms=SimpleNamespace(roster_head=b"h"))), checked=True)
        save_pins(tmp_path / "peers.toml", ANN)  # the owner's command, while the round waits for the next step
        raise TooFewKnown(members=4, pinned=0, needed=4)

    async def follow(_: bytes) -> None:
        return None

    monkeypatch.setattr(private_round.PrivateRound, "play", refuses)
    monkeypatch.setattr(private_round, "terms_of", lambda *_, **__: None)
    rounds = rounds_in(tmp_path)
    means = cast(Any, rounds)._means
    means.peers, means.federation = SimpleNamespace(follow=follow, key=None), ""
    means.rules = SimpleNamespace(colluders=1, hidden_among=1)
    save_pins(tmp_path / "peers.toml", {})
    with pytest.raises(TooFewKnown):
        await rounds.play(TASK, cast(Any, SimpleNamespace(spec=None)))
    assert rounds.has_new_pins()


@pytest.mark.parametrize(
    ("kind", "left"), [(TaskKind.TRAIN, [3]), (TaskKind.EVALUATE, [])], ids=["a training", "an evaluation"]
)
def test_a_task_ends_the_rounds_before_it(tmp_path: Path, kind: TaskKind, left: list[int]) -> None:
    rounds = rounds_in(tmp_path)
    notebooks = rounds._means.notebooks
    for run, number in (("r", 2), ("r", 3), ("other", 1)):
        notebooks.open(RunId(run), RoundNumber(number)).write_keys(bytes(32), bytes(32), b"keys")
    rounds.close_before(replace(TASK, kind=kind))
    ended = [number for number in (2, 3) if number not in left]
    assert cast(Any, rounds._means).dropped == [f"runs/r/rounds/{number}/tasks/train-ann" for number in ended]
    assert notebooks.open_rounds() == [("other", 1), *(("r", number) for number in left)]


def test_a_masked_update_stays_in_the_outbox_while_its_round_may_go_on(tmp_path: Path) -> None:
    rounds = rounds_in(tmp_path)
    means: Any = rounds._means
    means.notebooks.open(RunId("r"), RoundNumber(3)).write_keys(bytes(32), bytes(32), b"keys")
    rounds.drop_result(TASK)
    assert means.dropped == []
    means.notebooks.close(RunId("r"), RoundNumber(3))
    rounds.drop_result(TASK)
    assert means.dropped == [TASK.name]


CLOSED = RoundClosed(run="r", asked=2, current=2)
GOES_ON = (
    RoundClosed(run="r", asked=2, current=1),  # of a coordinator that was overtaken before the round
    LeaseLost(task="t"),
    WrongStep(problem="it is in step 3"),
    Unreachable(address="a:1", problem="nobody answers"),
    None,
)


@pytest.mark.parametrize("answer", [CLOSED, *GOES_ON], ids=lambda answer: type(answer).__name__)
async def test_a_round_ends_only_if_the_coordinator_says_that_it_is_closed(
    tmp_path: Path, answer: PluralError | None
) -> None:
    asked: list[tuple[str, str]] = []

    async def call(method: str, request: Any) -> None:
        asked.append((method, request.task))
        if answer is not None:
            raise answer

    rounds = rounds_in(tmp_path)
    means: Any = rounds._means
    means.transport = SimpleNamespace(call=call)
    means.notebooks.open(RunId("r"), RoundNumber(2)).write_keys(bytes(32), bytes(32), b"keys")
    await rounds.close_ended()
    task = "runs/r/rounds/2/tasks/train-ann"
    assert asked == [("GetRoundStep", task)]
    ended = answer is CLOSED
    assert means.dropped == ([task] if ended else [])
    assert means.notebooks.open_rounds() == ([] if ended else [("r", 2)])
    await rounds.close_ended()
    assert len(asked) == (1 if ended else 2)
    if ended:
        with pytest.raises(RoundClosed):
            means.notebooks.open(RunId("r"), RoundNumber(2))


@pytest.mark.parametrize(
    ("in_sum", "is_known"), [(("ann", "bob"), True), (("bob", "cat"), False)], ids=["in the sum", "left out"]
)
def test_a_receipt_proves_nothing_any_more_once_a_complaint_has_taken_the_update_out_of_the_sum(
    tmp_path: Path, in_sum: tuple[str, ...], is_known: bool
) -> None:
    history, digest = History(tmp_path), Digest("d" * 64)
    with history.handing_in(TASK, digest, 1):
        pass
    means = cast(Any, SimpleNamespace(history=history, sums="sums", transport=None))
    played = private_round.PrivateRound(means, Heard(), TASK, cast(Any, None))
    notebook, me = SimpleNamespace(line=lambda kind: SimpleNamespace(digest=digest)), SimpleNamespace(name="ann")
    view = SimpleNamespace(updates=[SimpleNamespace(name=name) for name in in_sum])
    calls = []

    def step(*arguments: Any, has_receipt: bool) -> str:
        calls.append((arguments, has_receipt))
        return "signed"

    assert played._signed_sum(step, cast(Any, notebook), cast(Any, me), cast(Any, view)) == "signed"
    assert calls == [((notebook, me, view, "sums"), True)], (
        "the step itself knows of the receipt, and checks the complaint"
    )
    assert [one.acknowledged for one in history.seen(TASK.run).own_updates[TASK.round]] == [is_known]
