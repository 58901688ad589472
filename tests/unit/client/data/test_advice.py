"""The last line of an import of preferences advises a preset."""

import json
from pathlib import Path

from typer.testing import CliRunner

from pluralllm.client.data_commands import app
from pluralllm.client.preference_command import PREFERENCES_PRESET
from pluralllm.common.words.spec import PRESETS, preset_values


def test_an_import_of_preferences_ends_with_a_preset_whose_predictions_follow_the_group(tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").write_text(json.dumps({"prompt": "p", "candidates": ["x", "y"], "votes": [1, 2]}))
    words = ["import", "preferences", str(tmp_path / "votes.jsonl"), "--out", str(tmp_path / "answers.jsonl")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    first, *_, last = result.output.splitlines()
    assert first.startswith("1 questions of all rows")
    assert f"pluralllm spec new --preset {PREFERENCES_PRESET})" in last
    assert PREFERENCES_PRESET in PRESETS
    assert preset_values(PREFERENCES_PRESET)["predictor"]["architecture"] == "fourier-kernel/1"
