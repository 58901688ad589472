"""Worker process of an experiment: plays the methods that it is asked to play (`python -m pluralllm.experiment.worker`).

Each worker uses one thread. Several such processes do more work than one process with all threads, and the figures are the
same for any number of them.
"""

import os
from pathlib import Path
from typing import Any

import torch

from pluralllm.client.work.command_loop import Report, answer_commands
from pluralllm.client.work.train import pick_device
from pluralllm.experiment.groups import data_digest, read_groups
from pluralllm.experiment.play import Player, Setting
from pluralllm.experiment.records import Provenance, file_of, write_records
from pluralllm.experiment.spec import Experiment


class Playing:
    """Answers the command `play`; keeps the player with its embedded groups between commands."""

    def __init__(self) -> None:
        self._player: Player | None = None

    def play(
        self,
        report: Report,
        experiment: str,
        method: str,
        seed: int,
        out: str,
        model_path: str | None,
        cache: str,
        device: str,
    ) -> dict[str, Any]:
        """Plays one method with one seed and writes its results. Every command must hold the same experiment."""
        parsed = Experiment.model_validate_json(experiment)
        if self._player is None:
            torch.set_num_threads(1)
            questions = read_groups(parsed)
            provenance = Provenance(parsed, data_digest(questions))
            path = Path(model_path) if model_path else None
            self._player = Player(Setting(parsed, questions, provenance, path, Path(cache), pick_device(device)))
        chosen = next(candidate for candidate in parsed.methods if candidate.name == method)
        played = self._player.play(
            chosen,
            seed,
            lambda done, total: report("embedding", done, total),
            lambda done, total: report("training", done, total),
        )
        for line, records in played.items():
            write_records(file_of(Path(out), line, seed), records)
        return {}


def main() -> None:
    """Answers commands from the experiment's process until that process closes the pipe."""
    os.putenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    answer_commands({"play": Playing().play})


if __name__ == "__main__":
    main()
