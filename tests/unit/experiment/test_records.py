"""Result files of experiments."""

from pathlib import Path

import torch

from pluralllm.experiment.records import Provenance
from pluralllm.experiment.spec import load_experiment

REPOSITORY = Path(__file__).parents[3]


def test_a_result_names_the_version_of_each_distribution_whose_code_made_it() -> None:
    provenance = Provenance(load_experiment(REPOSITORY / "benchmarks" / "experiments" / "paper.toml"), "0" * 64)
    header = provenance.header("zero", "baseline", 0, None, "0" * 64, torch.device("cpu"))
    ours = {f"pluralllm-{part}" for part in ("common", "server", "client", "research")}
    assert ours <= header["versions"].keys()
