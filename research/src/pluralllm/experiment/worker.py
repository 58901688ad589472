"""Worker process of an experiment: trains and scores the methods that it gets orders for.

`python -m pluralllm.experiment.worker` starts the process. Each worker uses one thread. Several such processes do more work
than one process with all threads, and the results are the same for any number of processes.
"""

import json
import os

import torch

from pluralllm.client.work.command_loop import Action, Report, answer_commands
from pluralllm.client.work.train import pick_device
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.experiment.groups import data_digest, read_groups
from pluralllm.experiment.orders import FETCH, PIECE_CHARACTERS, PLAY, Fetch, Fetched, Play, Played
from pluralllm.experiment.play import Player, Setting
from pluralllm.experiment.records import Provenance
from pluralllm.experiment.spec import Experiment


class Playing:
    """Answers the commands `play` and `fetch`; keeps the embedded questions of all groups in memory between commands."""

    def __init__(self) -> None:
        self._player: Player | None = None
        self._result = ""  # of the last unit, as JSON

    def play(self, report: Report, order: Play) -> Played:
        """Trains and scores one method with one seed, and keeps its records. Every order must hold the same experiment.

        report: is called with the present stage, the amount of work done and the whole amount.
        """
        experiment = Experiment.model_validate_json(order.experiment_json)
        if self._player is None:
            torch.set_num_threads(1)
            questions = read_groups(experiment)
            provenance = Provenance(experiment, data_digest(questions))
            device = pick_device(order.device)
            self._player = Player(Setting(experiment, questions, provenance, order.model_path, order.cache, device))
        chosen = next(method for method in experiment.methods if method.name == order.method)
        played = self._player.play(
            chosen,
            order.seed,
            lambda done, total: report("embedding", done, total),
            lambda done, total: report("training", done, total),
        )
        self._result = json.dumps(played)
        return Played(-(-len(self._result) // PIECE_CHARACTERS))

    def fetch(self, _report: Report, order: Fetch) -> Fetched:
        """Returns one piece of the records of the last unit. Raises InvalidArgument if there is no such piece."""
        start = order.piece * PIECE_CHARACTERS
        if not 0 <= start < len(self._result):
            raise InvalidArgument(field="piece", problem=f"is {order.piece}, and the last result has no such piece")
        return Fetched(self._result[start : start + PIECE_CHARACTERS])


def main() -> None:
    """Answers commands from the experiment's process until that process closes the pipe."""
    os.putenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    playing = Playing()
    answer_commands(Action(PLAY, playing.play), Action(FETCH, playing.fetch))


if __name__ == "__main__":
    main()
