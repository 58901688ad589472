"""The process that trains: `python -m pluralllm.client.worker`, started and spoken to by the daemon.

JSON lines: a command on stdin ({"id", "do", ...}), answers on stdout ({"id", "progress" | "result" | "error"}). The end of stdin
means that the daemon is gone, and ends this process at once. Tensors travel as files, never in messages.
"""

import hashlib
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

from pluralllm.client.private_data import read_group
from pluralllm.client.train import evaluate, evaluation_episode, pick_device, train
from pluralllm.common.data import GroupData, check_enough, group_data
from pluralllm.common.embedding import Embedder
from pluralllm.common.errors import InvalidConfig, PluralError, WorkerDied
from pluralllm.common.spec import GroupRole, RunSpec, parse_spec

Report = Callable[[str, int, int], None]  # stage, done, all


class Cancelled(Exception):
    """The daemon no longer wants the result."""


class Worker:
    """Answers one command at a time; embedded data stays in memory from task to task."""

    def __init__(self, answers: TextIO) -> None:
        self._answers = answers
        self._cancelled = threading.Event()
        self._commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._prepared: dict[str, tuple[RunSpec, GroupData, GroupRole, torch.device]] = {}

    def listen(self, lines: TextIO) -> None:
        """Runs in its own thread, so that a cancellation is seen in the middle of a step."""
        for line in lines:
            command = json.loads(line)
            if command["do"] == "cancel":
                self._cancelled.set()
            else:
                self._cancelled.clear()
                self._commands.put(command)
        os._exit(0)  # the daemon is gone; nobody wants the rest

    def work(self) -> None:
        actions: dict[str, Callable[..., dict[str, Any]]] = {
            "prepare": self._prepare,
            "train": self._train,
            "evaluate": self._evaluate,
        }
        while True:
            command = self._commands.get()
            number, action = command.pop("id"), actions[command.pop("do")]

            def report(stage: str, done: int, total: int, number: int = number) -> None:
                if self._cancelled.is_set():
                    raise Cancelled
                self._say({"id": number, "progress": [stage, done, total]})

            try:
                self._say({"id": number, "result": action(report, **command)})
            except Cancelled:
                self._say({"id": number, "error": ["CANCELLED", {}]})
            except PluralError as error:
                self._say({"id": number, "error": [error.reason, error.facts]})
            except Exception as error:  # noqa: BLE001 - whatever it is, the daemon hears of it and lives on
                traceback.print_exc()
                died = WorkerDied(problem=f"{type(error).__name__}: {error}")
                self._say({"id": number, "error": [died.reason, died.facts]})

    def _say(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def _prepare(
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
            embedder = Embedder(spec.embedding, Path(model_path) if model_path else None, Path(cache), chosen)
            try:
                embedder.check_probes()
                embedded = embedder.embed_questions(questions, lambda done, total: report("embedding", done, total))
            finally:
                embedder.close()
            found = group_data(group, questions, embedded)
            part = GroupRole(role)
            evaluation_episode(spec, found, part, 0)
            if part is GroupRole.TRAIN:
                check_enough(found, len(found.split(spec.evaluation.holdout_share)[0]), spec.training.episodes)
            self._prepared = {key: (spec, found, part, chosen)}
        _, found, _, chosen = self._prepared[key]
        return {"questions": len(found.questions), "device": str(chosen)}

    def _train(
        self, report: Report, spec_sha256: str, base: str, out: str, seed: int, round_number: int, optimizer_state: str
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
            lambda done, total: report("training", done, total),
        )
        return {
            "digest": trained.manifest.digest,
            "examples": trained.examples,
            "metrics": {"loss": trained.mean_loss, "base_distance": trained.base_distance},
        }

    def _evaluate(self, report: Report, spec_sha256: str, weights: str) -> dict[str, Any]:
        spec, data, role, device = self._prepared[spec_sha256]
        found = evaluate(Path(weights), spec, data, role, device, lambda done, total: report("evaluating", done, total))
        return {
            "alignment_score": found.score,
            "alignment_score_base2": found.score_base2,
            "wasserstein_score": found.wasserstein,
            "questions": found.questions // spec.evaluation.draws,
        }


def main() -> None:
    """stdout belongs to the protocol: whatever else prints goes to stderr."""
    os.putenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA's own condition for repeatable matrix products
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    worker = Worker(answers)
    threading.Thread(target=worker.listen, args=(sys.stdin,), daemon=True).start()
    worker.work()


if __name__ == "__main__":
    main()
