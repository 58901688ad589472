"""The daemon's records of its task and of its runs, in memory."""

import asyncio
from dataclasses import dataclass

from pluralllm.client.link.tasks import Task
from pluralllm.common.words.spec import RunSpec


@dataclass(slots=True)
class Work:
    """The task that the daemon works on, and the asyncio task that does the work."""

    task: Task
    doing: "asyncio.Task[None]"
    stage: str = "starting"


@dataclass(slots=True)
class JoinedRun:
    """The run spec of a run that this client takes part in, in two forms: parsed, and as canonical JSON."""

    spec: RunSpec
    spec_json: bytes
