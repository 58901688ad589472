"""The attackers of benchmarks/leak/masked.py read everything in a plain round, and nothing of one member in a private one."""

from pathlib import Path

import numpy as np
import pytest
from leak import masked
from leak.setting import Round, shares_of, uniform
from numpy.typing import NDArray
from support.private_members import NAMES, Played, dealt_round, played_round
from support.small_survey import small_group, small_spec

from pluralllm.common.predictor.data import GroupData
from pluralllm.common.private_rounds.messages import Confirmation
from pluralllm.common.private_rounds.round_sum import leftover_streams, open_round
from pluralllm.common.private_rounds.transcript import Transcript
from pluralllm.common.weights.update_format import TAIL
from pluralllm.common.words.spec import RunSpec

VALUES = 4096
DEALERS = NAMES[:5]
IN_SUM = NAMES[:4]  # the last dealer has dropped out


def plain_numbers() -> dict[str, NDArray[np.uint32]]:
    rng = np.random.default_rng(1)
    made = {name: rng.integers(-(2**20), 2**20, TAIL + VALUES).astype(np.int32).view(np.uint32) for name in IN_SUM}
    for numbers in made.values():
        numbers[:TAIL] = 0
    return made


@pytest.fixture(scope="module")
def played() -> tuple[Played, Transcript]:
    plain = plain_numbers()
    made = played_round(dealt_round(5, 4), DEALERS, plain, IN_SUM)
    opened = open_round(made.fixed, made.dealt.shares, made.reveals)
    confirmations: dict[str, Confirmation] = made.confirmations
    return made, Transcript.of(made.fixed, opened, made.dealt.shares, confirmations, (0,) * TAIL)


def test_what_the_transcript_gives_away_leaves_a_members_numbers_masked(played: tuple[Played, Transcript]) -> None:
    made, transcript = played
    plain, limit = plain_numbers(), 6 / np.sqrt(VALUES)
    left = {name: masked.stripped(transcript, name, made.masked[name]) for name in IN_SUM}
    for name in IN_SUM:
        seen, true = (one[name].view(np.int32)[TAIL:].astype(np.float64) for one in (left, plain))
        assert abs(np.corrcoef(seen, true)[0, 1]) < limit
        assert not np.array_equal(left[name], made.masked[name])
    total = np.sum(list(left.values()), axis=0, dtype=np.uint32)  # the streams of pairs cancel
    assert np.array_equal(total, np.sum(list(plain.values()), axis=0, dtype=np.uint32))
    assert len(leftover_streams(made.fixed, transcript.opened())) == len(IN_SUM) + len(IN_SUM)


def test_an_update_in_plain_is_found_on_the_disk_and_a_masked_one_is_not(
    tmp_path: Path, played: tuple[Played, Transcript]
) -> None:
    made, transcript = played
    update = np.random.default_rng(2).normal(0, 1, VALUES).astype(np.float32)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "transcript").write_bytes(transcript.to_json())
    (tmp_path / "blobs" / "masked").write_bytes(made.masked["ann"].tobytes())
    assert not masked.holds(tmp_path, update)
    assert masked.transcript_in(tmp_path) == transcript
    (tmp_path / "blobs" / "plain").write_bytes(b"header" + update.tobytes())
    assert masked.holds(tmp_path, update)


def test_masked_numbers_look_like_an_update_of_the_usual_norm_and_sums_are_means() -> None:
    rng = np.random.default_rng(3)
    deltas = {name: rng.normal(0, 1, VALUES).astype(np.float32) for name in IN_SUM}
    attacked = Round(1, np.zeros(VALUES, np.float32), deltas)
    numbers = {name: rng.integers(0, 2**32, VALUES, np.uint32) for name in IN_SUM}
    seen = masked.in_masks(numbers, attacked, "masked")
    usual = np.median([np.linalg.norm(delta) for delta in deltas.values()])
    assert np.linalg.norm(seen.updates["ann"]) == pytest.approx(usual, rel=1e-5)
    assert masked.in_plain(attacked).updates == deltas
    sums = masked.in_sums(attacked, 3).updates
    first, second, third, _ = sorted(IN_SUM)
    assert np.allclose(sums[first], (deltas[first] + deltas[second] + deltas[third]) / 3, atol=1e-6)


def test_the_verdict_names_a_gain_and_a_correlation_and_judges_no_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {name: small_group(name, questions=20, seed=seed) for seed, name in enumerate(IN_SUM)}
    rng = np.random.default_rng(4)
    deltas = {name: rng.normal(0, 1, VALUES).astype(np.float32) for name in IN_SUM}
    attacked, spec = Round(1, np.zeros(VALUES, np.float32), deltas), small_spec()
    reads = True

    def predicted(_spec: RunSpec, values: NDArray[np.float32], data: GroupData) -> NDArray[np.float64]:
        owner = next((name for name in IN_SUM if np.array_equal(values, deltas[name])), None)
        return shares_of(data) if reads and owner is not None and groups[owner] is data else uniform(data)

    monkeypatch.setattr(masked, "predicted", predicted)
    plain = masked.leaks(spec, groups, attacked, masked.in_plain(attacked))
    assert (plain["distance"], plain["verdict"]) == (0.0, "not at chance")
    assert plain["gain"] == plain["prior"] == plain["base"]
    assert float(plain["gain"]) > masked.CHANCE
    reads = False
    read_by_correlation = masked.leaks(spec, groups, attacked, masked.in_plain(attacked))
    assert (read_by_correlation["gain"], read_by_correlation["verdict"]) == (0.0, "not at chance")
    numbers = {name: rng.integers(0, 2**32, VALUES, np.uint32) for name in IN_SUM}
    assert masked.leaks(spec, groups, attacked, masked.in_masks(numbers, attacked, "x"))["verdict"] == "at chance"
    assert masked.leaks(spec, groups, attacked, masked.in_sums(attacked, 3))["verdict"] == "reported"
