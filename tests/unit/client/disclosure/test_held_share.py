"""The share of questions that nobody trains on, fixed by the first run."""

from pathlib import Path

import pytest
from support.process_harness import process_spec

from pluralllm.client.disclosure.differences import Difference
from pluralllm.client.disclosure.held_share import HeldShare
from pluralllm.client.disclosure.policy import Policy
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.words.questions import HoldOut
from pluralllm.common.words.reward_weights import RewardRun
from pluralllm.common.words.spec import RunSpec

ASKING, NEVER_ASKING = Policy(), Policy(allowed_presets=("*",))


def spec_of(share: float) -> RunSpec:
    return process_spec(evaluation={"holdout_share": share})


def asked(held: HeldShare, share: float, policy: Policy = ASKING) -> list[Difference]:
    return list(held.differences(policy, spec_of(share)))


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_the_first_run_fixes_the_share_for_all_later_ones(tmp_path: Path, share: float) -> None:
    first = HeldShare(tmp_path / "share.json")
    assert asked(first, share) == []
    first.fix(spec_of(share))
    later = HeldShare(tmp_path / "share.json")
    assert asked(later, share) == []
    for other in {0.05, 0.1, 0.2, share + 1e-12} - {share}:
        (difference,) = asked(later, other)
        assert (difference.asked, difference.allowed) == (str(other), str(share))
        assert "first run" in difference.text
        later.fix(spec_of(other))
    assert later.value == HoldOut(share, by_key=False)


@pytest.mark.parametrize("share", [0.0, 0.0499999, 0.1 + 1e-12, 0.15, 0.5])
def test_a_share_that_is_none_of_three_needs_consent(tmp_path: Path, share: float) -> None:
    held = HeldShare(tmp_path / "share.json")
    (difference,) = asked(held, share)
    assert difference.text.startswith(f"evaluation.holdout_share is {share}, allowed is 0.05 or 0.1 or 0.2")
    assert asked(held, share, NEVER_ASKING) == []


def test_a_share_with_consent_is_as_fixed_as_another(tmp_path: Path) -> None:
    held = HeldShare(tmp_path / "share.json")
    held.fix(spec_of(0.3))
    assert len(asked(held, 0.1)) == 1


def test_a_run_for_rewards_neither_fixes_the_share_nor_needs_it(tmp_path: Path) -> None:
    held = HeldShare(tmp_path / "share.json")
    rewards = RewardRun(source="runs/s/models/0", model_digest="0" * 64)
    spec = spec_of(0.3).model_copy(update={"rewards": rewards})
    assert list(held.differences(ASKING, spec)) == []
    held.fix(spec)
    assert held.value is None


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "0.2", '{"holdout_share": "half"}', '{"holdout_share": 2}'])
def test_a_damaged_file_is_named_and_fixes_nothing_anew(tmp_path: Path, content: str) -> None:
    held = HeldShare(tmp_path / "share.json")
    held.fix(spec_of(0.2))
    (tmp_path / "share.json").write_text(content)
    with pytest.raises(InvalidConfig, match=r"share.json(.|\n)*it is damaged: (.|\n)*move it away"):
        asked(held, 0.1)
    with pytest.raises(InvalidConfig):
        held.fix(spec_of(0.1))
    assert (tmp_path / "share.json").read_text() == content


def test_another_rule_than_that_of_the_first_run_needs_consent_and_the_later_rule_then_stays(tmp_path: Path) -> None:
    """A client with two rules trains in one run on the questions whose scores another run shows."""
    by_key, by_id = (process_spec(format=f"pluralllm.run/{n}", evaluation={"holdout_share": 0.1}) for n in (3, 2))
    (tmp_path / "share.json").write_text('{"holdout_share": 0.1}')  # as an earlier release has written it
    held = HeldShare(tmp_path / "share.json")
    assert list(held.differences(ASKING, by_id)) == []
    (difference,) = held.differences(ASKING, by_key)
    assert (difference.field, difference.asked, difference.allowed) == ("format", "pluralllm.run/3", "run/1 or run/2")
    held.fix(by_key)  # after consent
    assert held.value == HoldOut(0.1, by_key=True)
    assert list(held.differences(ASKING, by_key)) == []
    (difference,) = held.differences(ASKING, by_id)
    assert (difference.asked, difference.allowed) == ("pluralllm.run/2", "run/3 or later")
    held.fix(by_id)
    assert held.value == HoldOut(0.1, by_key=True)


def test_a_change_of_the_rule_keeps_the_share(tmp_path: Path) -> None:
    held = HeldShare(tmp_path / "share.json")
    held.fix(process_spec(format="pluralllm.run/2", evaluation={"holdout_share": 0.2}))
    other = process_spec(format="pluralllm.run/3", evaluation={"holdout_share": 0.1})
    assert [one.field for one in held.differences(ASKING, other)] == ["evaluation.holdout_share", "format"]
    held.fix(other)
    assert held.value == HoldOut(0.2, by_key=True)
