"""The process that trains: `python -m pluralllm.client.work.worker`, started and spoken to by the daemon.

Tensors travel as files, never in messages.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pluralllm.client.data.private_data import read_group
from pluralllm.client.work.command_loop import Action, Report, answer_commands
from pluralllm.client.work.train import evaluate, evaluation_episode, pick_device, reward_context, train
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.predictor.data import GroupData, check_enough, group_data
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.predictor.group_predictor import GroupPredictor
from pluralllm.common.predictor.model import PreferencePredictor, load_weights
from pluralllm.common.rewards.rollout_batch import read_rollouts
from pluralllm.common.weights.layout import rewards_layout, tensors_of, write_weights
from pluralllm.common.words.spec import GroupRole, RunSpec, parse_spec


class LocalWork:
    """A client's tasks; embedded data stays in memory from task to task."""

    def __init__(self) -> None:
        self._prepared: dict[str, tuple[RunSpec, GroupData, GroupRole, torch.device]] = {}
        self._embedder: Embedder | None = None  # of the prepared run, if it asks for rewards
        self._scorer: tuple[str, GroupPredictor, int] | None = None  # by the file of its weights; context questions

    def prepare(
        self,
        report: Report,
        spec_json: str,
        data: str,
        group: str,
        role: str,
        cache: str,
        model_path: str | None,
        device: str,
        threads: int | None,
    ) -> dict[str, Any]:
        """Reads, embeds and checks the private data for one run; again only if the spec is another one."""
        key = hashlib.sha256(spec_json.encode()).hexdigest()
        if key not in self._prepared:
            spec = parse_spec(spec_json.encode(), "of the run")
            if threads is not None:
                torch.set_num_threads(threads)
            try:
                chosen = pick_device(device)
            except (RuntimeError, AssertionError, ValueError) as error:
                raise InvalidConfig(file="device", problems=f"  {device} is not on this machine: {error}") from error
            questions = read_group(Path(data))
            self._close()
            embedder = Embedder(spec.embedding, Path(model_path) if model_path else None, Path(cache), chosen)
            self._embedder = embedder
            embedder.check_probes()
            embedded = embedder.embed_questions(questions, lambda done, total: report("embedding", done, total))
            found = group_data(group, questions, embedded)
            part = GroupRole(role)
            if spec.rewards is None:
                self._close()
                evaluation_episode(spec, found, part, 0)
                if part is GroupRole.TRAIN:
                    check_enough(group, len(found.split(spec.evaluation.holdout_share)[0]), spec.training.episodes)
            self._prepared = {key: (spec, found, part, chosen)}
        _, found, _, chosen = self._prepared[key]
        return {"questions": len(found.questions), "device": str(chosen)}

    def train(
        self,
        report: Report,
        spec_sha256: str,
        base: str,
        out: str,
        seed: int,
        round_number: int,
        optimizer_state: str,
        residual: str,
    ) -> dict[str, Any]:
        spec, data, _, device = self._prepared[spec_sha256]
        first_step = (round_number - 1) * spec.training.local_steps
        trained = train(
            Path(base),
            Path(out),
            spec,
            data,
            seed,
            first_step,
            device,
            Path(optimizer_state),
            Path(residual),
            lambda done, total: report("training", done, total),
        )
        return {
            "digest": trained.manifest.digest,
            "examples": trained.examples,
            "metrics": {"loss": trained.mean_loss, "base_distance": trained.base_distance},
            "gpu_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        }

    def reward(self, report: Report, spec_sha256: str, weights: str, rollouts_json: str, out: str) -> dict[str, Any]:
        """The group's predicted shares of each prompt's candidates, from a seeded part of its answers, as a file."""
        spec, data, _, device = self._prepared[spec_sha256]
        assert spec.rewards is not None
        assert self._embedder is not None
        batch = read_rollouts(rollouts_json.encode(), spec.rewards.max_candidates)
        if self._scorer is None or self._scorer[0] != weights:
            model = PreferencePredictor(spec.predictor, spec.embedding)
            load_weights(model, tensors_of(Path(weights)))
            context = reward_context(spec, data)
            least = spec.training.episodes.min_context
            predictor = GroupPredictor(model, self._embedder, data.group, context, device, least)
            self._scorer = weights, predictor, len(context)
        _, predictor, examples = self._scorer
        report("scoring", 0, len(batch))
        answers = predictor.predict([each.to_question() for each in batch])
        report("scoring", len(batch), len(batch))
        shares = np.concatenate([answer.shares for answer in answers]).clip(0, 1)
        manifest = write_weights(Path(out), rewards_layout(shares.size), [shares])
        return {"digest": manifest.digest, "examples": examples, "metrics": {}}

    def _close(self) -> None:
        """What is of the run that was prepared before."""
        if self._embedder is not None:
            self._embedder.close()
        self._embedder = self._scorer = None

    def evaluate(self, report: Report, spec_sha256: str, weights: str) -> dict[str, Any]:
        spec, data, role, device = self._prepared[spec_sha256]
        found = evaluate(Path(weights), spec, data, role, device, lambda done, total: report("evaluating", done, total))
        return {
            "alignment_score": found.score,
            "alignment_score_base2": found.score_base2,
            "wasserstein_score": found.wasserstein,
            "questions": found.questions // spec.evaluation.draws,
        }


def main() -> None:
    """Answers the daemon until it is gone."""
    os.putenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA's own condition for repeatable matrix products
    work = LocalWork()
    actions: dict[str, Action] = {
        "prepare": work.prepare,
        "train": work.train,
        "reward": work.reward,
        "evaluate": work.evaluate,
    }
    answer_commands(actions)


if __name__ == "__main__":
    main()
