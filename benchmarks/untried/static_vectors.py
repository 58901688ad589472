"""Vectors of texts without a transformer: weighted means of a token table, here the first layer of MiniLM.

Source: Arora et al. 2017 (SIF): a token of frequency p counts a / (a + p), and the vectors lose their mean and their first
principal direction. Frequencies, mean and direction come from the texts of the training groups. Shapes: n texts, w numbers
in a vector.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from pluralllm.common.predictor.data import GroupData

RARE = 1e-3  # the a of SIF
TABLE = "embeddings.word_embeddings.weight"
Vectors = NDArray[np.float32]  # (n, w)


class TokenMeans:
    """Means of token vectors, fitted on some texts. Without `weighted`, every token counts alike and nothing is removed."""

    def __init__(self, model: Path, texts: Sequence[str], *, weighted: bool) -> None:
        """Reads the table and the tokenizer from a model's folder, and counts the tokens of different texts."""
        tensors = load_file(model / "model.safetensors")
        self._table = next(value for name, value in tensors.items() if name.endswith(TABLE)).astype(np.float32)
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        counts = Counter(token for text in set(texts) for token in self._tokens(text))
        frequency = np.zeros(len(self._table))
        frequency[list(counts)] = np.array(list(counts.values())) / max(1, counts.total())
        self._weights = RARE / (RARE + frequency) if weighted else np.ones(len(self._table))
        self._mean = np.zeros(self._table.shape[1])
        self._direction = np.zeros(self._table.shape[1])
        if weighted:
            means = self._means(sorted(set(texts)))
            self._mean = means.mean(axis=0)
            self._direction = np.linalg.svd(means - self._mean, full_matrices=False)[2][0]

    def of(self, texts: Sequence[str]) -> Vectors:
        """Returns the unit vectors of texts."""
        vectors = self._means(texts) - self._mean
        vectors -= np.outer(vectors @ self._direction, self._direction)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Vectors = (vectors / np.maximum(lengths, 1e-9)).astype(np.float32)
        return unit

    def _means(self, texts: Sequence[str]) -> NDArray[np.float64]:
        rows = []
        for text in texts:
            tokens = self._tokens(text)
            weights = self._weights[tokens]
            rows.append(weights @ self._table[tokens] / max(weights.sum(), 1e-9))
        return np.array(rows)

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def with_static_vectors(
    groups: Mapping[str, GroupData], training: Sequence[str], model: Path, *, weighted: bool
) -> dict[str, GroupData]:
    """Returns the groups with other embeddings: of each point the vectors of its question and of its option.

    training: names of the groups whose texts are counted. model: folder of the model that has the token table.
    """
    questions = [question for name in training for question in groups[name].questions]
    of_question = TokenMeans(model, [question.text for question in questions], weighted=weighted)
    of_option = TokenMeans(model, [option for question in questions for option in question.options], weighted=weighted)

    def embeddings(data: GroupData) -> Vectors:
        pairs = [(question.text, option) for question in data.questions for option in question.options]
        texts, options = zip(*pairs, strict=True)
        return np.concatenate([of_question.of(texts), of_option.of(options)], axis=1)

    return {name: replace(data, embeddings=embeddings(data)) for name, data in groups.items()}
