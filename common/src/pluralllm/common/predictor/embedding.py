"""Texts to vectors by a transformer, as the run spec's embedding contract says, cached on disk.

The cache is one SQLite file, keyed by model, revision, files, pooling, length and text: safe for several processes, and with all
texts in it the transformer is not loaded at all.
"""

import hashlib
import sqlite3
import string
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.common.errors.tree import EmbeddingMismatch, ModelUnavailable
from pluralllm.common.predictor.encoder import Encoder
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import Embedding, Probe

PROBE_TEXTS = (
    "How satisfied are you with the way democracy is working in your country?",
    "In 2024, 37% of respondents answered: STRONGLY DISAGREE.",
    "Café, naïve, Zürich, 東京: does the tokenizer keep them apart?",
)
PROBE_DIGITS = 6

Progress = Callable[[int, int], None]  # texts done, texts in all


class Embedder:
    """The contract's model on this machine. Loading waits until a text is not in the cache."""

    def __init__(self, contract: Embedding, model_path: Path | None, cache: Path, device: torch.device) -> None:
        """`model_path`: a local folder to use for contract.model; without it the id is looked up. Raises ModelUnavailable."""
        self.contract = contract
        self._source = str(model_path) if model_path is not None else contract.model
        self._device = device
        self._encoder: Encoder | None = None
        if model_path is not None and not (model_path / "config.json").is_file():
            raise ModelUnavailable(model=contract.model, problem=f"{model_path} is not a folder with a config.json")
        cache.mkdir(parents=True, exist_ok=True)
        # Of no thread's own: whoever calls from several lets one in at a time.
        self._cache = sqlite3.connect(
            cache / "embeddings.sqlite3", timeout=60, isolation_level=None, check_same_thread=False
        )
        self._cache.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)")
        facts = [
            contract.model,
            contract.revision,
            _fingerprint(model_path),
            contract.pooling,
            str(contract.max_tokens),
        ]
        self._key = "\x1f".join(facts)

    @property
    def truncated(self) -> int:
        """Texts cut at max_tokens, of those embedded now."""
        return 0 if self._encoder is None else self._encoder.truncated

    def close(self) -> None:
        self._cache.close()

    def embed_questions(self, questions: Sequence[Question], on_progress: Progress) -> list[NDArray[np.float32]]:
        """One [options, dimension] array for each question. Raises ModelUnavailable, EmbeddingMismatch (dimension)."""
        filled = [
            [fill(template, question, index) for template in self.contract.templates]
            for question, index in _points(questions)
        ]
        vectors = self.embed_texts([text for texts in filled for text in texts], on_progress)
        points = vectors.reshape(len(filled), -1)  # (points, templates * width)
        if points.shape[1] != self.contract.dimension:
            raise EmbeddingMismatch(model=self.contract.model, cosine=0.0, needed=self.contract.min_cosine)
        ends = np.cumsum([len(question.options) for question in questions])[:-1]
        return np.split(points, ends)

    def check_probes(self) -> None:
        """Raises EmbeddingMismatch if any probe's vector is not what the run spec says."""
        if not self.contract.probes:
            return
        found = self.embed_texts([probe.text for probe in self.contract.probes], lambda _done, _all: None)
        for probe, vector in zip(self.contract.probes, found, strict=True):
            expected = np.asarray(probe.vector)
            cosine = -1.0
            if expected.shape == vector.shape:
                cosine = float(expected @ vector / (np.linalg.norm(expected) * np.linalg.norm(vector)))
            if not cosine >= self.contract.min_cosine:  # NaN too
                raise EmbeddingMismatch(model=self.contract.model, cosine=cosine, needed=self.contract.min_cosine)

    def embed_texts(self, texts: Sequence[str], on_progress: Progress) -> NDArray[np.float32]:
        """[texts, width]; each distinct text is embedded once, normalized if the contract says so."""
        distinct = list(dict.fromkeys(texts))
        known = {text: vector for text in distinct if (vector := self._cached(text)) is not None}
        missing = [text for text in distinct if text not in known]
        done = len(known)
        on_progress(done, len(distinct))
        for batch, vectors in self._encoder_loaded().encode(missing) if missing else ():
            self._keep(batch, vectors)
            known.update(zip(batch, vectors, strict=True))
            done += len(batch)
            on_progress(done, len(distinct))
        found = np.stack([known[text] for text in texts]).astype(np.float32)
        if self.contract.normalize:
            found /= np.linalg.norm(found, axis=1, keepdims=True)
        return found

    def _cached(self, text: str) -> NDArray[np.float32] | None:
        row = self._cache.execute("SELECT vector FROM vectors WHERE key = ?", (self._hash(text),)).fetchone()
        return None if row is None else np.frombuffer(row[0], dtype="<f4")

    def _keep(self, texts: Sequence[str], vectors: Iterable[NDArray[np.float32]]) -> None:
        rows = [(self._hash(text), vector.astype("<f4").tobytes()) for text, vector in zip(texts, vectors, strict=True)]
        self._cache.execute("BEGIN IMMEDIATE")
        self._cache.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
        self._cache.execute("COMMIT")

    def _hash(self, text: str) -> bytes:
        return hashlib.sha256(f"{self._key}\x1f{text}".encode()).digest()

    def _encoder_loaded(self) -> Encoder:
        if self._encoder is None:
            self._encoder = Encoder(self._source, self.contract.revision, self.contract.max_tokens, self._device)
        return self._encoder


def make_probes(contract: Embedding, model_path: Path | None, cache: Path, device: torch.device) -> tuple[Probe, ...]:
    """Probe vectors for a run spec, by the operator's copy of the model. Raises ModelUnavailable."""
    embedder = Embedder(contract, model_path, cache, device)
    try:
        vectors = embedder.embed_texts(PROBE_TEXTS, lambda _done, _all: None)
    finally:
        embedder.close()
    return tuple(
        Probe(text=text, vector=tuple(round(float(number), PROBE_DIGITS) for number in vector))
        for text, vector in zip(PROBE_TEXTS, vectors, strict=True)
    )


def fill(template: str, question: Question, option: int) -> str:
    """One template for one option."""
    letters = string.ascii_uppercase
    listed = " ".join(f"{_letter(letters, index)}. {text}" for index, text in enumerate(question.options))
    return template.format(
        question=question.text, options=listed, letter=_letter(letters, option), option=question.options[option]
    )


def _letter(letters: str, index: int) -> str:
    return letters[index] if index < len(letters) else str(index + 1)


def _points(questions: Sequence[Question]) -> list[tuple[Question, int]]:
    return [(question, index) for question in questions for index in range(len(question.options))]


def _fingerprint(model_path: Path | None) -> str:
    """Tells one local copy from another without reading gigabytes: names, sizes and times of its files."""
    if model_path is None:
        return ""
    files = sorted(path for path in model_path.iterdir() if path.suffix in {".safetensors", ".json", ".txt", ".model"})
    return ";".join(f"{path.name},{path.stat().st_size},{path.stat().st_mtime_ns}" for path in files)
