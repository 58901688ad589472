"""Gives tasks to several worker processes side by side. A worker that dies is replaced, and its task is begun again."""

import asyncio
import collections
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from pluralllm.client.work.worker_process import WorkerProcess
from pluralllm.common.errors.tree import WorkerDied

log = structlog.get_logger()

MAX_TRIES = 3  # how often a task is begun before its workers' deaths end the work

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


async def side_by_side(
    tasks: Sequence[TaskT],
    workers: Sequence[WorkerProcess],
    work: Callable[[TaskT, WorkerProcess], Awaitable[ResultT]],
    option: str,
) -> AsyncGenerator[tuple[TaskT, ResultT], None]:
    """Does every task, and yields each task with its result as soon as it is there. Each worker takes the next task.

    work: does one task with one worker. A task whose worker dies is begun again, at most MAX_TRIES times in all.
    option: sets the number of workers; an error about dead workers names it. Close the generator to cancel
    the tasks; the caller stops the workers.
    Raises the first error of a worker, or WorkerDied after MAX_TRIES deaths in one task.
    """
    waiting = collections.deque(tasks)
    idle = list(workers)
    running: set[asyncio.Task[tuple[TaskT, ResultT]]] = set()

    async def begin(task: TaskT, worker: WorkerProcess) -> tuple[TaskT, ResultT]:
        result = await _with_tries(task, worker, work, option)
        idle.append(worker)
        return task, result

    try:
        while waiting or running:
            while waiting and idle:
                running.add(asyncio.create_task(begin(waiting.popleft(), idle.pop())))
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for ended in sorted(done, key=lambda task: task.exception() is not None):  # no finished task is lost
                yield ended.result()
    finally:
        for unfinished in running:
            unfinished.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _with_tries(
    task: TaskT, worker: WorkerProcess, work: Callable[[TaskT, WorkerProcess], Awaitable[ResultT]], option: str
) -> ResultT:
    for tries in range(1, MAX_TRIES + 1):
        try:
            return await work(task, worker)
        except WorkerDied as error:
            if worker.pid is not None:  # the process lives and says what is wrong: it would say the same again
                raise
            if tries == MAX_TRIES:
                problem = f"{error.problem}, {tries} times in {task}; if memory ran out, give fewer {option}"
                raise WorkerDied(problem=problem) from error
            log.warning("unit.retried", unit=str(task), tries=tries, at_most=MAX_TRIES, problem=error.problem)
    raise AssertionError("the last try returns or raises")
