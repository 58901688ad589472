"""The notebooks of docs/notebooks are executed, with a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.process_harness import WIDTH, tiny_embedding_model
from support.python_blocks import blocks_of, executed
from support.synthetic_results import SMALL, write_results

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "docs" / "notebooks"
SENTENCES = '"sentence-transformers/all-MiniLM-L6-v2", "dimension": 768'
SURVEY_TO_PREDICTOR = {
    '"rounds": 30,': '"rounds": 2, "predictor": {"features": 32}, "training": {"local_steps": 2}, "evaluation": {"draws": 1},',
    SENTENCES: f'"tiny", "dimension": {2 * WIDTH}',
    "every=10)": 'every=1, embedding_model_path="tiny", device="cpu", progress=False)',
    'from_pretrained("model")': 'from_pretrained("model", embedding_model_path="tiny", device="cpu")',
}


def test_a_survey_becomes_a_predictor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_embedding_model(tmp_path / "tiny")
    names: dict[str, Any] = executed(NOTEBOOKS / "survey-to-predictor.ipynb", SURVEY_TO_PREDICTOR)
    assert names["same"].shares == pytest.approx(names["answer"].shares, abs=1e-5)
    assert len(names["frame"]) == 3 * 6


def test_the_results_of_an_experiment_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path / "results", SMALL[:3], questions=20)
    names: dict[str, Any] = executed(NOTEBOOKS / "reading-results.ipynb", {})
    assert list(names["frame"].columns)[:2] == ["method", "seeds"]
    assert len(names["by_round"].groupby(level=0).last()) == 3


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_holds_code_without_outputs(notebook: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    assert blocks_of(notebook)
    assert [cell["source"] for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
    assert [block for block in blocks_of(notebook) if "\n%" in f"\n{block}"] == []  # magic commands are no Python
