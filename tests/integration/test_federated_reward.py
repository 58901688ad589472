"""From a federation to a trainer: an exported version scores alone, and groups give rewards without sending their answers."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import CLI, typed
from support.process_harness import Federation, federation, free_port, process_spec, tiny_embedding_model, until

from pluralllm.align import FederatedReward, GroupReward
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.client.work.train import reward_context
from pluralllm.common.errors.tree import NotFound, PluralError
from pluralllm.common.predictor.data import group_data
from pluralllm.common.words.ids import ModelVersion, RunId
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import parse_spec
from pluralllm.operator.remote import Remote

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("forked_starts")]
NAMES = ("ann", "ben", "cem", "dan")
SURVEY: dict[str, tuple[Question, ...]] = dict(zip(NAMES, sample_groups(4, 60, 0).values(), strict=True))
SPEC = process_spec(
    rounds=1, round={"target_clients": 4, "min_clients": 4, "evaluate_every": 1}, predictor={"d_model": 16}
)


@pytest.fixture(scope="module")
def embedding_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedding_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, embedding_model: Path) -> Iterator[tuple[Federation, Remote]]:
    """A coordinator, four clients that allow rewards, and run s, which has trained."""
    with federation(tmp_path_factory.mktemp("federation"), embedding_model, free_port()) as started:
        remote = started.start_coordinator()
        for name in NAMES:
            started.start_client(name, SURVEY[name], policy={"allow_rewards": True}, stays=True)
        remote.create_run("s", SPEC.canonical_json())
        remote.start_run("s")
        until(lambda: remote.get_run("s")["phase"] == "ended", "run s ends", started, 150)
        yield started, remote
        remote.close()


def pluralllm(running: Federation, *given: str) -> dict[str, Any]:
    done = typed(CLI, "--identity", running.admin, *given, "--json", environment={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


ALONE = """
import json, sys
sys.modules["pluralllm.server"] = None
from pathlib import Path
from pluralllm.align import GroupReward, PluralPredictor
from pluralllm.client.data.private_data import read_group
from pluralllm.client.work.train import evaluation_episode
from pluralllm.common.predictor.data import group_data
from pluralllm.common.predictor.metrics import Alignment
from pluralllm.common.words.spec import GroupRole, RunSpec
import numpy as np

folder, data, group, tiny, cache = sys.argv[1:]
spec = RunSpec.model_validate(json.loads((Path(folder) / "provenance.json").read_text())["run_spec"])
questions = read_group(Path(data))
rows = [np.zeros((len(question.options), spec.embedding.dimension), np.float32) for question in questions]
episode = evaluation_episode(spec, group_data(group, questions, rows), GroupRole.TRAIN, 0)
context = [questions[number] for number in episode.context]
settings = {"embedding_model_path": tiny, "cache": cache, "device": "cpu"}
reward = GroupReward(folder, {"g": context}, accept_no_context_gain=True, **settings)
asked = [questions[number] for number in episode.targets]
answers = reward.predict([("g", question) for question in asked])
total = Alignment()
for question in asked:
    total = total.add(answers["g", question].shares, question.shares, question.scale)
print(json.dumps({"score": total.score, "wasserstein": total.wasserstein}))
"""


def test_an_exported_version_scores_as_the_service_did_where_no_server_is_installed(
    running: tuple[Federation, Remote], embedding_model: Path, tmp_path: Path
) -> None:
    federated, remote = running
    exported = pluralllm(federated, "model", "export", "s", str(tmp_path / "exported"))
    assert (exported["run"], exported["version"], exported["participants"], exported["updates"]) == ("s", 1, 4, 4)
    card = (tmp_path / "exported" / "README.md").read_text()
    scores = [score for score in remote.evaluations("s") if score["version"] == 1]
    assert len(scores) == 4
    for score in scores:
        assert f"| {score['group']} | train | {score['alignment_score']:.4f} |" in card
    origin = json.loads((tmp_path / "exported" / "provenance.json").read_text())
    assert [one["version"] for one in origin["lineage"]] == [0, 1]
    assert origin["lineage"][1]["parent_record_sha256"] == origin["lineage"][0]["record_sha256"]
    for score in scores[:2]:
        data = federated.folder / score["client"] / "answers.jsonl"
        arguments = [
            str(tmp_path / "exported"),
            str(data),
            score["group"],
            str(embedding_model),
            str(tmp_path / "cache"),
        ]
        alone = subprocess.run(
            [sys.executable, "-c", ALONE, *arguments], capture_output=True, text=True, timeout=100, check=False
        )
        assert alone.returncode == 0, alone.stderr
        again = json.loads(alone.stdout)
        assert round(again["score"], 2) == score["alignment_score"]  # a client rounds its scores to hundredths
        assert round(again["wasserstein"], 2) == score["wasserstein_score"]


def test_four_groups_score_a_trainers_rollouts_and_three_when_one_is_killed(
    running: tuple[Federation, Remote], embedding_model: Path, tmp_path: Path
) -> None:
    federated, remote = running
    pluralllm(
        federated,
        "run",
        "rewards",
        "r",
        "s",
        "--grace-s",
        "3",
        "--deadline-s",
        "40",
        "--start",
        "--accept-no-context-gain",
    )
    pluralllm(federated, "model", "export", "s", str(tmp_path / "exported"))
    asked = SURVEY["ann"][:3]
    rows = [(question, letter) for question in asked for letter in "AB"]
    rollouts: dict[str, Any] = {
        "prompts": [f"{question.text} Answer by a letter." for question, _ in rows],
        "completions": [letter for _, letter in rows],
        "question": [question.text for question, _ in rows],
        "options": [list(question.options) for question, _ in rows],
    }
    reward = FederatedReward(remote, "r", timeout_s=90, accept_no_context_gain=True)
    rewards = asyncio.run(reward(**rollouts))
    assert set(reward.groups) == {f"group of {name}" for name in NAMES}
    spec = parse_spec(remote.model_record(ModelName(RunId("r"), ModelVersion(0)))[2], "of r")
    local = np.mean(
        [
            GroupReward(
                tmp_path / "exported",
                {name: reward_context(spec, in_order(name))},
                embedding_model_path=embedding_model,
                cache=tmp_path / "cache",
                device="cpu",
                accept_no_context_gain=True,
            )(**rollouts)
            for name in NAMES
        ],
        axis=0,
    )
    assert rewards == pytest.approx(local.tolist(), abs=0.006)  # each group rounds its rewards to hundredths
    federated.clients["dan"].kill()
    again = asyncio.run(
        FederatedReward(remote, "r", timeout_s=90, accept_no_context_gain=True)(
            **{**rollouts, "completions": ["B"] * len(rows)}
        )
    )
    assert None not in again
    held = FederatedReward(federated.admin, "r", timeout_s=90, accept_no_context_gain=True)
    asyncio.run(held(**rollouts))
    assert set(held.groups) == {f"group of {name}" for name in NAMES if name != "dan"}


def in_order(name: str) -> Any:
    """Returns a group's data in its worker's order, without embeddings."""
    rows = [np.zeros((len(question.options), 1), np.float32) for question in SURVEY[name]]
    return group_data(f"group of {name}", SURVEY[name], rows)


def test_a_run_that_is_not_there_is_said_to_be(running: tuple[Federation, Remote]) -> None:
    _, remote = running
    with pytest.raises(NotFound, match="nowhere"):
        asyncio.run(FederatedReward(remote, "nowhere")(["p"], ["A"], options=[["a", "b"]]))


def test_a_partner_that_does_not_allow_rewards_refuses_and_says_so(running: tuple[Federation, Remote]) -> None:
    federated, remote = running
    federated.start_client("eve", SURVEY["ann"], stays=True)
    reward = FederatedReward(remote, "r", timeout_s=90, accept_no_context_gain=True)

    def policy_is_reported() -> bool:
        try:
            asyncio.run(reward(["p"], ["A"], options=[["a", "b"]]))
        except PluralError:
            return False
        people = {participant["client"]: participant["reason"] for participant in remote.get_run("r")["participants"]}
        return "allow_rewards" in people.get("eve", "")

    until(policy_is_reported, "eve's policy is seen in the status", federated, 60)
    assert "group of eve" not in reward.groups
