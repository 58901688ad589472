"""A process that plays methods: `python -m pluralllm.experiment.worker`, one of several that an experiment keeps busy.

Each works with one thread: side by side they get more done than one process with all threads, and the figures are the same
however many there are.
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
    """What one process keeps between methods."""

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
        """Writes the results of one method and seed. The experiment is the same in every command."""
        wanted = Experiment.model_validate_json(experiment)
        if self._player is None:
            torch.set_num_threads(1)
            questions = read_groups(wanted)
            provenance = Provenance(wanted, data_digest(questions))
            path = Path(model_path) if model_path else None
            self._player = Player(Setting(wanted, questions, provenance, path, Path(cache), pick_device(device)))
        chosen = next(each for each in wanted.methods if each.name == method)
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
    """Answers the experiment until it is gone."""
    os.putenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    answer_commands({"play": Playing().play})


if __name__ == "__main__":
    main()
