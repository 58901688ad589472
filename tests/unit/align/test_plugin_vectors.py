"""A model whose vectors another package makes is scored with, in Python and by the command, where the package is installed."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.exported_model import export
from support.installed_package import METHODS, Site, of_page
from support.process_harness import process_spec

from pluralllm.align import GroupReward, scoring_service
from pluralllm.align.commands.model import serve
from pluralllm.align.commands.scoring import pairs, score
from pluralllm.api.predictor import PreferencePredictor
from pluralllm.client.data.private_data import write_group
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.errors.tree import InvalidArgument, PluginMissing
from pluralllm.common.words.embedding import Embedding


def test_a_group_is_scored_with_the_packages_vectors(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = Embedding.model_validate(of_page("embedding"))
    spec = process_spec(training={"episodes": {"min_context": 5}}).model_copy(update={"embedding": vectors})
    model = export(tmp_path / "model", spec)
    questions = next(iter(sample_groups(2, 40, 0).values()))
    write_group(tmp_path / "group.jsonl", questions[:20])
    write_group(tmp_path / "asked.jsonl", questions[20:])
    context = {"group": tmp_path / "group.jsonl"}
    settings: dict[str, Any] = {"cache": tmp_path / "cache", "device": "cpu"}
    with pytest.raises(PluginMissing, match=r"letter-counts of town-hall-methods 1\.0"):
        GroupReward(model, context, **settings, allow_embedder=METHODS)
    site.install("town_hall_methods")
    for allowed in (None, "numpy", f"{METHODS}==1.1"):
        for load in (GroupReward, lambda model, _, **options: PreferencePredictor.from_pretrained(model, **options)):
            with pytest.raises(InvalidArgument, match=r"allow_embedder: must name town-hall-methods==1\.0, whose code"):
                load(model, context, **settings, allow_embedder=allowed)
    assert "town_hall_vectors" not in sys.modules
    PreferencePredictor.from_pretrained(model, **settings, allow_embedder=f"{METHODS}==1.0")
    files = (str(model), tmp_path / "asked.jsonl", tmp_path / "out.jsonl", tmp_path / "group.jsonl")
    with pytest.raises(InvalidArgument, match="allow_embedder: must name"):
        score(*files, **settings)
    settings["allow_embedder"] = METHODS
    pairs(*files, **settings)
    served: list[Any] = []
    monkeypatch.setattr(scoring_service, "serve_scores", lambda reward, *_: served.append(reward.groups))
    serve(str(model), [f"group={tmp_path / 'group.jsonl'}"], **settings)
    assert served == [("group",)]
    score(*files, **settings)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    reward = GroupReward(model, context, **settings)
    [rated] = reward([questions[25].text], ["A"], options=[questions[25].options])
    assert 0 < rated < 1
