"""The commands that write answers write them for their owner only."""

import json
from pathlib import Path

from typer.testing import CliRunner

from pluralllm.client.data_commands import app


def test_imported_answers_and_pairs_made_from_them_are_for_their_owner_only(tmp_path: Path) -> None:
    votes, answers, pairs = (tmp_path / name for name in ("votes.jsonl", "answers.jsonl", "pairs.jsonl"))
    rows = [{"prompt": f"Summary {n}?", "chosen": "short", "rejected": "long", "group": "G"} for n in range(3)]
    votes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for arguments in (
        ["import", "preferences", str(votes), "--group", "G", "--out", str(answers)],
        ["pairs", str(answers), "--out", str(pairs)],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    assert [path.stat().st_mode & 0o777 for path in (answers, pairs)] == [0o600, 0o600]
    assert votes.stat().st_mode & 0o777 != 0o600
