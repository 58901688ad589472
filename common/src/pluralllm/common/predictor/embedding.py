"""Turns texts into vectors as the run spec's [embedding] section says, and caches the vectors on disk.

A transformer makes the vectors (encoder.py), or the embedder of another package (plugin_encoder.py). `Embedder` is the one way to
them, for the daemon, the commands, scoring and experiments.

The cache (vector_cache.py) is bounded. The key of a vector is made from model, revision, model files, pooling, maximum length
and text; with a plug-in, from its package's version and files, its options and the text. If the cache has the vectors of all
texts, neither transformer nor plug-in is loaded. Beside each vector, the cache has the text's number of tokens and of unknown
tokens, under a key of its own. A vector that is not finite is neither cached nor used.
"""

import hashlib
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.common.errors.tree import EmbeddingMismatch, EmbeddingUnusable, ModelUnavailable
from pluralllm.common.predictor.blindness import Blindness, TokenCount, are_usable, blindness_of
from pluralllm.common.predictor.encoder import Batch, Encoder
from pluralllm.common.predictor.plugin_encoder import PluginEncoder, plugin_key
from pluralllm.common.predictor.vector_cache import MAX_BYTES, VectorCache
from pluralllm.common.process.model_folder import is_model_folder
from pluralllm.common.words.embedding import Embedding, Probe
from pluralllm.common.words.questions import Question
from pluralllm.common.words.templates import fill_template

PROBE_TEXTS = (
    "How satisfied are you with the way democracy is working in your country?",
    "In 2024, 37% of respondents answered: STRONGLY DISAGREE.",
    "Café, naïve, Zürich, 東京: does the tokenizer keep them apart?",
)
PROBE_DIGITS = 6
TEXTS_AT_ONCE = 4096  # read from the cache
FLOAT_BYTES, ROW_BYTES = 4, 320  # the second: the keys and SQLite's own bytes of a vector's two rows, rounded up

Progress = Callable[[int, int], None]  # called with the number of texts done and the number of all texts


class Embedder:
    """Embeds texts on this machine with the model that the run spec's [embedding] section names.

    The model is loaded only when the cache lacks the vector of a text.
    """

    def __init__(self, contract: Embedding, model_path: Path | None, cache: Path, device: torch.device) -> None:
        """Opens the cache file, or creates the file if there is none.

        contract: the run spec's [embedding] section, which says how texts are embedded. cache: folder for the cache file.
        model_path: local folder with the model; None means that the library `transformers` looks up the model id that
        `contract` names.
        A plug-in has no such folder.
        Raises ModelUnavailable if `model_path` has no config.json; PluginMissing if the section names a plug-in, and its package
        is not installed in the section's version.
        """
        model_path = model_path if contract.plugin is None else None
        self.contract, self.model_path, self.folder = contract, model_path, cache
        self._device = device
        self._encoder: Encoder | PluginEncoder | None = None
        self.blindness = Blindness()  # of all questions that this object has embedded
        self._tokens: dict[bytes, TokenCount | None] = {}  # of the texts of the present call, by key
        if model_path is not None and not is_model_folder(model_path):
            raise ModelUnavailable(model=contract.model, problem=f"{model_path} is not a folder with a config.json")
        facts = [
            contract.model,
            contract.revision,
            _fingerprint(model_path),
            contract.pooling,
            str(contract.max_tokens),
        ]
        if contract.plugin is not None:
            facts = [plugin_key(contract.plugin)]
        self._key = "\x1f".join(facts)
        self._cache = VectorCache(cache)  # any thread may use it, but callers must let only one thread in at a time

    def notes(self) -> tuple[str, ...]:
        """Returns what the model could not see in the questions that this object has embedded, as `Blindness.notes`."""
        return self.blindness.notes(self.contract.max_tokens)

    def close(self) -> None:
        """Closes the connection to the cache file."""
        self._cache.close()

    def embed_questions(self, questions: Sequence[Question], on_progress: Progress) -> list[NDArray[np.float32]]:
        """Returns one array for each question, with one vector for each option of the question.

        Each template of the run spec's [embedding] section is filled in and embedded. An option's vector is the concatenation
        of the vectors of all templates.
        Shapes: (options, D) float32 for each question; the [embedding] section sets D in its field `dimension`.
        on_progress: called with the number of texts done and the number of all texts. Raises ModelUnavailable if the model
        cannot be loaded; EmbeddingMismatch if an option's vector has more or fewer than D numbers.
        """
        vectors = self.embed_texts(self.texts_of(questions), on_progress)
        points = vectors.reshape(len(vectors) // len(self.contract.templates), -1)  # (P, templates * w)
        if points.shape[1] != self.contract.dimension:
            raise EmbeddingMismatch(model=self.contract.model, cosine=0.0, needed=self.contract.min_cosine)
        ends = np.cumsum([len(question.options) for question in questions])[:-1]
        embedded = np.split(points, ends)
        counts = list(self._tokens.values())
        self.blindness += blindness_of(counts, embedded, len(self.contract.templates))
        return embedded

    def texts_of(self, questions: Sequence[Question]) -> list[str]:
        """Returns the texts that are embedded for these questions: of each option, one for each template. Equal ones repeat."""
        return [fill(template, *point) for point in _points(questions) for template in self.contract.templates]

    def check_probes(self) -> None:
        """Checks that this machine's model gives the expected vectors for the run spec's probes.

        A probe is a text with the vector that the model must give for the text.
        Raises EmbeddingMismatch if the cosine between a probe's expected and actual vectors is below the limit `min_cosine`
        in the run spec. Raises ModelUnavailable if the model cannot be loaded.
        """
        if not self.contract.probes:
            return
        vectors = self.embed_texts([probe.text for probe in self.contract.probes], lambda _done, _all: None)
        for probe, vector in zip(self.contract.probes, vectors, strict=True):
            expected = np.asarray(probe.vector)
            cosine = -1.0
            if expected.shape == vector.shape:
                cosine = float(expected @ vector / (np.linalg.norm(expected) * np.linalg.norm(vector)))
            if not cosine >= self.contract.min_cosine:  # true for NaN, too
                raise EmbeddingMismatch(model=self.contract.model, cosine=cosine, needed=self.contract.min_cosine)

    def embed_texts(self, texts: Sequence[str], on_progress: Progress) -> NDArray[np.float32]:
        """Returns the vectors of texts. Equal texts are embedded once, in batches that the cache keeps as they are made.

        The vectors are scaled to length 1 if the run spec's [embedding] section sets `normalize`.
        Memory: the result, and one batch besides, for any number of texts.
        Shapes: (texts, w) float32, where w is the number of values in the model's hidden state.
        on_progress: called with the number of texts done and the number of all texts. Raises ModelUnavailable if the model cannot
        be loaded; EmbeddingUnusable if a vector is not finite, or 0.
        """
        number_of = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        numbers = np.fromiter((number_of[text] for text in texts), np.int64, len(texts))  # (texts,)
        places = np.argsort(numbers, kind="stable")  # the places of the first distinct text, then of the second, ..
        ends = np.cumsum(np.bincount(numbers, minlength=len(number_of)))
        embedded = np.empty((0, self.contract.dimension // len(self.contract.templates)), np.float32)
        self._tokens = {}
        for batch, vectors in self._batches(list(number_of), on_progress):
            if not len(embedded):
                embedded = np.empty((len(texts), vectors.shape[1]), np.float32)
            if self.contract.normalize:
                vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # noqa: PLW2901 - the same, scaled
            for text, vector in zip(batch, vectors, strict=True):
                number = number_of[text]
                embedded[places[ends[number - 1] if number else 0 : ends[number]]] = vector
        return embedded

    def lacking(self, texts: Sequence[str]) -> list[str]:
        """Returns those of the texts whose vectors the cache does not have, in their order."""
        lacking: list[str] = []
        self._tokens = {}
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            keys = {text: self._hash(text) for text in texts[start : start + TEXTS_AT_ONCE]}
            cached = self._cached(keys)
            lacking.extend(text for text in keys if text not in cached)
        return lacking

    def fill_cache(self, piece: Sequence[str], on_progress: Progress) -> None:
        """Embeds the texts of one piece that the cache lacks. The cache keeps each batch as it is made.

        The batches are cut from the whole piece. So a piece that was interrupted gets the vectors, bit by bit, that it gets
        without an interruption. A vector that the cache has stays.
        piece: distinct texts. on_progress: called with the number of texts done and the number of all texts.
        Raises ModelUnavailable if the model cannot be loaded; EmbeddingUnusable if a vector is not finite, or 0;
        EmbeddingMismatch if a vector has more or fewer numbers than the contract says.
        """
        lacking = set(self.lacking(piece))
        done = len(piece) - len(lacking)
        on_progress(done, len(piece))
        for batch in self._encoder_loaded().encode(piece, lacking.__contains__) if lacking else ():
            done += self.keep(batch, lacking)
            on_progress(done, len(piece))

    def keep(self, batch: Batch, lacking: Collection[str]) -> int:
        """Writes the vectors of the texts that the cache lacks, of a batch that an encoder has made; returns their number.

        Raises EmbeddingUnusable if a vector is not finite, or 0; EmbeddingMismatch if a vector has more or fewer numbers than the
        contract says.
        """
        ((texts, vectors, counts),) = self._usable([batch])
        if vectors.shape[1] * len(self.contract.templates) != self.contract.dimension:
            raise EmbeddingMismatch(model=self.contract.model, cosine=0.0, needed=self.contract.min_cosine)
        new = [number for number, text in enumerate(texts) if text in lacking]
        self._keep([texts[number] for number in new], vectors[new], [counts[number] for number in new])
        return len(new)

    def _batches(
        self, texts: Sequence[str], on_progress: Progress
    ) -> Iterator[tuple[Sequence[str], NDArray[np.float32]]]:
        """Yields distinct texts with their vectors: first those that the cache has, then those that the model makes."""
        missing: list[str] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            keys = {text: self._hash(text) for text in texts[start : start + TEXTS_AT_ONCE]}
            cached = self._cached(keys)
            missing.extend(text for text in keys if text not in cached)
            if cached:
                yield list(cached), np.stack(list(cached.values()))
        done = len(texts) - len(missing)
        on_progress(done, len(texts))
        encoded = self._encoder_loaded().encode(missing) if missing else ()
        for batch, vectors, counts in self._usable(encoded):
            self._keep(batch, vectors, counts)
            yield batch, vectors
            done += len(batch)
            on_progress(done, len(texts))

    def _usable(self, encoded: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the encoder's batches. Raises EmbeddingUnusable at the first one with a vector that is not finite, or 0."""
        for texts, vectors, counts in encoded:
            if not are_usable(vectors).all():
                raise EmbeddingUnusable(model=self.contract.model)
            yield texts, vectors, counts

    def _cached(self, keys: Mapping[str, bytes]) -> dict[str, NDArray[np.float32]]:
        """Returns the cached vectors of texts, and notes their numbers of tokens. keys: of the vectors, by text."""
        cached = self._cache.look_up([*keys.values(), *map(_key_of_tokens, keys.values())])
        vectors: dict[str, NDArray[np.float32]] = {}
        for text, key in keys.items():
            if key in cached and are_usable(cached[key][None])[0]:  # earlier releases kept every vector
                vectors[text] = cached[key]
                numbers = cached.get(_key_of_tokens(key))
                self._tokens[key] = None if numbers is None else TokenCount(*map(int, numbers))
        return vectors

    def _keep(self, texts: Sequence[str], vectors: NDArray[np.float32], counts: Sequence[TokenCount]) -> None:
        """Writes the vectors of texts and their numbers of tokens to the cache."""
        rows: dict[bytes, NDArray[np.float32]] = {}
        for text, vector, count in zip(texts, vectors, counts, strict=True):
            key = self._hash(text)
            rows[key], self._tokens[key] = vector, count
            rows[_key_of_tokens(key)] = np.array([count.whole, count.read, count.unknown], np.float32)
        self._cache.keep(rows)

    def _hash(self, text: str) -> bytes:
        return hashlib.sha256(f"{self._key}\x1f{text}".encode()).digest()

    def _encoder_loaded(self) -> Encoder | PluginEncoder:
        if self._encoder is None:
            self._encoder = encoder_of(self.contract, self.model_path, self._device)
        return self._encoder


def encoder_of(contract: Embedding, model_path: Path | None, device: torch.device) -> Encoder | PluginEncoder:
    """Loads the transformer, or the embedder of another package, that the [embedding] section names.

    model_path: local folder with the model; None means that the library `transformers` looks up the model id.
    Raises ModelUnavailable if the model cannot be loaded; PluginMissing if the package is not installed in the section's version.
    """
    if contract.plugin is not None:
        return PluginEncoder(contract.plugin, contract.dimension // len(contract.templates), device)
    source = str(model_path) if model_path is not None else contract.model
    return Encoder(source, contract.revision, contract.max_tokens, device, contract.pooling)


def vectors_in_cache(contract: Embedding) -> int:
    """Returns how many vectors of this model the cache can keep, with the numbers of their tokens and SQLite's own bytes."""
    return MAX_BYTES // (contract.dimension // len(contract.templates) * FLOAT_BYTES + ROW_BYTES)


def _key_of_tokens(key: bytes) -> bytes:
    """Returns the cache's key for a text's number of tokens. key: of the text's vector."""
    return hashlib.sha256(key + b"tokens").digest()


def make_probes(contract: Embedding, model_path: Path | None, cache: Path, device: torch.device) -> tuple[Probe, ...]:
    """Makes the probes of a run spec: a few fixed texts with the vectors that the operator's copy of the model gives.

    contract: the run spec's [embedding] section. model_path: local folder with the model; None means that the library
    `transformers` looks up the model id in `contract`.
    cache: folder for the cache file. Raises ModelUnavailable if the model cannot be loaded.
    """
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
    """Returns the text of a template after its fields are filled in for one option of a question. option: index of the option."""
    letters = string.ascii_uppercase
    listed = " ".join(f"{_letter(letters, index)}. {text}" for index, text in enumerate(question.options))
    values = {
        "question": question.text,
        "options": listed,
        "letter": _letter(letters, option),
        "option": question.options[option],
    }
    return fill_template(template, values)


def _letter(letters: str, index: int) -> str:
    return letters[index] if index < len(letters) else str(index + 1)


def _points(questions: Sequence[Question]) -> list[tuple[Question, int]]:
    return [(question, index) for question in questions for index in range(len(question.options))]


def _fingerprint(model_path: Path | None) -> str:
    """Returns a text that changes when the files of the local model change. The function does not read the files' contents.

    The text lists names, sizes and modification times of the files in the folder. The text is empty if `model_path` is None.
    """
    if model_path is None:
        return ""
    files = sorted(path for path in model_path.iterdir() if path.suffix in {".safetensors", ".json", ".txt", ".model"})
    return ";".join(f"{path.name},{path.stat().st_size},{path.stat().st_mtime_ns}" for path in files)
