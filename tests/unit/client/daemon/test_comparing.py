"""The partner learns at the first tasks of a run how many of its questions others have, if its policy allows the call."""

from dataclasses import replace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs
from support.open_policy import open_policy
from support.process_harness import process_spec
from support.tasks import task_of

from pluralllm.client.daemon.comparing import CALLS, Comparing
from pluralllm.client.link.tasks import Task
from pluralllm.common.errors.tree import DataChanged, Unreachable
from pluralllm.common.words.ids import Digest, RunId
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.question_digests import question_digests
from pluralllm.common.words.questions import Question
from pluralllm.v1 import federation_pb2 as pb

SPEC = process_spec()
QUESTIONS = tuple(Question(f"Question {number}?", ("Yes", "No"), (0.5, 0.5)) for number in range(3))


def at_round(number: int) -> Task:
    return task_of(SPEC, round_number=number)


class Coordinator:
    """A transport whose coordinator counts as the answers say."""

    def __init__(self, *answers: tuple[int, int] | Exception) -> None:
        self.answers, self.requests = list(answers), list[Any]()

    async def call(self, method: str, request: Any, deadline_s: float | None = None) -> Any:
        assert (method, deadline_s) == ("CompareQuestions", None)
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return pb.CompareQuestionsResponse(members=answer[0], shared=answer[1], compared=3)


class File:
    """A private file that counts how often it is read."""

    def __init__(self, problem: Exception | None = None, changed_by_read: Exception | None = None) -> None:
        self.problem, self.changed_by_read = problem, changed_by_read
        self.sha256, self.questions, self.reads = "ab" * 32, QUESTIONS, 0

    def check(self) -> None:
        if self.problem is not None:
            raise self.problem

    def read(self) -> tuple[Question, ...]:
        self.reads += 1
        self.problem = self.changed_by_read
        return self.questions


async def logged(
    coordinator: Coordinator, *tasks: Task, file: File | None = None, allowed: bool = True
) -> list[tuple[str, int, int]]:
    comparing = Comparing(open_policy(compare_questions=allowed), cast(Any, file or File()), coordinator)
    with capture_logs() as logs:
        for task in tasks:
            await comparing.compare(task)
    return [(entry["event"], entry["members"], entry["shared"]) for entry in logs if "members" in entry]


async def test_counts_are_told_when_they_are_new_and_asked_for_three_times() -> None:
    coordinator, task = Coordinator((0, 0), (2, 3), (2, 3)), at_round(1)
    assert await logged(coordinator, *map(at_round, range(1, CALLS + 3))) == [("questions.shared", 2, 3)]
    assert len(coordinator.requests) == CALLS == 3
    request = coordinator.requests[0]
    assert (request.run, tuple(request.digests)) == (
        task.run,
        question_digests(task.run, task.spec_sha256, QUESTIONS),
    )


async def test_a_client_that_shares_nothing_is_warned() -> None:
    assert await logged(Coordinator((1, 0), (2, 0)), at_round(1), at_round(2)) == [
        ("questions.not_shared", 1, 0),
        ("questions.not_shared", 2, 0),
    ]


@pytest.mark.parametrize("kind", [TaskKind.TRAIN, TaskKind.EVALUATE, TaskKind.REWARD])
@pytest.mark.parametrize("allowed", [True, False])
async def test_nothing_leaves_for_rewards_or_against_the_policy(kind: TaskKind, allowed: bool) -> None:
    coordinator = Coordinator((1, 1))
    await logged(coordinator, task_of(SPEC, kind), allowed=allowed)
    assert len(coordinator.requests) == (allowed and kind is not TaskKind.REWARD)


async def test_a_failed_comparison_costs_no_task_and_is_tried_again_at_the_next_one() -> None:
    coordinator = Coordinator(Unreachable(address="there", problem="gone"), (1, 1))
    assert await logged(coordinator, at_round(1), at_round(1), at_round(2)) == [("questions.shared", 1, 1)]
    assert len(coordinator.requests) == 2, "a task that is tried twice compares once"
    coordinator = Coordinator((1, 1))
    assert await logged(coordinator, task_of(SPEC), file=File(DataChanged(file="town.jsonl"))) == []
    assert coordinator.requests == []


async def test_the_file_is_read_again_for_another_content_and_another_run_only() -> None:
    file, coordinator = File(), Coordinator(*[(1, 1)] * 5)
    comparing = Comparing(open_policy(compare_questions=True), cast(Any, file), coordinator)
    for number in (1, 2):
        await comparing.compare(at_round(number))
    assert file.reads == 1
    file.sha256, file.questions = "cd" * 32, QUESTIONS[:1]
    await comparing.compare(at_round(3))
    other_run = replace(at_round(1), run=RunId("other"))
    other_spec = replace(at_round(2), run=RunId("other"), spec_sha256=Digest("ef" * 32))
    for task in (other_run, other_spec):
        await comparing.compare(task)
    assert file.reads == 4
    asked = [(at_round(1), QUESTIONS), (at_round(2), QUESTIONS), (at_round(3), QUESTIONS[:1])]
    asked += [(other_run, QUESTIONS[:1]), (other_spec, QUESTIONS[:1])]
    expected = [question_digests(task.run, task.spec_sha256, questions) for task, questions in asked]
    assert [tuple(request.digests) for request in coordinator.requests] == expected


async def test_digests_of_a_file_that_has_changed_since_are_not_sent() -> None:
    file, coordinator = File(), Coordinator((1, 1))
    comparing = Comparing(open_policy(compare_questions=True), cast(Any, file), coordinator)
    await comparing.compare(at_round(1))
    file.problem = DataChanged(file="town.jsonl")
    await comparing.compare(at_round(2))
    assert len(coordinator.requests) == 1


async def test_digests_of_a_file_that_changes_while_it_is_read_are_not_sent() -> None:
    file, coordinator = File(changed_by_read=DataChanged(file="town.jsonl")), Coordinator((1, 1))
    comparing = Comparing(open_policy(compare_questions=True), cast(Any, file), coordinator)
    await comparing.compare(at_round(1))
    assert coordinator.requests == []
    file.problem = file.changed_by_read = None
    await comparing.compare(at_round(2))
    assert (len(coordinator.requests), file.reads) == (1, 2)
