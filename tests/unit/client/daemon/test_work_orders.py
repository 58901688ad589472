"""The orders that the daemon makes for its worker from a task."""

from pathlib import Path
from typing import Any

import pytest
from support.fixed_data import FixedData
from support.process_harness import process_spec

from pluralllm.client.daemon.work_orders import WorkOrders
from pluralllm.client.disclosure.seeds import SecretSeeds, Seeds, SharedSeeds
from pluralllm.client.joining.partner import Partner
from pluralllm.client.keeping.drafts import Drafts
from pluralllm.client.link.tasks import Task
from pluralllm.client.private_rounds.masking import MaskingSecrets
from pluralllm.client.process.config import ClientConfig
from pluralllm.client.work.orders import Mask, Train
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId, TaskId
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.spec import GroupRole

TASK = Task(
    TaskId("t"), RunId("r"), TaskKind.TRAIN, RoundNumber(3), Digest("s"), ModelVersion(2), Digest("b"), "", 4, seed=7
)


def orders(folder: Path, seeds: Seeds = SharedSeeds(), **settings: Any) -> WorkOrders:  # noqa: B008 - it has no state
    partner = Partner(ClientId("ann"), "G", GroupRole.TRAIN, "127.0.0.1:1", None)
    config = ClientConfig(**{"data": Path("answers.jsonl"), **settings})
    return WorkOrders(config, partner, folder, Drafts(folder / "drafts"), seeds, FixedData(60, Path("noised.jsonl")))


def test_relative_paths_of_the_configuration_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    order = orders(tmp_path, embedding_model_path="model", cache_dir="texts").prepare(process_spec(), b"{}")
    assert (order.data, order.model_path, order.cache) == (
        tmp_path / "noised.jsonl",  # the file whose content was announced, which need not be the configured one
        tmp_path / "model",
        tmp_path / "texts",
    )


def test_embedded_texts_are_kept_in_the_state_directory_by_default(tmp_path: Path) -> None:
    assert orders(tmp_path).prepare(process_spec(), b"{}").cache == tmp_path / "cache"


def test_each_file_of_a_training_has_its_own_path(tmp_path: Path) -> None:
    task = TASK
    drafts = Drafts(tmp_path / "drafts")
    assert orders(tmp_path).train(task, tmp_path / "base") == Train(
        Digest("s"),
        tmp_path / "base",
        drafts.delta,
        7,
        3,
        drafts.optimizer_state(RunId("r")),
        drafts.residual(RunId("r")),
    )
    assert len({drafts.delta, drafts.optimizer_state(RunId("r")), drafts.residual(RunId("r"))}) == 3


def test_a_training_of_a_private_round_has_the_seed_that_follows_from_the_rounds_secret(tmp_path: Path) -> None:
    made = orders(tmp_path, SecretSeeds(bytes(32)))
    assert made.train(TASK, tmp_path / "base", 0).seed == 0
    assert made.train(TASK, tmp_path / "base").seed not in (0, TASK.seed)


@pytest.mark.parametrize(("weighting", "weight"), [("examples", 30), ("uniform", 400)])
def test_an_order_to_mask_has_the_rounds_numbers_and_the_keys_in_hex(
    tmp_path: Path, weighting: str, weight: int
) -> None:
    spec = process_spec(
        aggregation={"weighting": weighting, "max_examples": 400},
        round={"target_clients": 5, "min_clients": 4},
        private_rounds={"clip_norm": 7.0},
    )
    secrets = MaskingSecrets(((b"k" * 32, 1), (b"l" * 32, -1)), b"r" * 32)
    order = orders(tmp_path).mask(spec, 30, {"loss": 1.5}, 5, secrets, score=0.75)
    assert order == Mask(
        delta=tmp_path / "drafts" / "delta.safetensors",
        out=tmp_path / "drafts" / "masked.safetensors",
        members=5,
        clip_norm=7.0,
        most_weight=400,
        weight=weight,
        most_metric_weight=400,
        metric_weight=30,
        distance_weight=30,
        loss=1.5,
        base_distance=None,
        score=0.75,
        streams=(("6b" * 32, 1), ("6c" * 32, -1)),
        rounding="72" * 32,
    )
    assert orders(tmp_path).mask(spec, 500, {}, 5, secrets).weight == 400
    assert orders(tmp_path).mask(spec, 500, {}, 5, secrets).metric_weight == 400


@pytest.mark.parametrize(
    ("weighting", "weight"), [("q_fair", 2 * 30 / 400 / 3), ("agnostic", 2 / 3), ("adaptive", 2 / 3)]
)
def test_a_fairness_aware_weight_has_the_factor_and_its_own_scale_and_each_distance_counts_alike(
    tmp_path: Path, weighting: str, weight: float
) -> None:
    spec = process_spec(
        aggregation={"weighting": weighting, "max_examples": 400},
        round={"target_clients": 5, "min_clients": 4},
        private_rounds={},
    )
    order = orders(tmp_path).mask(spec, 30, {"base_distance": 0.3}, 5, MaskingSecrets((), b""), 2.0)
    assert (order.weight, order.most_weight) == (round(2**20 * weight), 2**20)
    assert (order.metric_weight, order.distance_weight, order.most_metric_weight) == (30, 400, 400)


def test_an_order_to_mask_a_term_of_a_sum_has_the_bound_of_plain_rounds_and_the_number_of_questions(
    tmp_path: Path,
) -> None:
    spec = process_spec(
        predictor={"architecture": "kernel-sums/1", "features": 64, "group_rank": 2, "subspace_rounds": 1},
        aggregation={"weighting": "uniform", "max_examples": 400, "max_delta_norm": 864.0},
        round={"target_clients": 5, "min_clients": 4},
        private_rounds={"clip_norm": 7.0},
    )
    secrets = MaskingSecrets((), b"r" * 32)
    order = orders(tmp_path).mask(spec, 30, {}, 5, secrets)
    assert (order.clip_norm, order.is_term, order.weight, order.most_weight) == (864.0, True, 30, 400)
    assert orders(tmp_path).mask(spec, 500, {}, 5, secrets).weight == 400


def test_a_role_in_the_spec_replaces_the_partners_own(tmp_path: Path) -> None:
    held_out = process_spec(groups={"train": ["H", "I"], "held_out": ["G"]})
    assert orders(tmp_path).prepare(held_out, b"{}").role is GroupRole.HELD_OUT
    assert orders(tmp_path).prepare(process_spec(), b"{}").role is GroupRole.TRAIN


def test_every_seed_of_an_order_depends_on_the_clients_secret(tmp_path: Path) -> None:
    ours, others = (orders(tmp_path, SecretSeeds(bytes([number]) * 32)) for number in (1, 2))
    base, spec = tmp_path / "base", process_spec()
    assert len({ours.train(TASK, base).seed, others.train(TASK, base).seed, TASK.seed}) == 3
    assert (
        len({ours.evaluate(TASK, spec, base).context_seed, others.evaluate(TASK, spec, base).context_seed, spec.seed})
        == 3
    )
    rewards = [made.reward(TASK, spec, base, b"").context_seed for made in (ours, others)]
    assert len({*rewards, spec.seed}) == 3
