"""Computes a model version of private rounds again from what is public, before this client trains on it."""

import asyncio
from pathlib import Path

import structlog

from pluralllm.client.link.tasks import Task
from pluralllm.common.predictor.first_version import write_first_version
from pluralllm.common.process.files import make_folder
from pluralllm.common.words.ids import RunId
from pluralllm.common.words.spec import RunSpec

log = structlog.get_logger()


class Verification:
    """The check of model versions."""

    def __init__(self, folder: Path) -> None:
        """Stores the arguments. folder: for the files of a check under way."""
        self._folder = folder

    async def is_checked(self, task: Task, spec: RunSpec) -> bool:
        """Returns whether this client has computed a task's base version again, and it is the one that the task states."""
        if task.base_version == 0:
            return await asyncio.to_thread(self._first_is_true, task, spec)
        return False

    def forget(self, run: RunId) -> None:
        """Deletes what was kept for a run that is over."""

    def _first_is_true(self, task: Task, spec: RunSpec) -> bool:
        make_folder(self._folder)
        draft = self._folder / f"{task.run}.first"
        try:
            return write_first_version(draft, spec).digest == task.base_digest
        finally:
            draft.unlink(missing_ok=True)
