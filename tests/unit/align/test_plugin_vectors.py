"""A model whose vectors another package makes is scored with, in Python and by the command, where the package is installed."""

import json
from pathlib import Path

import pytest
from support.exported_model import export
from support.installed_package import Site, of_page
from support.process_harness import process_spec

from pluralllm.align import GroupReward
from pluralllm.align.commands.scoring import score
from pluralllm.client.data.private_data import write_group
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.errors.tree import PluginMissing
from pluralllm.common.words.embedding import Embedding


def test_a_group_is_scored_with_the_packages_vectors(site: Site, tmp_path: Path) -> None:
    vectors = Embedding.model_validate(of_page("embedding"))
    spec = process_spec(training={"episodes": {"min_context": 5}}).model_copy(update={"embedding": vectors})
    model = export(tmp_path / "model", spec)
    questions = next(iter(sample_groups(2, 40, 0).values()))
    write_group(tmp_path / "group.jsonl", questions[:20])
    write_group(tmp_path / "asked.jsonl", questions[20:])
    context = {"group": tmp_path / "group.jsonl"}
    with pytest.raises(PluginMissing, match=r"letter-counts of town-hall-methods 1\.0"):
        GroupReward(model, context, cache=tmp_path / "cache", device="cpu")
    site.install("town_hall_methods")
    files = (str(model), tmp_path / "asked.jsonl", tmp_path / "out.jsonl", tmp_path / "group.jsonl")
    score(*files, cache=tmp_path / "cache", device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    reward = GroupReward(model, context, cache=tmp_path / "cache", device="cpu")
    [rated] = reward([questions[25].text], ["A"], options=[questions[25].options])
    assert 0 < rated < 1
