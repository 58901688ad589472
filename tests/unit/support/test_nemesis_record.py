"""The nemesis's file of verdicts continues where an earlier process stopped, for the same commit and stores only."""

import json
from collections import Counter
from pathlib import Path

import pytest
from nemesis import report
from nemesis.report import Record
from nemesis.schedule import Kind, Schedule
from nemesis.trial import Outcome


def outcome(seed: int, *problems: str) -> Outcome:
    plan = Schedule(seed, "sqlite+local", "everybody", standby=False, strikes=())
    return Outcome(plan, 1.0, Counter({Kind.LOG_FAILS: 2}), Counter(), 0, None, list(problems))


def test_a_seed_with_a_verdict_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "verdicts.jsonl"
    monkeypatch.setattr(report, "_commit", lambda: "a commit")
    record = Record(path, "sqlite+local")
    record.add(outcome(3))
    record.add(outcome(4, "it goes no further"))
    assert [json.loads(line)["verdict"] for line in path.read_text().splitlines()] == ["holds", "does not hold"]
    again = Record(path, "sqlite+local")
    assert [again.has(seed) for seed in (2, 3, 4)] == [False, True, True]
    assert not Record(path, "postgresql+s3").has(3)
    monkeypatch.setattr(report, "_commit", lambda: "another commit")
    assert not Record(path, "sqlite+local").has(3)


def test_a_verdict_names_files_without_the_folders_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    told = f'ann wrote a stack trace: File "{tmp_path}/asyncio/threads.py", line 25; 1/2 of it in {tmp_path}'
    Record(path, "sqlite+local").add(outcome(3, told))
    (problem,) = json.loads(path.read_text())["problems"]
    assert problem == f'ann wrote a stack trace: File "threads.py", line 25; 1/2 of it in {tmp_path.name}'


def test_without_a_file_no_seed_has_a_verdict() -> None:
    record = Record(None, "sqlite+local")
    record.add(outcome(3))
    assert not record.has(3)
