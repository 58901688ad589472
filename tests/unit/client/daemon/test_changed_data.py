"""A private file that changes under a daemon: Hello says it before any work, and a broken file costs no run for good."""

import json
from pathlib import Path
from typing import Any

import pytest
from hostile.evil_tasks import EvilCoordinator, Victim
from structlog.testing import capture_logs
from support.coordinator_harness import small_spec
from support.open_policy import open_policy

from pluralllm.client.daemon.work_under_way import JoinedRun
from pluralllm.client.data.answers import sha256_of
from pluralllm.client.data.private_file import Answers, PrivateFile
from pluralllm.client.disclosure.measurements import MeasuredTraining
from pluralllm.client.keeping.record_chain import OwnUpdate
from pluralllm.client.work.orders import PREPARE, Prepared, TrainedUpdate
from pluralllm.common.words.ids import Digest, RoundNumber

SPEC = small_spec()


def write(path: Path, questions: int) -> None:
    row = {"options": ["yes", "no"], "shares": [0.5, 0.5]}
    path.write_text("".join(json.dumps({"question": f"{n}?", **row}) + "\n" for n in range(questions)))


def spoil(path: Path) -> None:
    path.write_text("no JSON\n")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "answers.jsonl", 60)
    return tmp_path / "answers.jsonl"


@pytest.fixture
def victim(file: Path) -> Victim:
    (state := file.parent / "state").mkdir()
    return Victim(state, open_policy(), EvilCoordinator(SPEC), PrivateFile(file, state))


async def test_a_change_is_in_the_next_hello(victim: Victim, file: Path) -> None:
    daemon, coordinator = victim.daemon, victim.coordinator
    assert not await daemon.must_greet()
    await daemon.greet()
    write(file, 75)
    assert await daemon.must_greet()
    await daemon.greet()
    assert not await daemon.must_greet()
    assert [(said.questions, said.data_changed_s is not None) for said in coordinator.hellos] == [
        (60, False),
        (75, True),
    ]


async def test_a_task_that_comes_after_a_change_begins_only_after_hello(victim: Victim, file: Path) -> None:
    write(file, 75)
    assert not await victim.daemon.take(victim.coordinator.task)
    assert not victim.daemon.is_working
    assert victim.coordinator.calls == []


async def test_a_broken_file_refuses_the_task_before_anything_is_fetched_until_it_is_mended(
    victim: Victim, file: Path
) -> None:
    spoil(file)
    assert not await victim.daemon.must_greet()
    await victim.daemon.take(victim.coordinator.task)
    await victim.coordinator.until_called("ReportFailure")
    assert victim.coordinator.refusals == [
        ("INVALID_DATA", "The private file has problems; the client's log says more.", True)
    ]
    assert victim.coordinator.calls == ["GetRunSpec", "ReportFailure"]
    assert victim.worker.orders == []
    write(file, 60)
    assert await victim.daemon.must_greet(), "Hello takes back the refusal"


async def test_released_answers_are_in_the_next_hello_and_in_the_next_order(file: Path) -> None:
    """A release changes the ledger; the daemon looks at the ledger before each task, without a restart."""
    ledger, noised = file.with_name("ledger.jsonl"), [file.with_name(f"noised-{number}.jsonl") for number in (0, 2)]
    for path, questions in zip(noised, (60, 61), strict=True):
        write(path, questions)
    ledger.write_text("one\n")

    def choose() -> Answers:
        path = noised[len(ledger.read_text().splitlines()) - 1]
        return Answers(path, sha256_of(path), (ledger,))

    (state := file.parent / "state").mkdir()
    victim = Victim(state, open_policy(), EvilCoordinator(SPEC), PrivateFile(file, state, choose))
    await victim.daemon.greet()
    spoil(file)  # the private file itself is not read any more
    assert not await victim.daemon.must_greet()
    ledger.write_text("one\ntwo\n")
    assert not await victim.daemon.take(victim.coordinator.task)
    assert not victim.daemon.is_working, "no task begins with the answers of the release before"
    assert await victim.daemon.must_greet()
    await victim.daemon.greet()
    assert [said.questions for said in victim.coordinator.hellos] == [60, 61]
    order = victim.daemon._making._orders.prepare(SPEC, SPEC.canonical_json())
    assert (order.data, order.data_sha256) == (noised[1], sha256_of(noised[1]))


class TrainedAtOnce:
    """A worker that has trained on some number of examples."""

    def __init__(self, examples: int) -> None:
        self._examples = examples

    async def ask(self, command: object, *_: object) -> Any:
        if command is PREPARE:
            return Prepared(60, "cpu")
        measured = MeasuredTraining(loss=1.0, base_distance=0.5, target_questions=40, first_target_questions=40)
        return TrainedUpdate(Digest("d" * 64), self._examples, measured, 0)


@pytest.mark.parametrize(("acknowledged", "examples", "weight"), [(True, 48, 50), (True, 61, 50), (False, 61, 61)])
async def test_the_weight_of_the_first_acknowledged_update_stays_in_the_run(
    victim: Victim, acknowledged: bool, examples: int, weight: int
) -> None:
    daemon, task = victim.daemon, victim.coordinator.task
    first = OwnUpdate(Digest("a" * 64), 50, task.base_version, acknowledged)
    daemon._history._note_update(task.run, RoundNumber(1), first)
    daemon._making._worker = TrainedAtOnce(examples)  # type: ignore[assignment]
    with capture_logs() as logs:
        entry = await daemon._produce(task, JoinedRun(SPEC, SPEC.canonical_json()), Path("base"))
    assert entry.examples == weight
    told = [(line["examples"], line["examples_now"]) for line in logs if line["event"] == "update.keeps_weight"]
    assert told == ([(50, examples)] if acknowledged else [])
