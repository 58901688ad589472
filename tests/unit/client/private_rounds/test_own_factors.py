"""The state behind a client's factors moves on with the versions that hold its updates, and with nothing else."""

from pathlib import Path

import pytest
from support.process_harness import process_spec
from support.tasks import task_of

from pluralllm.client.keeping.drafts import Drafts
from pluralllm.client.keeping.history import History
from pluralllm.client.keeping.record_chain import OwnUpdate, SeenRun, SeenVersion
from pluralllm.client.private_rounds.own_factors import OwnFactors
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId

SPEC = process_spec()
AGNOSTIC = Aggregation(weighting="agnostic", fairness=1.0)
RUN = RunId("r")


class Remembered(History):
    """A history that says what the test says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "history")
        self.made: set[int] = set()  # rounds that made a version
        self.acknowledged: dict[int, bool] = {}  # rounds that this client has sent an update for

    def seen(self, run: RunId) -> SeenRun:
        updates = {
            RoundNumber(number): (OwnUpdate(Digest("u"), 1, ModelVersion(0), acknowledged=known),)
            for number, known in self.acknowledged.items()
        }
        made = {ModelVersion(n): SeenVersion("h", Digest("d"), RoundNumber(n), 4) for n in self.made}
        return SeenRun(made, updates)


def factor(folder: Path, history: History, number: int, distance: float = 0.35) -> float:
    """Returns the factor of a round as a daemon that has just started computes it, to three digits."""
    return round(
        OwnFactors(Drafts(folder / "drafts"), history).factor(
            task_of(SPEC, round_number=number), AGNOSTIC, distance, 0.25
        ),
        3,
    )


@pytest.mark.parametrize(
    ("is_made", "has_receipt", "second"),
    [(True, True, 1.221), (True, False, 1.105), (False, True, 1.105), (False, False, 1.105)],
    ids=["a version with the update", "no receipt", "an abandoned round", "an abandoned round without receipt"],
)
def test_a_factor_grows_with_each_round_whose_version_holds_the_update(
    tmp_path: Path, is_made: bool, has_receipt: bool, second: float
) -> None:
    history = Remembered(tmp_path)
    assert factor(tmp_path, history, 1) == 1.105
    history.acknowledged[1] = has_receipt
    history.made |= {1} if is_made else set()
    assert factor(tmp_path, history, 2) == second


def test_a_round_that_is_trained_again_starts_from_the_same_state(tmp_path: Path) -> None:
    history = Remembered(tmp_path)
    assert [factor(tmp_path, history, 1) for _ in range(3)] == [1.105] * 3
    history.acknowledged, history.made = {1: True}, {1}
    assert factor(tmp_path, history, 1) == 1.105
    assert [factor(tmp_path, history, 2) for _ in range(3)] == [1.221] * 3
    history.acknowledged[2] = True  # it is killed after the receipt: nothing has been written at that moment
    history.made.add(2)
    assert factor(tmp_path, history, 3) == 1.35


def test_an_abandoned_round_leaves_what_came_before_it(tmp_path: Path) -> None:
    history = Remembered(tmp_path)
    factor(tmp_path, history, 1)
    history.acknowledged, history.made = {1: True}, {1}
    factor(tmp_path, history, 2)
    factor(tmp_path, history, 3)  # round 2 was abandoned
    history.acknowledged[3] = True
    assert factor(tmp_path, history, 4) == 1.221, "as after round 1, because round 3 was abandoned, too"


def test_runs_are_apart_and_a_state_ends_with_its_run(tmp_path: Path) -> None:
    history, drafts = Remembered(tmp_path), Drafts(tmp_path / "drafts")
    factor(tmp_path, history, 1)
    history.acknowledged, history.made = {1: True}, {1}
    other = OwnFactors(drafts, history).factor(task_of(SPEC, run="other", round_number=2), AGNOSTIC, 0.35, 0.25)
    assert round(other, 3) == 1.105
    drafts.drop_run(RUN)
    assert factor(tmp_path, history, 2) == 1.105


def test_a_state_that_follows_from_true_answers_ends_when_answers_are_noised(tmp_path: Path) -> None:
    history, drafts = Remembered(tmp_path), Drafts(tmp_path / "drafts")
    factor(tmp_path, history, 1)
    drafts.follow(noised=True)
    assert not drafts.factors(RUN).exists()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"round": 1, "before": null}', '{"round": 0, "before": null, "after": null}']
    + [f'{{"round": 1, "before": null, "after": {number}}}' for number in ("-1", "1e300", '"x"')],
)
def test_a_damaged_state_is_named_with_the_way_to_mend_it(tmp_path: Path, text: str) -> None:
    Drafts(tmp_path / "drafts").factors(RUN).write_text(text)
    with pytest.raises(InvalidConfig, match="then the factors of the run begin anew"):
        factor(tmp_path, Remembered(tmp_path), 2)
