"""Logs how many of the partner's questions other members of a run have, if the policy allows the comparison.

Groups that have no question in common withhold nothing from each other's training, and a partner could not notice it otherwise.
"""

import asyncio

import structlog

from pluralllm.client.data.private_file import PrivateFile
from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.link.question_calls import Calls, shared_questions
from pluralllm.client.link.tasks import Task
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.words.ids import Digest, RunId
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.question_digests import SharedQuestions, question_digests

log = structlog.get_logger()

CALLS = 3  # for one run and process: the first members of a round have nobody to compare with
MAX_RUNS = 1_000  # that are remembered


class Comparing:
    """Compares the questions of this client at the first tasks of each run. A failed comparison costs no task."""

    def __init__(self, policy: Policy, data: PrivateFile, transport: Calls) -> None:
        self._policy, self._data, self._transport = policy, data, transport
        self._tasks: dict[str, set[str]] = {}  # at which the questions were compared, by run
        self._logged: tuple[str, SharedQuestions] | None = None  # run and counts that were logged last
        # The last digests, with the run, the spec and the content of the file that they are for.
        self._last: tuple[tuple[RunId, Digest, str], tuple[int, ...]] | None = None

    async def compare(self, task: Task) -> None:
        """Compares the questions for the run of a task, and logs the counts when they are new."""
        if not self._policy.compare_questions or task.kind is TaskKind.REWARD:
            return
        if len(self._tasks) >= MAX_RUNS and task.run not in self._tasks:
            self._tasks.pop(next(iter(self._tasks)))
        before = self._tasks.setdefault(task.run, set())
        if len(before) >= CALLS or task.name in before:
            return
        before.add(task.name)
        try:
            digests = await self._digests(task)
            counts = await shared_questions(self._transport, task.run, digests)
        except PluralError as error:  # a coordinator of an earlier release does not know the call
            log.info("questions.not_compared", run=task.run, problem=str(error))
            return
        if counts.members and (task.run, counts) != self._logged:
            self._logged = task.run, counts
            facts = {"run": task.run, "questions": counts.compared, "shared": counts.shared, "members": counts.members}
            if counts.shared:
                log.info("questions.shared", **facts)
            else:
                fix = "check the texts with the others: pluralllm-client data check FILE --against LIST"
                log.warning("questions.not_shared", **facts, fix=fix)

    async def _digests(self, task: Task) -> tuple[int, ...]:
        """Returns the digests of the client's questions for the run of a task. The file is read again only if it must be.

        Raises what `PrivateFile.check` and `PrivateFile.read` raise.
        """
        self._data.check()
        made_for = task.run, task.spec_sha256, self._data.sha256
        if self._last is not None and self._last[0] == made_for:
            return self._last[1]
        questions = await asyncio.to_thread(self._data.read)
        digests = await asyncio.to_thread(question_digests, task.run, task.spec_sha256, questions)
        self._data.check()  # else the digests could be those of a later content
        self._last = made_for, digests
        return digests
