"""What a daemon asks its worker to do for a task, command by command. The other end is worker.py; tensors travel as files."""

from pathlib import Path
from typing import Any

from pluralllm.client.joining.partner import Partner
from pluralllm.client.keeping.drafts import Drafts
from pluralllm.client.link.tasks import Scores, Task
from pluralllm.client.process.config import ClientConfig
from pluralllm.client.work.worker_process import Progress, WorkerProcess
from pluralllm.common.words.spec import RunSpec


class Orders:
    """Each raises the leaf the worker answers with, or WorkerDied; cancelling one cancels the work."""

    def __init__(
        self, worker: WorkerProcess, config: ClientConfig, partner: Partner, state: Path, drafts: Drafts
    ) -> None:
        self._worker, self._config, self._partner = worker, config, partner
        self._cache = (config.cache_dir or state / "cache").absolute()
        self._drafts = drafts

    async def prepare(self, spec: RunSpec, spec_json: bytes, tell: Progress) -> None:
        """The worker reads, embeds and checks the private data; only the first time takes long."""
        config, partner = self._config, self._partner
        await self._worker.ask(
            "prepare",
            tell,
            spec_json=spec_json.decode(),
            data=str(config.data.absolute()),
            group=partner.group,
            role=(spec.groups.role_of(partner.group, partner.role) or partner.role).value,
            cache=str(self._cache),
            model_path=str(config.embedding_model_path.absolute()) if config.embedding_model_path else None,
            device=config.device,
            threads=config.threads,
        )

    async def train(self, task: Task, base: Path, tell: Progress) -> dict[str, Any]:
        """A delta at drafts.delta: its digest, examples, metrics."""
        return await self._worker.ask(
            "train",
            tell,
            spec_sha256=task.spec_sha256,
            base=str(base),
            out=str(self._drafts.delta),
            seed=task.seed,
            round_number=task.round,
            optimizer_state=str(self._drafts.optimizer_state(task.run)),
            residual=str(self._drafts.residual(task.run)),
        )

    async def reward(self, task: Task, weights: Path, rollouts_json: bytes, tell: Progress) -> dict[str, Any]:
        """Rewards at drafts.delta: their digest, the number of context questions as examples, no metrics."""
        return await self._worker.ask(
            "reward",
            tell,
            spec_sha256=task.spec_sha256,
            weights=str(weights),
            rollouts_json=rollouts_json.decode(),
            out=str(self._drafts.delta),
        )

    async def evaluate(self, task: Task, weights: Path, tell: Progress) -> Scores:
        found = await self._worker.ask("evaluate", tell, spec_sha256=task.spec_sha256, weights=str(weights))
        return Scores(**found)
