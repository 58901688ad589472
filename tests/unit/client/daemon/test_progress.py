"""Progress of the worker on its way to the coordinator."""

import asyncio

from pluralllm.client.daemon.progress import ProgressReports
from pluralllm.common.process.clock import FakeClock
from pluralllm.common.process.watched_tasks import WatchedTasks


async def test_progress_leaves_with_a_known_stage_and_in_hundredths() -> None:
    sent: list[tuple[str, float]] = []
    stages: list[str] = []

    async def report(stage: str, share: float) -> None:
        sent.append((stage, share))

    tasks = WatchedTasks(FakeClock(), print)
    for stage in ("training", "83 % answered yes"):
        ProgressReports(report, stages.append, tasks.spawn)(stage, 1, 3)
    await asyncio.sleep(0)
    assert sent == [("training", 0.33), ("working", 0.33)]
    assert stages == ["training", "83 % answered yes"], "the partner's own log has the stage as it is"
