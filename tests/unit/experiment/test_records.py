"""Result files of experiments."""

from pathlib import Path

import pytest
import torch

from pluralllm.common.errors.tree import InvalidResults
from pluralllm.experiment.records import Provenance, is_done
from pluralllm.experiment.spec import load_experiment

REPOSITORY = Path(__file__).parents[3]


def test_a_result_names_the_version_of_each_distribution_whose_code_made_it() -> None:
    provenance = Provenance(load_experiment(REPOSITORY / "benchmarks" / "experiments" / "paper.toml"), "0" * 64)
    header = provenance.header("zero", "baseline", 0, None, "0" * 64, torch.device("cpu"))
    ours = {f"pluralllm-{part}" for part in ("common", "server", "client", "research")}
    assert ours <= header["versions"].keys()


@pytest.mark.parametrize("content", ["", "\n", "[]\n", "{}\n", "\x00"])
def test_a_damaged_result_is_named_with_the_fix(tmp_path: Path, content: str) -> None:
    path = tmp_path / "zero.seed0.jsonl"
    path.write_text(content)
    provenance = Provenance(load_experiment(REPOSITORY / "benchmarks" / "experiments" / "paper.toml"), "0" * 64)
    with pytest.raises(InvalidResults, match="it is damaged; delete it"):
        is_done(path, provenance)
