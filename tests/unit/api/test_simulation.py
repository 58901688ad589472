"""A federation in one process, and the predictor that comes out of it."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.process_harness import WIDTH, tiny_embedding_model

from pluralllm.api import Federation, PreferencePredictor, Question, Simulation, read_answers, sample_groups
from pluralllm.api import simulation as simulation_module
from pluralllm.client.data.private_data import write_group
from pluralllm.common.errors.tree import ExtraMissing, InvalidArgument, InvalidSpec, TooFewQuestions
from pluralllm.common.predictor.data import Episode, GroupData
from pluralllm.common.predictor.metrics import js_distances
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.federated import federate
from pluralllm.experiment.groups import embed_groups
from pluralllm.experiment.scoring import Scorer, alignment, context_episode, gain_of, own_episode, predictor_of

GROUPS: dict[str, tuple[Question, ...]] = {str(name): given for name, given in sample_groups(5, 60, 0).items()}
NAMES = list(GROUPS)
SPEC: dict[str, Any] = {
    "preset": "fourier",
    "rounds": 3,
    "seed": 4,
    "predictor": {"features": 32, "group_rank": 3},
    "training": {
        "local_steps": 2,
        "episodes": {"min_context": 4, "max_context": 8, "min_targets": 4, "max_targets": 8},
    },
    "evaluation": {"context_questions": 8, "draws": 2, "holdout_share": 0.25},
    "embedding": {"model": "tiny", "dimension": 2 * WIDTH},
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulation")
    tiny_embedding_model(path / "tiny")
    return path


def options(folder: Path) -> dict[str, Any]:
    return {"embedding_model_path": folder / "tiny", "cache": folder / "cache", "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def drawn() -> list[tuple[str, int]]:
    """The group and the number of each draw that the simulation has made, in their order."""
    return []


@pytest.fixture(scope="module")
def simulation(folder: Path, drawn: list[tuple[str, int]]) -> Simulation:
    def noted(spec: RunSpec, data: GroupData, group_part: str, size: int, draw: int) -> Episode:
        drawn.append((data.group, draw))
        return own_episode(spec, data, group_part, size, draw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation_module, "own_episode", noted)
        return Federation.simulate(GROUPS, SPEC, held_out=NAMES[3:], every=2, **options(folder))


def test_a_context_is_drawn_once_and_serves_every_round(simulation: Simulation, drawn: list[tuple[str, int]]) -> None:
    assert len(simulation.curve) == 3
    assert sorted(drawn) == sorted((name, draw) for name in NAMES for draw in range(2))


def test_the_groups_that_are_not_held_out_train(simulation: Simulation) -> None:
    spec = simulation.spec
    assert (set(spec.groups.train), set(spec.groups.held_out)) == (set(NAMES[:3]), set(NAMES[3:]))
    assert (spec.round.min_clients, spec.round.target_clients) == (3, 3)


def test_the_curve_begins_with_the_first_weights_and_ends_with_the_last_round(simulation: Simulation) -> None:
    assert [moment.round for moment in simulation.curve] == [0, 2, 3]
    assert all(set(moment.alignment) == set(NAMES) for moment in simulation.curve)
    assert simulation.curve[0].moved_bytes == 0 < simulation.curve[1].moved_bytes < simulation.curve[2].moved_bytes
    assert simulation.alignment == simulation.curve[-1].alignment
    assert simulation.context_gain == pytest.approx(np.mean(list(simulation.context_gains.values())))
    assert set(simulation.context_gains) == set(NAMES)


def test_it_trains_the_bits_of_the_experiments_federation(simulation: Simulation, folder: Path) -> None:
    spec = simulation.spec
    data = embed_groups(spec, GROUPS, folder / "tiny", folder / "cache", CPU, lambda _done, _all: None)
    *_, last = federate(spec, {name: data[name] for name in spec.groups.train}, CPU)
    expected = predictor_of(spec, last.values).state_dict()
    trained = simulation.predictor.model.predictor.state_dict()
    assert all(torch.equal(trained[name], weight) for name, weight in expected.items())
    for group_part, names in (("train", NAMES[:3]), ("test", NAMES[3:])):
        episodes = {one: [own_episode(spec, data[one], group_part, 8, draw) for draw in range(2)] for one in names}
        for name in names:
            scorer = Scorer(spec, last.values, data[name], CPU)
            others = [data[other] for other in names if other != name]
            own, another = gain_of(scorer, episodes[name], others, lambda one, n: episodes[one.group][n].context)  # noqa: B023
            assert simulation.alignment[name] == alignment(map(scorer.score, episodes[name])) == own
            assert simulation.context_gains[name] == pytest.approx(own - another, abs=1e-12), (
                "but for the order of a sum"
            )


def test_the_predictor_answers_questions_and_keeps_its_answers_in_a_folder(
    simulation: Simulation, folder: Path
) -> None:
    group = GROUPS[NAMES[4]]
    asked = group[20]
    (first,) = simulation.predictor.predict(group[:8], [asked])
    assert list(first.shares) == list(asked.options) == list(first.spreads)
    assert sum(first.shares.values()) == pytest.approx(1.0, abs=1e-5)
    saved = simulation.predictor.save_pretrained(folder / "saved")
    write_group(folder / "group.jsonl", group[:8])
    chosen = {name: value for name, value in options(folder).items() if name != "progress"}
    again = PreferencePredictor.from_pretrained(saved, **chosen)
    pair = (asked.text, list(asked.options))
    (second,) = again.predict(folder / "group.jsonl", [pair])
    assert second.shares == pytest.approx(first.shares, abs=1e-6)
    assert again.config.context_gain == pytest.approx(simulation.context_gain)
    with pytest.raises(TooFewQuestions):
        again.predict(group[:3], [pair])
    for options_of_it in ("yes", ["yes"]):
        with pytest.raises(InvalidArgument, match="at least 2 options"):
            again.predict(group[:8], [("Is it?", options_of_it)])


def test_the_context_gain_is_what_the_own_context_is_better_by(simulation: Simulation) -> None:
    predictor, pair = simulation.predictor, NAMES[3:]
    gains = predictor.context_gain({name: GROUPS[name] for name in pair}, draws=1)
    for name, other in (pair, pair[::-1]):
        contexts: dict[str, list[Question]] = {}
        targets: tuple[int, ...] = ()
        for group in (other, name):
            episode = context_episode(cast(Any, SimpleNamespace(group=group)), 8, 0, range(60), range(60))
            contexts[group] = [GROUPS[group][number] for number in episode.context]
            targets = episode.targets
        questions = [GROUPS[name][number] for number in targets]
        score = {group: alignment_of(predictor, context, questions) for group, context in contexts.items()}
        assert gains[name] == pytest.approx(score[name] - score[other], abs=1e-5)


def alignment_of(predictor: PreferencePredictor, context: list[Question], questions: list[Question]) -> float:
    predicted = predictor.predict(context, questions)
    shares = np.concatenate([[*one.shares.values()] for one in predicted]).astype(np.float32)
    true = np.concatenate([question.shares for question in questions]).astype(np.float32)
    starts = np.cumsum([0, *(len(question.options) for question in questions[:-1])])
    return float(1 - np.mean(js_distances(shares, true, starts)))


def test_a_context_gain_needs_two_groups_with_enough_questions(simulation: Simulation) -> None:
    group = GROUPS[NAMES[0]]
    for groups, size, words in (
        ({"a": group}, 8, "at least 2 groups"),
        ({"a": group, "b": group[:8]}, 8, "b has 8 questions"),
        ({"a": group, "b": group}, 3, "needs at least 4"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            simulation.predictor.context_gain(groups, context_questions=size)


@pytest.mark.parametrize(
    ("changes", "held_out", "words"),
    [
        ({"round": {"min_clients": 2, "target_clients": 6}}, (), "above the 5 groups.train"),
        ({"groups": {"train": [*NAMES[:2], "Nowhere"]}}, (), "no answers of 'Nowhere'"),
        ({}, ("Nowhere",), "no answers of 'Nowhere'"),
        (
            {
                "round": {"min_clients": 2, "target_clients": 2},
                "training": {**SPEC["training"], "keep_optimizer_state": True},
            },
            (),
            "keep_optimizer_state",
        ),
    ],
)
def test_a_spec_that_does_not_fit_the_groups_is_refused_before_any_work(
    changes: dict[str, Any], held_out: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises((InvalidArgument, InvalidSpec), match=words):
        Federation.simulate(GROUPS, {**SPEC, **changes}, held_out=held_out, cache=tmp_path, progress=False)


def test_a_group_with_too_few_questions_is_named_before_any_work(simulation: Simulation, tmp_path: Path) -> None:
    scored = [question for question in GROUPS[NAMES[4]] if not simulation.spec.held_out.includes(question)]
    few = {**GROUPS, NAMES[4]: scored[:8]}  # as many as a context has
    with pytest.raises(TooFewQuestions, match=NAMES[4]):
        Federation.simulate(few, SPEC, held_out=NAMES[4:], cache=tmp_path, progress=False)
    with pytest.raises(InvalidArgument, match="every"):
        Federation.simulate(GROUPS, SPEC, every=0)


def test_the_curve_is_a_data_frame_and_without_pandas_the_error_says_what_to_install(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = simulation.frame()
    assert len(frame) == 3 * len(NAMES)
    assert list(frame.columns) == ["round", "moved_bytes", "group", "role", "alignment_score"]
    assert set(frame[frame.role == "held_out"].group) == set(NAMES[3:])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ExtraMissing, match=r"pluralllm-research\[frames\]"):
        simulation.frame()


def test_a_private_file_is_named_by_a_text_or_a_path(tmp_path: Path) -> None:
    file = tmp_path / "north.jsonl"
    write_group(file, GROUPS[NAMES[0]])
    assert read_answers(str(file)) == read_answers(file)
