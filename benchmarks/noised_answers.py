"""Measures what noised answers cost on GlobalOpinionQA: alignment, worst group and context gain against epsilon.

    .venv/bin/python benchmarks/noised_answers.py DATA results.jsonl --work DIR [--seeds 0 1 2] [--epsilons 0.5 1 2 4 8]
    .venv/bin/python benchmarks/noised_answers.py DATA results.jsonl --table

DATA is GlobalOpinionQA in its original layout (a CSV file). Each country releases its answers as a partner does: with the noise
and the accountant of `pluralllm-client data release`. The data set has shares and no numbers of people, so two numbers are
assumptions: how many people have answered each question (--respondents), and how many questions one of them has answered at most
(--questions-per-respondent).

The paper's eight groups train with the preset, once for each epsilon and seed. The validation groups are scored by the rule of
benchmarks/preset_trials.py; the test groups are not read. The noise is on nothing, on the answers of the training groups, on the
contexts (the answers of the groups that are scored), or on both. Where a scored group has noised its answers, it is scored twice:
against its true answers, and against its noised answers, which is the score that the partner sees.

Noise of OpenDP has no seed. DIR keeps the released answers and the trained models, and each score appends a line to
results.jsonl. What is there is not done again, so that an interrupted command goes on.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from preset_trials import CPU, PAPER, Record, commit, lines_of, read, spec_of

from pluralllm.client.data.answers import read_answers
from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.client.data.private_data import jsonl_of
from pluralllm.client.privacy.mechanism import Draw, opendp_draw
from pluralllm.client.privacy.release import Terms, release
from pluralllm.client.privacy.released_answers import released_answers
from pluralllm.common.errors.tree import NotReleased
from pluralllm.common.predictor.data import GroupData
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import PRESETS, RunSpec
from pluralllm.experiment.federated import federate
from pluralllm.experiment.groups import Groups
from pluralllm.experiment.scoring import Scorer, alignment, episode_of, own_episode
from pluralllm.experiment.spec import slug_of
from pluralllm.experiment.stacked import Flat

PART = "validation"
NOTHING, TRAINING, CONTEXTS, BOTH = "nothing", "training groups", "contexts", "both"
FIGURES = ("mean", "worst", "context_gain")


@dataclass(frozen=True, slots=True)
class Survey:
    """The assumptions about the survey of each group, and the chance with which the bound epsilon may fail."""

    respondents: int  # people who have answered each question
    questions_per_respondent: int  # the most that one person has answered
    delta: float

    def terms(self, population: str, epsilon: float, questions: int) -> Terms:
        """Returns the statements of a partner with this survey. questions: number of questions of its survey."""
        people = math.ceil(self.respondents * questions / self.questions_per_respondent)
        return Terms(
            population=population,
            epsilon=epsilon,
            delta=self.delta,
            questions_per_respondent=self.questions_per_respondent,
            respondents=max(self.respondents, people),
            max_weight=1.0,
        )


def noised(groups: Groups, epsilon: float, survey: Survey, folder: Path, draw: Draw = opendp_draw) -> Groups:
    """Returns the groups with the answers that they release. folder: keeps the releases, one folder for each group."""
    return {
        name: with_answers(data, released(data.questions, epsilon, survey, folder / slug_of(name), draw))
        for name, data in groups.items()
    }


def released(
    questions: Sequence[Question], epsilon: float, survey: Survey, folder: Path, draw: Draw
) -> tuple[Question, ...]:
    """Returns a group's released answers. If the folder has no release yet, all questions are released into it."""
    answers, ledger = folder / "answers.jsonl", folder / "ledger"
    if not answers.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        counted = (CountedQuestion(q.text, q.options, q.shares, respondents=survey.respondents) for q in questions)
        answers.write_bytes(jsonl_of(counted))
    try:
        noised_answers = released_answers(answers, ledger)
    except NotReleased:
        release(answers, ledger, questions, survey.terms(folder.name, epsilon, len(questions)), draw=draw)
        noised_answers = released_answers(answers, ledger)
    return read_answers(noised_answers.path, noised_answers.sha256)


def with_answers(data: GroupData, answers: tuple[Question, ...]) -> GroupData:
    """Returns a copy of a group's data with other answers to the same questions, which are in the order of the data."""
    assert [question.id for question in answers] == [question.id for question in data.questions]
    shares = np.concatenate([np.asarray(question.shares, np.float32) for question in answers])
    return replace(data, questions=answers, shares=shares)


def scores(spec: RunSpec, values: Flat, judged: Groups, seen: Groups) -> dict[str, float]:
    """Returns the mean alignment of the groups, the worst group's, and the context gain.

    judged: the answers that the predictions are compared with. seen: the same groups with the answers that contexts are made of.
    """
    size, draws = PAPER.scoring.main_context, range(PAPER.scoring.draws)
    own: dict[str, float] = {}
    another: dict[str, float] = {}
    for name, data in judged.items():
        scorer = Scorer(spec, values, data, CPU)
        episodes = [own_episode(spec, data, PART, size, draw) for draw in draws]
        own[name] = alignment(scorer.score_with_another(e.targets, seen[name], e.context) for e in episodes)
        another[name] = alignment(
            scorer.score_with_another(
                episodes[draw].targets, seen[other], episode_of(spec, seen[other], PART, size, draw).context
            )
            for draw in draws
            for other in seen
            if other != name
        )
    mean = statistics.fmean(own.values())
    gain = mean - statistics.fmean(another.values())
    return {"mean": mean, "worst": min(own.values()), "context_gain": gain}


@dataclass(frozen=True, slots=True)
class Trials:
    """One seed's trainings and scores, with the folder that keeps its releases and models."""

    spec: RunSpec
    groups: Groups
    survey: Survey
    work: Path
    draw: Draw = opendp_draw

    def model(self, epsilon: float | None) -> Flat:
        """Returns the model that the training groups train together, with noise of `epsilon` on their answers."""
        file = self.work / f"{self.spec.sha256()}-{epsilon or 'none'}.npy"
        if not file.is_file():
            trainers = {name: self.groups[name] for name in self.spec.groups.train}
            *_, last = federate(self.spec, self._noised(trainers, epsilon), CPU)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, last.values)
        values: Flat = np.load(file)
        return values

    def line(self, trained: float | None, noise_on: str, epsilon: float | None) -> Record:
        """Returns the scores of one model. trained: epsilon of the noise on its training groups. noise_on, epsilon: a part."""
        values = self.model(trained)
        true = {name: data for name, data in self.groups.items() if name not in self.spec.groups.train}
        facts: Record = {"epsilon": epsilon, "noise_on": noise_on}
        if noise_on in (NOTHING, TRAINING):
            return facts | {"true": scores(self.spec, values, true, true), "partner": None}
        seen = self._noised(true, epsilon)
        by_true, by_seen = (scores(self.spec, values, judged, seen) for judged in (true, seen))
        return facts | {"true": by_true, "partner": by_seen}

    def _noised(self, groups: Groups, epsilon: float | None) -> Groups:
        if not epsilon:
            return groups
        return noised(groups, epsilon, self.survey, self.work / f"seed-{self.spec.seed}-{epsilon:g}", self.draw)


def parts(trained: float | None, epsilons: Sequence[float]) -> list[tuple[str, float | None]]:
    """Returns the parts of a trial that need the same model: what the noise is on, and its epsilon.

    trained: epsilon of the noise on the training groups. epsilons: of the noise on contexts, for a model without noise. A model
    with noise on its training groups is scored with true contexts, and with contexts that have the same noise.
    """
    if trained:
        return [(TRAINING, trained), (BOTH, trained)]
    return [(NOTHING, None), *((CONTEXTS, epsilon) for epsilon in epsilons)]


def missing(
    lines: Sequence[Record], facts: Record, needed: Sequence[tuple[str, float | None]]
) -> list[tuple[str, float | None]]:
    """Returns those of the needed parts that no line has. facts: of the trial, which its lines have."""
    measured = {(line["noise_on"], line["epsilon"]) for line in lines if facts.items() <= line.items()}
    return [part for part in needed if part not in measured]


def table(lines: Sequence[Record]) -> str:
    """Returns the means over seeds as a table; the cost is the difference from the same seed without noise."""
    without = {line["seed"]: line["true"] for line in lines if line["noise_on"] == NOTHING}
    rows: dict[tuple[str, float | None], list[Record]] = {}
    for line in lines:
        rows.setdefault((line["noise_on"], line["epsilon"]), []).append(line)
    order = (NOTHING, TRAINING, CONTEXTS, BOTH)
    head = (
        "| noise on | epsilon | seeds | mean / worst | cost of the mean (largest of a seed) | context gain | "
        "mean / worst as the partner sees it | context gain as the partner sees it |"
    )
    shown = [head, "|---|---|---|---|---|---|---|---|"]
    for (noise_on, epsilon), own in sorted(rows.items(), key=lambda row: (order.index(row[0][0]), row[0][1] or 0)):
        costs = [without[line["seed"]]["mean"] - line["true"]["mean"] for line in own if line["seed"] in without]
        cost = "" if noise_on == NOTHING or not costs else f"{statistics.fmean(costs):.4f} ({max(costs):.4f})"
        cells = [noise_on, "none" if epsilon is None else f"{epsilon:g}", str(len(own)), *_cells(own, "true")]
        cells.insert(4, cost)
        cells += _cells(own, "partner") if own[0]["partner"] else ["", ""]
        shown.append(f"| {' | '.join(cells)} |")
    return "\n".join(shown)


def _cells(lines: Sequence[Record], answers: str) -> list[str]:
    """Returns the cells of mean and worst, and of the context gain. answers: the key of the answers that scores are against."""
    mean, worst, gain = (statistics.fmean(line[answers][figure] for line in lines) for figure in FIGURES)
    return [f"{mean:.4f} / {worst:.4f}", f"{gain:+.4f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="GlobalOpinionQA in its original layout, a CSV file.")
    parser.add_argument("out", type=Path, help="File of the results, JSON Lines.")
    parser.add_argument("--work", type=Path, default=Path("noised-answers-work"), help="Folder of releases and models.")
    parser.add_argument("--preset", choices=PRESETS, default="default", help="The preset that trains.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds of the run.")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.5, 1, 2, 4, 8], help="Bounds of the noise.")
    parser.add_argument("--respondents", type=int, default=1000, help="People who have answered each question.")
    parser.add_argument("--questions-per-respondent", type=int, default=100, help="The most that one has answered.")
    parser.add_argument("--delta", type=float, default=1e-6, help="The chance with which the bound may fail.")
    parser.add_argument("--table", action="store_true", help="Prints the table of the results, and measures nothing.")
    chosen = parser.parse_args()
    if not chosen.table:
        torch.set_num_threads(1)
        measure(chosen)
    print(table(lines_of(chosen.out)))


def measure(chosen: Any) -> None:
    """Appends the lines that are missing. chosen: the arguments of the command."""
    survey = Survey(chosen.respondents, chosen.questions_per_respondent, chosen.delta)
    assumed = {"respondents": survey.respondents, "questions_per_respondent": survey.questions_per_respondent}
    work = chosen.work / f"{survey.respondents}-{survey.questions_per_respondent}-{survey.delta:g}"
    groups: Groups = {}
    for seed in chosen.seeds:
        spec = spec_of(chosen.preset, {}, seed)
        facts = {"preset": chosen.preset, "spec_sha256": spec.sha256(), "seed": seed, **assumed, "delta": survey.delta}
        for trained in (None, *chosen.epsilons):
            for noise_on, epsilon in missing(lines_of(chosen.out), facts, parts(trained, chosen.epsilons)):
                groups = groups or read(chosen.data, PART, spec, chosen.work / "vectors")
                line = Trials(spec, groups, survey, work).line(trained, noise_on, epsilon)
                with chosen.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"commit": commit(), **facts, **line}) + "\n")
                print(f"seed {seed}, noise on {noise_on}, epsilon {epsilon or 'none'}: {line['true']}", flush=True)


if __name__ == "__main__":
    main()
