"""The limits of the worker process: the time of a task, and the memory of the process."""

import asyncio
import os
import sys
from dataclasses import dataclass

import pytest

from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.work.commands import Command
from pluralllm.client.work.orders import Prepared
from pluralllm.client.work.worker_limits import NO_LIMITS, WorkerLimits, resident_bytes
from pluralllm.client.work.worker_process import WorkerProcess
from pluralllm.common.errors.tree import PluralError, PolicyForbids

pytestmark = [pytest.mark.timeout(60), pytest.mark.seconds]
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Hold:
    """The order to hold some memory, and to answer after that many seconds."""

    mib: int
    wait_s: float


HOLD = Command("hold", Hold, Prepared)
# A worker that holds memory. It reads on while it works, as the real one does, and ends with its input.
PROGRAM = """
import json, os, sys, threading, time
lines = iter(sys.stdin.readline, "")
for line in lines:
    command = json.loads(line)
    if command["do"] == "cancel":
        continue
    order = command["order"]
    held = bytearray(os.urandom(1 << 20)) * order["mib"]
    threading.Event().wait(order["wait_s"])
    print(json.dumps({"id": command["id"], "result": {"questions": order["mib"], "device": "cpu"}}), flush=True)
"""


def worker(limits: WorkerLimits) -> WorkerProcess:
    process = WorkerProcess((sys.executable, "-c", PROGRAM))
    process.limits = limits
    return process


async def hold(process: WorkerProcess, mib: int, wait_s: float) -> Prepared:
    return await process.ask(HOLD, Hold(mib, wait_s), lambda *_: None)


async def test_a_worker_above_its_memory_is_killed_and_the_error_names_the_key() -> None:
    process = worker(WorkerLimits(memory_gib=0.125))
    with pytest.raises(PolicyForbids, match=r"max_worker_memory_gib is 0\.\d, allowed is at most 0.125"):
        await hold(process, 200, 30)
    assert process.pid is None
    assert (await hold(process, 1, 0)).questions == 1, "the next order has a new process"
    await process.stop()


@pytest.mark.parametrize("limits", [WorkerLimits(memory_gib=1.0), NO_LIMITS])
async def test_a_worker_below_its_memory_goes_on(limits: WorkerLimits) -> None:
    process = worker(limits)
    assert (await hold(process, 200, 1.2)).questions == 200
    await process.stop()


async def test_work_that_takes_longer_than_the_policy_allows_is_stopped_and_the_error_names_the_key() -> None:
    process, limits = worker(NO_LIMITS), WorkerLimits(task_minutes=0.2 / 60)
    with pytest.raises(PolicyForbids, match="max_task_minutes is more than"):
        async with limits.task_time():
            await hold(process, 1, 30)
    assert process.pid is None, "the worker that did not stop is gone"
    await process.stop()


async def test_work_in_time_and_errors_of_the_work_pass() -> None:
    async with WorkerLimits(task_minutes=1).task_time(), NO_LIMITS.task_time():
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with WorkerLimits(task_minutes=1).task_time():
            raise TimeoutError  # of something else in the block
    with pytest.raises(PluralError, match="another"):
        async with NO_LIMITS.task_time():
            raise PolicyForbids(key="another", asked="1", allowed="2")


def test_a_policy_sets_both_limits() -> None:
    assert WorkerLimits.of(Policy()) == WorkerLimits(120.0, 16.0)
    assert WorkerLimits.of(Policy(max_task_minutes=1, max_worker_memory_gib=2)) == WorkerLimits(1.0, 2.0)


def test_the_memory_of_a_process_is_read_and_none_of_a_process_that_is_gone() -> None:
    assert 10 * MIB < resident_bytes(os.getpid()) < 100_000 * MIB
    assert resident_bytes(2**22 + 1) == 0
