"""The embedder of another package takes the transformer's place: same cache, same probes, and nothing it returns is believed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.installed_package import VECTORS, Site, plugin

from pluralllm.client.work.embedding_orders import EmbedPiece
from pluralllm.client.work.embedding_worker import PieceWork
from pluralllm.common.errors.tree import EmbeddingMismatch, EmbeddingUnusable, PluginBroken, PluginMissing
from pluralllm.common.predictor import plugin_encoder
from pluralllm.common.predictor.embedding import Embedder, make_probes
from pluralllm.common.process.plugins import EMBEDDERS
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.plugins import Plugin
from pluralllm.common.words.questions import Question

CPU = torch.device("cpu")
WIDTH = 32
TEXTS = ["Tea or coffee?", "Bus?", "Tea", "Bus?"]
TEA = Question("Tea or coffee?", ("Tea", "Coffee"), (0.5, 0.5))


def quiet(_done: int, _all: int) -> None:
    pass


def contract(**changes: Any) -> Embedding:
    return Embedding.model_validate({"plugin": plugin(VECTORS), "dimension": 2 * WIDTH, **changes})


def embedded(folder: Path, texts: list[str] = TEXTS, **changes: Any) -> np.ndarray[Any, Any]:
    embedder = Embedder(contract(**changes), None, folder, CPU)
    try:
        return embedder.embed_texts(texts, quiet)
    finally:
        embedder.close()


def install(site: Site, body: str) -> None:
    code = f"import numpy as np\ndef make(device, **options):\n    return lambda texts: {body}\n"
    site.install_module(EMBEDDERS, code)


def test_texts_get_the_packages_vectors_and_the_cache_keeps_them(site: Site, tmp_path: Path) -> None:
    site.install("town_hall_methods")
    vectors = embedded(tmp_path)
    assert (vectors.shape, vectors.dtype) == ((4, WIDTH), np.float32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    assert vectors[1].tolist() == vectors[3].tolist() != vectors[0].tolist()
    assert embedded(tmp_path, TEXTS[:1], normalize=False).sum() == len(TEXTS[0]) + 1, "as many groups as letters"
    code = site.folder / "town_hall_vectors.py"
    code.write_text("raise RuntimeError")
    site.forget()
    assert embedded(tmp_path).tobytes() == vectors.tobytes(), "nothing is imported for what the cache has"
    with pytest.raises(PluginBroken, match="RuntimeError"):
        embedded(tmp_path, ["new"])
    question = Embedder(contract(), tmp_path / "no folder of a model", tmp_path, CPU)
    assert question.model_path is None, "the folder of a model says nothing to a plug-in"


def test_other_options_or_other_files_under_the_same_version_have_other_keys(site: Site, tmp_path: Path) -> None:
    site.install("town_hall_methods")
    keys = {
        Embedder(contract(plugin=plugin(VECTORS, **options)), None, tmp_path, CPU)._hash("text")
        for options in ({}, {"width": "32"}, {"width": "64"})
    }
    record = next(site.folder.glob("*.dist-info/RECORD"))
    record.write_text(record.read_text().replace("rules.py,,", "rules.py,sha256=other,3"))
    keys.add(Embedder(contract(), None, tmp_path, CPU)._hash("text"))
    assert len(keys) == 4
    assert Embedder(contract(normalize=False), None, tmp_path, CPU)._hash("text") in keys


def test_without_its_package_not_even_the_cache_is_read(site: Site, tmp_path: Path) -> None:
    with pytest.raises(PluginMissing, match=r"embedder letter-counts .*each machine that embeds texts .*pip install"):
        embedded(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    site.install("town_hall_methods", version="2.0")
    with pytest.raises(PluginMissing, match=r"version 2\.0 is installed"):
        embedded(tmp_path / "cache")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("[texts]", "it returned list, not an array of float32"),
        (
            "np.ma.masked_invalid(np.full((len(texts), 32), np.nan, np.float32))",
            "it returned MaskedArray, not an array of float32",
        ),
        ("np.ones((len(texts), 32))", "it returned float64, not an array of float32"),
        (
            "np.ones((len(texts), 31), np.float32)",
            r"the shape \(3, 31\) for 3 texts, not \(3, 32\); embedding\.dimension and its",
        ),
        ("np.ones((1, 32), np.float32)", r"the shape \(1, 32\) for 3 texts"),
        ("[][texts.index('Tea')]", "IndexError in line 3 of made.py"),
        ("int(texts[0])", "ValueError in line 3 of made.py"),
    ],
)
def test_what_is_no_array_of_vectors_names_the_package_and_no_text(
    site: Site, tmp_path: Path, body: str, problem: str
) -> None:
    install(site, body)
    with pytest.raises(PluginBroken, match=problem) as refused:
        embedded(tmp_path)
    assert "letter-counts of town-hall-methods 1.0" in str(refused.value)
    assert "coffee" not in str(refused.value)


@pytest.mark.parametrize("number", ["0", "np.nan", "np.inf"])
def test_a_vector_without_a_direction_is_refused_as_that_of_a_model_and_not_kept(
    site: Site, tmp_path: Path, number: str
) -> None:
    install(site, f"np.full((len(texts), 32), {number}, np.float32)")
    for _ in range(2):
        with pytest.raises(EmbeddingUnusable, match="letter-counts"):
            embedded(tmp_path)


def test_what_returns_no_function_is_refused(site: Site, tmp_path: Path) -> None:
    site.install_module(EMBEDDERS, "def make(device): return device")
    with pytest.raises(PluginBroken, match="it returned str, not a function of texts"):
        embedded(tmp_path)


def test_probes_hold_for_a_plug_in_as_for_a_model(site: Site, tmp_path: Path) -> None:
    site.install("town_hall_methods")
    probes = make_probes(contract(), None, tmp_path, CPU)
    Embedder(contract(probes=probes), None, tmp_path, CPU).check_probes()
    site.uninstall()
    install(site, "np.eye(len(texts), 32, dtype=np.float32)")
    with pytest.raises(EmbeddingMismatch, match="letter-counts"):
        Embedder(contract(probes=probes), None, tmp_path / "anew", CPU).check_probes()


def test_batches_follow_from_the_texts_and_one_of_which_nothing_is_wanted_is_left_out(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_encoder, "TEXTS_IN_BATCH", 2)
    install(site, "print(texts) or np.eye(len(texts), 32, dtype=np.float32)")
    encoder = plugin_encoder.PluginEncoder(Plugin.model_validate(plugin(VECTORS)), WIDTH, CPU)
    batches = [batch for batch, _, _ in encoder.encode(["a", "b", "c", "d", "e"], "bad".__contains__)]
    assert batches == [["a", "b"], ["c", "d"]]


def test_the_device_is_told_and_a_worker_process_of_embed_fills_the_same_cache(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import numpy as np\ndef make(device):\n    print(device)\n    return lambda t: np.eye(len(t), 32, dtype='f4')"
    )
    site.install_module(EMBEDDERS, code)
    order = EmbedPiece(contract().model_dump_json(), None, tmp_path, "cpu", ("a", "b"))
    assert PieceWork().embed(lambda *_: None, order).texts == 2
    assert capsys.readouterr().out == "cpu\n"
    assert embedded(tmp_path, ["a"]).tolist() == np.eye(1, 32).tolist()
    assert capsys.readouterr().out == "", "the vector was in the cache"


def test_options_of_a_question_that_get_one_vector_are_noted_and_tokens_are_not(site: Site, tmp_path: Path) -> None:
    install(site, "np.ones((len(texts), 32), np.float32)")
    for _ in range(2):  # made, then from the cache
        embedder = Embedder(contract(), None, tmp_path, CPU)
        embedder.embed_questions([TEA], quiet)
        [note] = embedder.notes()
        assert note.startswith("1 of 1 questions have options with equal vectors")
        embedder.close()
