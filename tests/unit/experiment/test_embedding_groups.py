"""The texts of an experiment's groups, embedded before by several workers: the vectors are those of one process."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support.cached_vectors import rows
from support.process_harness import WIDTH, tiny_embedding_model

from pluralllm.client.work.embedding_pool import Piece, fill
from pluralllm.common.predictor import encoder
from pluralllm.common.predictor.embedding import Embedder, Progress
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import RunSpec, merge, preset_values
from pluralllm.experiment.groups import embed_groups, fill_cache

CPU = torch.device("cpu")


def test_a_cache_that_is_filled_before_has_the_vectors_of_embedding_group_by_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "TEXTS_AT_ONCE", 30)
    tiny = tiny_embedding_model(tmp_path / "model")
    values = {"embedding": {"model": "tiny", "templates": ["{question}", "{option}"], "dimension": 2 * WIDTH}}
    spec = RunSpec.model_validate(merge(preset_values("default"), values))
    asked = [Question(f"{'Agree ' * (n % 7)}Tea {n}?", ("Yes", f"No {n}"), (0.5, 0.5)) for n in range(60)]
    questions = {"a": tuple(asked[:40]), "b": tuple(asked[20:])}
    reports: list[tuple[int, int]] = []
    where = (tiny, tmp_path / "before", CPU)

    def fill_here(embedder: Embedder, pieces: Sequence[Piece], on_text: Progress) -> None:
        fill(embedder, pieces, None, on_text)

    fill_cache(spec.embedding, questions, where, fill_here, lambda done, of: reports.append((done, of)))
    assert reports[-1] == (121, 121), "each distinct text of both groups is counted once"
    embed_groups(spec, questions, tiny, tmp_path / "by group", CPU, lambda *_: None)
    assert rows(tmp_path / "before") == rows(tmp_path / "by group")
    monkeypatch.setattr(Embedder, "_encoder_loaded", lambda _self: pytest.fail("a vector was missing"))
    embed_groups(spec, questions, *where, lambda *_: None)
