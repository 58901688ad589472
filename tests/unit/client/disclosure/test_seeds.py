"""Seeds that nobody can compute without the client's secret."""

import stat
from pathlib import Path

import pytest

from pluralllm.client.disclosure.seeds import SecretSeeds, SharedSeeds, load_seeds
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.words.ids import Digest, RunId, TaskId

R, S = RunId("r"), RunId("s")
T, U = TaskId("r/1/train/ann"), TaskId("r/2/train/ann")
SEEDS = SecretSeeds(b"x" * 32)


def test_a_seed_differs_with_the_secret_the_run_and_the_task() -> None:
    other = SecretSeeds(b"y" * 32)
    drawn = [
        SEEDS.of_training(R, T, 7),
        other.of_training(R, T, 7),
        SEEDS.of_training(S, T, 7),
        SEEDS.of_training(R, U, 7),
        SEEDS.of_contexts(R, 7),
        other.of_contexts(R, 7),
        SEEDS.of_contexts(S, 7),
        SEEDS.of_contexts(R, 8),
    ]
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= seed < 2**64 for seed in drawn)


def test_a_repeated_training_draws_the_same_questions_whatever_seed_is_proposed() -> None:
    assert SEEDS.of_training(R, T, 7) == SEEDS.of_training(R, T, 8)


def test_rewards_by_one_model_have_one_context_in_every_run() -> None:
    assert SEEDS.of_rewards(Digest("a"), 7) == SEEDS.of_rewards(Digest("a"), 8)
    assert len({SEEDS.of_rewards(Digest("a"), 7), SEEDS.of_rewards(Digest("b"), 7), SEEDS.of_contexts(R, 7)}) == 3
    assert SharedSeeds().of_rewards(Digest("a"), 7) == 7


def test_names_that_join_to_the_same_text_have_other_seeds() -> None:
    assert SEEDS.of_training(RunId("ab"), TaskId("c"), 7) != SEEDS.of_training(RunId("a"), TaskId("bc"), 7)


def test_the_same_task_has_the_same_seed_after_a_restart(tmp_path: Path) -> None:
    first, second = (load_seeds(tmp_path / "disclosure", shared=False) for _ in range(2))
    assert first.of_training(R, T, 7) == second.of_training(R, T, 7)
    assert first.of_contexts(R, 7) == second.of_contexts(R, 7)


def test_two_clients_have_different_secrets_that_only_their_owners_read(tmp_path: Path) -> None:
    first, second = (load_seeds(tmp_path / name, shared=False) for name in ("ann", "ben"))
    assert first.of_training(R, T, 7) != second.of_training(R, T, 7)
    assert stat.S_IMODE((tmp_path / "ann" / "secret").stat().st_mode) == 0o600
    assert repr(first) == "SecretSeeds(...)"


def test_a_secret_that_is_cut_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 31)
    with pytest.raises(InvalidConfig, match="it has 31 bytes, not 32"):
        load_seeds(tmp_path, shared=False)


def test_with_shared_seeds_the_coordinator_knows_them_and_there_is_no_secret(tmp_path: Path) -> None:
    seeds = load_seeds(tmp_path, shared=True)
    assert isinstance(seeds, SharedSeeds)
    assert (seeds.of_training(R, T, 7), seeds.of_contexts(R, 8)) == (7, 8)
    assert not (tmp_path / "secret").exists()
