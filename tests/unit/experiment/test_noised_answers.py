"""benchmarks/noised_answers.py noises answers as a partner does, and scores what its columns say, on small groups."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import noised_answers
import numpy as np
import preset_trials
import pytest
from noised_answers import BOTH, CONTEXTS, NOTHING, TRAINING, Survey, Trials, missing, noised, parts, scores, table
from preset_trials import CPU, Record
from support.small_survey import KERNEL, small_group, small_spec

from pluralllm.client.privacy.accountant import epsilon_of
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.federated import first_values
from pluralllm.experiment.scoring import Scorer, alignment, episode_of, own_episode
from pluralllm.experiment.spec import Scoring

SURVEY = Survey(respondents=1000, questions_per_respondent=20, delta=1e-6)
GROUPS = {name: small_group(name, questions=40, seed=seed) for seed, name in enumerate(("a", "b", "c", "d"))}
SCORED = {name: GROUPS[name] for name in ("c", "d")}
SPEC = RunSpec.model_validate(
    {
        **small_spec({"rounds": 1, "groups": {"train": ["a", "b"]}}).model_dump(mode="json"),
        "predictor": KERNEL,
        "training": {**small_spec().model_dump(mode="json")["training"], "loss": "alignment"},
    }
)


class Chance:
    """Noise with a seed, in place of OpenDP's. It keeps the standard deviations that it was asked for."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self.sigmas: list[float] = []

    def __call__(self, numbers: Sequence[int], sigma: float) -> list[int]:
        self.sigmas.append(sigma)
        return [number + round(self._rng.normal(0, sigma)) for number in numbers]


@pytest.fixture(autouse=True)
def few_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = preset_trials.PAPER.model_copy(update={"scoring": Scoring(contexts=(8,), main_context=8, draws=2)})
    monkeypatch.setattr(noised_answers, "PAPER", paper)
    monkeypatch.setattr(preset_trials, "PAPER", paper)


def test_the_noise_is_that_of_a_release_within_the_bound(tmp_path: Path) -> None:
    draw = Chance()
    noised({"c": GROUPS["c"]}, 2.0, SURVEY, tmp_path, draw)
    counts = np.array(draw.sigmas) / 1024  # of an answer
    assert len(counts) == 40
    rho = 20 / (2 * counts.max() ** 2)  # a person has answered 20 of the 40 questions
    assert epsilon_of(rho, 1e-6) == pytest.approx(2.0, rel=0.02)
    assert epsilon_of(rho, 1e-6) <= 2.0


def test_a_release_is_drawn_once_and_then_read(tmp_path: Path) -> None:
    once = noised(SCORED, 1.0, SURVEY, tmp_path, draw := Chance())
    drawn = len(draw.sigmas)
    again = noised(SCORED, 1.0, SURVEY, tmp_path, draw)
    assert len(draw.sigmas) == drawn
    for name, data in SCORED.items():
        assert np.array_equal(once[name].shares, again[name].shares)
        assert [q.id for q in once[name].questions] == [q.id for q in data.questions]
        assert once[name].shares == pytest.approx(np.concatenate([q.shares for q in once[name].questions]), abs=1e-7)
        error = np.abs(once[name].shares - data.shares)
        assert 0.01 < error.mean() < 0.1


def test_scores_of_true_answers_are_those_of_the_preset_trials() -> None:
    values = first_values(SPEC)
    expected = preset_trials.scores(SPEC, values, SCORED, "validation")
    assert scores(SPEC, values, SCORED, SCORED) == pytest.approx({key: expected[key] for key in noised_answers.FIGURES})


def test_contexts_have_the_noise_and_the_judged_answers_have_not(tmp_path: Path) -> None:
    values, seen = first_values(SPEC), noised(SCORED, 1.0, SURVEY, tmp_path, Chance())
    own, another = [], []
    for name, other in (("c", "d"), ("d", "c")):
        scorer = Scorer(SPEC, values, SCORED[name], CPU)
        episodes = [own_episode(SPEC, SCORED[name], "validation", 8, draw) for draw in range(2)]
        contexts = [episode_of(SPEC, SCORED[other], "validation", 8, draw).context for draw in range(2)]
        own.append(alignment(scorer.score_with_another(e.targets, seen[name], e.context) for e in episodes))
        pairs = zip(episodes, contexts, strict=True)
        another.append(alignment(scorer.score_with_another(e.targets, seen[other], c) for e, c in pairs))
    expected = {"mean": fmean(own), "worst": min(own), "context_gain": fmean(own) - fmean(another)}
    assert scores(SPEC, values, SCORED, seen) == pytest.approx(expected)


def test_a_training_is_scored_by_true_answers_and_by_those_that_the_partner_sees(tmp_path: Path) -> None:
    trials = Trials(SPEC, GROUPS, SURVEY, tmp_path, Chance())
    plain, contexts = (trials.line(None, *part) for part in parts(None, (1.0,)))
    training, both = (trials.line(1.0, *part) for part in parts(1.0, (1.0, 8.0)))
    lines = (plain, contexts, training, both)
    assert [line["noise_on"] for line in lines] == [NOTHING, CONTEXTS, TRAINING, BOTH]
    assert [line["epsilon"] for line in lines] == [None, 1.0, 1.0, 1.0]
    assert sorted(path.name for path in (tmp_path / "seed-0-1").iterdir()) == ["a", "b", "c", "d"]
    seen = noised(SCORED, 1.0, SURVEY, tmp_path / "seed-0-1", Chance())
    assert plain["partner"] is None
    assert training["partner"] is None
    assert contexts["true"] == scores(SPEC, trials.model(None), SCORED, seen)
    assert contexts["partner"] == scores(SPEC, trials.model(None), seen, seen)
    assert both["true"] == scores(SPEC, trials.model(1.0), SCORED, seen)
    assert contexts["true"] != plain["true"]
    assert not np.array_equal(trials.model(None), trials.model(1.0))


def test_what_has_a_line_is_not_measured_again() -> None:
    facts: Record = {"seed": 0, "delta": 1e-6}
    lines: list[Record] = [
        facts | {"noise_on": NOTHING, "epsilon": None},
        facts | {"noise_on": CONTEXTS, "epsilon": 2.0},
    ]
    assert parts(None, (2.0, 4.0)) == [(NOTHING, None), (CONTEXTS, 2.0), (CONTEXTS, 4.0)]
    assert missing(lines, facts, parts(None, (2.0, 4.0))) == [(CONTEXTS, 4.0)]
    assert missing(lines, facts, parts(2.0, (2.0, 4.0))) == [(TRAINING, 2.0), (BOTH, 2.0)]
    assert missing(lines, facts | {"delta": 1e-5}, parts(None, ())) == [(NOTHING, None)]


def test_the_table_has_means_and_the_cost_beside_the_same_seed() -> None:
    def line(seed: int, noise_on: str, epsilon: float | None, mean: float, partner: float | None = None) -> Record:
        figures = {"mean": mean, "worst": mean - 0.1, "context_gain": 0.02}
        seen = None if partner is None else figures | {"mean": partner}
        return {"seed": seed, "noise_on": noise_on, "epsilon": epsilon, "true": figures, "partner": seen}

    lines = [line(0, NOTHING, None, 0.80), line(0, BOTH, 2.0, 0.79, 0.75), line(1, BOTH, 2.0, 0.80, 0.77)]
    rows = table([*lines, line(1, NOTHING, None, 0.82)]).splitlines()
    assert rows[2] == "| nothing | none | 2 | 0.8100 / 0.7100 |  | +0.0200 |  |  |"
    assert rows[3] == "| both | 2 | 2 | 0.7950 / 0.6950 | 0.0150 (0.0200) | +0.0200 | 0.7600 / 0.6950 | +0.0200 |"
