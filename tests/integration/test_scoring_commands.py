"""The commands `pluralllm score`, `pluralllm pairs` and `pluralllm model serve`, with a real embedding model."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.commands import CLI, typed
from support.exported_model import export
from support.process_harness import tiny_embedding_model

from pluralllm.align import GroupReward
from pluralllm.client.data.private_data import write_group
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.errors.grpc_status import from_rpc_error
from pluralllm.common.errors.tree import InvalidArgument, NotFound, OverLimit
from pluralllm.common.predictor.metrics import Alignment
from pluralllm.common.words.questions import Question
from pluralllm.v1 import scoring_pb2 as pb
from pluralllm.v1 import scoring_pb2_grpc as pb_grpc

NAME, QUESTIONS = next(iter(sample_groups(2, 40, 0).items()))
ENVIRONMENT = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_starts")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scoring")
    export(folder / "model")
    tiny_embedding_model(folder / "tiny")
    write_group(folder / "group.jsonl", QUESTIONS[:20])
    return folder


def arguments(place: Path) -> list[str]:
    return ["--embedding-model-path", str(place / "tiny"), "--cache", str(place / "cache"), "--device", "cpu"]


def command(*given: str, code: int = 0) -> str:
    done = typed(CLI, *given, environment=ENVIRONMENT, limit_s=100)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def scored(
    place: Path, rows: list[Any], *more: str, verb: str = "score"
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    source, out = place / "in.jsonl", place / "out.jsonl"
    source.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    output = command(
        verb, str(place / "model"), str(source), str(out), "--context", str(place / "group.jsonl"),
        *arguments(place), "--json", *more,
    )  # fmt: skip
    assert out.stat().st_mode & 0o077 == 0, "the rows of the source may have true shares"
    return [json.loads(line) for line in out.read_text().splitlines()], json.loads(output)


def predicted(place: Path, questions: list[Question]) -> list[list[float]]:
    reward = GroupReward(
        place / "model",
        {"g": place / "group.jsonl"},
        embedding_model_path=place / "tiny",
        cache=place / "cache",
        device="cpu",
    )
    answers = reward.predict([("g", question) for question in questions])
    return [[float(share) for share in answers["g", question].shares] for question in questions]


def test_questions_preferences_and_completions_are_scored_and_what_cannot_be_is_counted(place: Path) -> None:
    asked = QUESTIONS[20]
    rows, summary = scored(
        place,
        [
            {"question": asked.text, "options": asked.options, "shares": asked.shares, "id": 7},
            {"prompt": "Which summary?", "chosen": "This one.", "rejected": "That one."},
            {"prompt": asked.text, "options": asked.options, "completion": "B"},
            {"prompt": asked.text, "options": asked.options, "completion": "no idea"},
            "{broken\n",
            {"prompt": "no candidates"},
        ],
    )
    shares = predicted(place, [asked])[0]
    assert rows[0]["predicted_shares"] == pytest.approx(shares, abs=1e-6)
    assert rows[0]["id"] == 7
    assert sum(rows[1]["predicted_shares"]) == pytest.approx(1, abs=1e-5)
    assert rows[2]["reward"] == pytest.approx(shares[1], abs=1e-6)
    assert rows[3]["reward"] is None
    assert [row["predicted_shares"] for row in rows[4:]] == [None, None]
    assert "not JSON" in rows[4]["problem"]
    assert "no candidates" in rows[5]["problem"]
    assert (summary["rows"], summary["not_scored"], summary["completions_without_reward"]) == (6, 2, 1)
    chosen_first = Question("Which summary?", ("This one.", "That one."), (1.0, 0.0))
    pair = predicted(place, [chosen_first])[0]
    total = Alignment().add(shares, asked.shares, None).add(pair, (1.0, 0.0), None)
    assert summary["alignment_score"] == pytest.approx(total.score, abs=1e-6)


def test_ranked_pairs_are_written_best_against_worst_or_all(place: Path) -> None:
    asked = list(QUESTIONS[20:24])
    rows = [{"question": question.text, "options": question.options} for question in asked]
    best, summary = scored(place, rows, "--margin", "0", verb="pairs")
    for row, question, shares in zip(best, asked, predicted(place, asked), strict=True):
        assert row["prompt"] == question.text
        assert row["chosen"] == question.options[shares.index(max(shares))]
        assert row["rejected"] == question.options[shares.index(min(shares))]
        assert row["margin"] == pytest.approx(max(shares) - min(shares), abs=1e-6)
    assert summary["pairs"] == 4
    every, _ = scored(place, rows, "--margin", "0", "--every", verb="pairs")
    assert len(every) == sum(len(q.options) * (len(q.options) - 1) // 2 for q in asked)
    none, _ = scored(place, rows, "--margin", "1", verb="pairs")
    assert none == []


def test_what_is_wrong_with_the_way_there_is_one_line(place: Path) -> None:
    paths = [str(place / "in.jsonl"), str(place / "o.jsonl"), "--context", str(place / "group.jsonl")]
    assert "pluralllm model export" in command("score", str(place / "nowhere"), *paths, *arguments(place), code=3)
    (place / "in.jsonl").write_text("{}\n")
    without_model = ["--cache", str(place / "empty-cache"), "--device", "cpu", "--embedding-model-path", str(place)]
    assert "local folder" in command("score", str(place / "model"), *paths, *without_model, code=3)
    paths[0] = str(place / "no.jsonl")
    assert "there is no such file" in command("score", str(place / "model"), *paths, *arguments(place), code=3)


@pytest.fixture
def stub(place: Path) -> Iterator[Any]:
    process = subprocess.Popen(
        [
            *[sys.executable, "-m", "pluralllm.cli", "model", "serve", str(place / "model"), "--listen", "127.0.0.1:0"],
            *["--context", f"{NAME}={place / 'group.jsonl'}", *arguments(place)],
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        address = re.search(r"127\.0\.0\.1:\d+", process.stdout.readline())
        assert address is not None
        with grpc.insecure_channel(address[0]) as channel:
            yield pb_grpc.ScoringServiceStub(channel)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait(10)


def test_other_programs_are_served_scores_and_typed_refusals(place: Path, stub: Any) -> None:
    scorer = stub.GetScorer(pb.GetScorerRequest(), timeout=20)
    assert (scorer.run, scorer.version, list(scorer.groups)) == ("r", 0, [NAME])
    asked = list(QUESTIONS[20:25])
    request = pb.ScoreRequest(questions=[pb.Candidates(prompt=q.text, options=q.options) for q in asked])
    answer = stub.Score(request, timeout=20)
    for got, wanted in zip(answer.answers, predicted(place, asked), strict=True):
        assert list(got.shares) == pytest.approx(wanted, abs=1e-6)
        assert all(spread > 0 for spread in got.spreads)
    refusals = [
        (pb.ScoreRequest(group="Atlantis", questions=request.questions), NotFound),
        (pb.ScoreRequest(questions=[pb.Candidates(prompt="p", options=["a"])]), InvalidArgument),
        (pb.ScoreRequest(questions=[pb.Candidates(prompt="p", options=map(str, range(10_001)))]), OverLimit),
    ]
    for wrong, leaf in refusals:
        with pytest.raises(grpc.RpcError) as refused:
            stub.Score(wrong, timeout=20)
        assert isinstance(from_rpc_error(refused.value, "here"), leaf)


def test_scores_are_served_on_the_loopback_interface_only(place: Path) -> None:
    error_text = command(
        "model", "serve", str(place / "model"), "--context", f"g={place / 'group.jsonl'}", "--listen", "0.0.0.0:0",
        *arguments(place), code=3,
    )  # fmt: skip
    assert "loopback" in error_text
