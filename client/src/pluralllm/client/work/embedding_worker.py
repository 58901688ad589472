"""Worker process that embeds texts on one device, beside others that do the same: it writes the vectors to the common cache.

`python -m pluralllm.client.work.embedding_worker` starts the process. On a CPU it uses one thread. Several such processes do more
work than one process with all threads, and the vectors are the same for any number of processes.
"""

import resource
import sys

import torch

from pluralllm.client.work.command_loop import Action, Report, answer_commands
from pluralllm.client.work.embedding_orders import EMBED_PIECE, EmbeddedPiece, EmbedPiece
from pluralllm.client.work.train import pick_device
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.words.embedding import Embedding

PEAK_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss


class PieceWork:
    """Answers the command `embed`; keeps the loaded model between commands. Every order must name the same model."""

    def __init__(self) -> None:
        self._embedder: Embedder | None = None

    def embed(self, report: Report, order: EmbedPiece) -> EmbeddedPiece:
        """Embeds the texts of a piece that the cache lacks. report: is called with the numbers of texts done and of all texts."""
        if self._embedder is None:
            contract = Embedding.model_validate_json(order.contract_json)
            self._embedder = Embedder(contract, order.model_path, order.cache, pick_device(order.device))
        self._embedder.fill_cache(order.texts, lambda done, total: report("embedding", done, total))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return EmbeddedPiece(len(order.texts), peak * PEAK_UNIT_BYTES)


def main() -> None:
    """Answers commands from the process that started this one, until that process closes the pipe."""
    torch.set_num_threads(1)
    answer_commands(Action(EMBED_PIECE, PieceWork().embed))


if __name__ == "__main__":
    main()
