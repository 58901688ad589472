"""Rewards in a distributed training: the completions of one prompt may be on several ranks."""

import asyncio
import copy
import multiprocessing
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from pluralllm.align import AggregateReward, FederatedReward, GroupReward
from pluralllm.align.ranks import Ranks
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.errors.tree import NotFound
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.reward_weights import RewardAggregation
from pluralllm.operator.remote import Remote

pytestmark = pytest.mark.seconds

# The completions of two prompts, as a trainer spreads them: neither prompt is on one rank alone.
PROMPTS = ["p", "p", "p", "q", "q", "q"]
COMPLETIONS = ["one", "two", "three", "four", "five", "four"]
SURVEY = {str(name): questions for name, questions in sample_groups(2, 30, 0).items()}
Work = Callable[[Sequence[str], Sequence[str], Any], Any]
# One process imports torch, and each rank is forked from it.
START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(["pluralllm.align.group_reward", "support.process_harness"])


def on_ranks(count: int, work: Work, argument: Any, folder: Path) -> list[Any]:
    """Returns what `work` returns on each rank. It gets the rank's prompts, its completions and the argument."""
    meeting = f"file://{folder / uuid.uuid4().hex}"
    with START.Pool(count) as pool:
        return pool.starmap(one_rank, [(rank, count, meeting, work, argument) for rank in range(count)], chunksize=1)


def one_rank(rank: int, count: int, meeting: str, work: Work, argument: Any) -> Any:
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    share = len(PROMPTS) // count
    own = slice(rank * share, (rank + 1) * share)
    try:
        return work(PROMPTS[own], COMPLETIONS[own], argument)
    finally:
        dist.destroy_process_group()


def rewards_of_groups(
    prompts: Sequence[str], completions: Sequence[str], place: Path
) -> tuple[list[float | None], list[float | None], dict[str, Any]]:
    contexts = {name: questions[:20] for name, questions in SURVEY.items()}
    settings: dict[str, Any] = {"embedding_model_path": place / "tiny", "device": "cpu"}
    reward = GroupReward(place / "model", contexts, cache=place / f"cache-{uuid.uuid4().hex}", **settings)
    both = AggregateReward(reward, RewardAggregation(rule="adaptive", temperature=0.1))
    first = [None if each is None else each.reward for each in reward.score(prompts, completions, next(iter(SURVEY)))]
    both(prompts, completions)
    return first, both(prompts, completions), both.state_dict()


@pytest.mark.parametrize("count", [2, 3])
def test_rewards_are_the_same_over_any_number_of_ranks(count: int, place: Path) -> None:
    alone = rewards_of_groups(PROMPTS, COMPLETIONS, place)
    spread = on_ranks(count, rewards_of_groups, place, place)
    for number in (0, 1):
        together = [reward for rank in spread for reward in rank[number]]
        assert together == pytest.approx(alone[number], abs=1e-6)
    for _, _, state in spread:
        assert state["history"] == pytest.approx(alone[2]["history"], abs=1e-6)


class Counting(Remote):
    """A coordinator that rewards the candidates of p and q, and knows how often it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked, self.error = 0, error

    def model_record(self, model: ModelName) -> tuple[dict[str, Any], int, bytes]:
        """Raises NotFound: then nobody knows the model's context gain, and the batch goes on."""
        raise NotFound(what="model", name=str(model))

    def ask_rewards(self, run: str, rollouts_json: bytes) -> str:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return "runs/tuning/rounds/1"

    def rewards(self, name: str) -> dict[str, Any]:
        return {"outcome": "closed", "groups": [{"group": "g", "weight": 1.0}], "rewards": [0.5, 0.3, 0.2, 0.4, 0.6]}


def rewards_of_a_federation(
    prompts: Sequence[str], completions: Sequence[str], remote: Counting
) -> tuple[list[float | None] | str, int, dict[str, float]]:
    reward = FederatedReward(remote, "tuning")
    try:
        return asyncio.run(reward(prompts, completions)), remote.asked, reward.groups
    except NotFound as error:
        return str(error), remote.asked, reward.groups


def test_the_first_rank_asks_a_federation_for_all_ranks(tmp_path: Path) -> None:
    spread = on_ranks(2, rewards_of_a_federation, Counting(), tmp_path)
    assert [rewards for rewards, _, _ in spread] == [[0.5, 0.3, 0.2], [0.4, 0.6, 0.4]]
    assert [asked for _, asked, _ in spread] == [1, 0]
    assert all(groups == {"g": 1.0} for _, _, groups in spread)


def test_an_error_of_the_first_rank_reaches_every_rank(tmp_path: Path) -> None:
    error = NotFound(what="run", name="tuning")
    spread = on_ranks(2, rewards_of_a_federation, Counting(error), tmp_path)
    assert [text for text, _, _ in spread] == [str(error)] * 2


def test_one_process_is_a_rank_alone_and_ranks_travel_between_processes() -> None:
    ranks = copy.deepcopy(Ranks())  # as pickle makes it
    batch = ranks.gathered(["a", "b"])
    assert (batch.values, batch.own([1, 2])) == (["a", "b"], [1, 2])
    assert ranks.is_first
    assert ranks.from_first("x") == "x"
